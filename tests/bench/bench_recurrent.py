"""Recurrent and state space models beside onnxruntime's float, both sides timed in turns.

    python tests/bench/bench_recurrent.py [NAME ...] [--threads N ...] [--seconds S] [--work FOLDER]

Rows are one-layer LSTMs, GRUs and RNNs over 100 steps, stacked bidirectional ones, and the models
of the zoo whose sequences are recurrences (`tests/zoo/make.py` fetches them; what is not there is
left out). For each: milliseconds of a run in float and in `w8a8`, and onnxruntime's float over
ours: above 1 ours is faster. With `--work`, compiled libraries are kept there and found again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import abqc
import numpy as np
import onnx
from abqc.compiler.bench import interleave
from abqc.compiler.onnxruntime_peer import Peer
from onnx import TensorProto, helper, numpy_helper
from zoo.feeds import make_feeds
from zoo.make import path_of
from zoo.table import BY_NAME

Feeds = dict[str, np.ndarray]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS, STEPS = 128, 100

# Models of the zoo and the sizes of their inputs.
ZOO = {
    "vad": {"input.0": 1, "input.1": 576, "state.1": 1},
    "vad-16k-sequence": {"sequence_length": 60},
    "vad-v6": {"seq_len": 60},
    "romanizer-arabic-encoder": {"batch": 1, "src_len": 24},
    "romanizer-arabic-decoder": {"batch": 1, "src_len": 24, "tgt_len": 24},
    "tashkeel-bilstm": {"batch": 1, "seq_len": 100},
    "tashkeel-rawi": {"batch_size": 1, "sequence": 100},
    "seizure-a": {"batch": 1, "time": 200},
    "lstm-torchscript": {"batch": 1, "seq": 100},
    "gru-torchscript": {"batch": 1, "seq": 100},
    "mamba-dynamo": {"batch": 1, "seq": 100},
}


@dataclass(frozen=True)
class Case:
    """A model's file, and what it is fed, by the name of a row."""

    path: Path
    feeds: dict[str, Feeds]


def tagger(op_type: str, hidden: int, layers: int, directions: int) -> onnx.ModelProto:
    """Recurrent layers as PyTorch exports them, over [steps, batch, inputs]."""
    rng = np.random.default_rng(0)
    nodes, weights, x, columns = [], [], "x", INPUTS
    rows, bound = GATES[op_type] * hidden, hidden**-0.5
    for n in range(layers):
        shapes = {"W": (rows, columns), "R": (rows, hidden), "B": (2 * rows,)}
        for name, shape in shapes.items():
            array = rng.uniform(-bound, bound, (directions, *shape)).astype(np.float32)
            weights.append(numpy_helper.from_array(array, f"{name}{n}"))
        more = {"linear_before_reset": 1} if op_type == "GRU" else {}
        direction = "bidirectional" if directions == 2 else "forward"
        nodes += [
            helper.make_node(op_type, [x, f"W{n}", f"R{n}", f"B{n}"], [f"y{n}"],
                             hidden_size=hidden, direction=direction, **more),
            helper.make_node("Transpose", [f"y{n}"], [f"t{n}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"t{n}", "shape"], [f"x{n}"]),
        ]  # fmt: skip
        x, columns = f"x{n}", directions * hidden
    weights.append(numpy_helper.from_array(np.array([0, 0, -1]), "shape"))
    float_ = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("x", float_, ["steps", "batch", INPUTS])],
        [helper.make_tensor_value_info(x, float_, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layers(folder: Path) -> Iterator[tuple[str, Callable[[], Case]]]:
    for op_type in GATES:
        for hidden, count, directions in ((128, 1, 1), (128, 2, 2), (256, 1, 1), (512, 1, 1)):
            name = f"{op_type.lower()}-{hidden}" + ("-stacked" if count > 1 else "")

            def case(
                name: str = name,
                sizes: tuple[str, int, int, int] = (op_type, hidden, count, directions),
            ) -> Case:
                path = folder / f"{name}.onnx"
                onnx.save(tagger(*sizes), path)
                rng = np.random.default_rng(1)
                draw = {b: rng.standard_normal((STEPS, b, INPUTS)) for b in (1, 8)}
                return Case(
                    path, {f"batch {b}": {"x": x.astype(np.float32)} for b, x in draw.items()}
                )

            yield name, case


def of_zoo() -> Iterator[tuple[str, Callable[[], Case]]]:
    for name, sizes in ZOO.items():
        entry = BY_NAME[name]
        path = path_of(entry)
        if path is not None:
            feeds = {"": make_feeds(entry, path, sizes)}
            yield name, lambda path=path, feeds=feeds: Case(path, feeds)


def library(name: str, path: Path, recipe: str, folder: Path) -> Path:
    """The model compiled for this CPU; found again in `folder`."""
    made = folder / f"{name}-{recipe}.so"
    if not made.exists():
        abqc.compile(path, quant=recipe, output=made, cpu="native")
    return made


def measure(name: str, case: Case, threads: list[int], seconds: float, folder: Path) -> None:
    for recipe in ("none", "w8a8"):
        made = library(name, case.path, recipe, folder)
        if not seconds:
            continue
        for count in threads:
            model, peer = abqc.load(made, threads=count), Peer(case.path, threads=count)
            known = {spec.name for spec in model.inputs}
            for label, feeds in case.feeds.items():
                own = {key: array for key, array in feeds.items() if key in known}
                timing = interleave(
                    lambda m=model, f=own: m.run(f), lambda p=peer, f=feeds: p.run(f), seconds
                )
                ours, other = (1e3 * median(side) for side in (timing.own, timing.peer))
                print(
                    f"{name:26} {label:8} {recipe:5} {count} thread{'s' * (count > 1):1} "
                    f"{ours:8.3f} ms, onnxruntime {other:8.3f} ms, {other / ours:5.2f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["*"], metavar="NAME")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="of a row; 0 compiles alone")
    parser.add_argument("--work", type=Path, help="where compiled libraries are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, case in (*layers(folder), *of_zoo()):
            if any(fnmatchcase(name, pattern) for pattern in arguments.names):
                measure(name, case(), arguments.threads, arguments.seconds, folder)


if __name__ == "__main__":
    main()
