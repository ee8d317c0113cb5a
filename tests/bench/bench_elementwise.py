"""Elementwise functions, norms, reductions and moves beside onnxruntime and a copy in memory.

    python tests/bench/bench_elementwise.py compile [NAME ...] [--folder FOLDER]
    python tests/bench/bench_elementwise.py time [NAME ...] [--folder FOLDER] [--threads N]
                                            [--isa ISA] [--sizes L1 L2 ...] [--for SECONDS]

Graphs of one function of x [rows, 768] (`rotary`: heads of 64), with rows so that what is read and
written lies in L1, L2, L3 or memory. A line has microseconds of a run of ours, of onnxruntime's
and of numpy's copy of as many bytes, medians of runs in turns in one process, and the ratio of ours
to either; `faults`: pages that a run of ours touches for the first time. With --folder, what was
compiled is taken from there.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import abqc
import numpy as np
import onnx
import onnxruntime
from abqc.compiler.bench import time_block
from abqc.runtime.environment import cache_folder
from onnx import NodeProto, TensorProto, helper, numpy_helper

WIDTH = 768
HEAD = 64
OPSET = 20
ROWS = {"L1": 4, "L2": 64, "L3": 1024, "memory": 16384}
ROUNDS = 7
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
INPUTS = {"x": FLOAT, "z": FLOAT, "n": TensorProto.INT64}

Arrays = dict[str, np.ndarray]
Graph = tuple[list[NodeProto], Arrays]


def node(op_type: str, inputs: str, outputs: str = "y", **attributes: object) -> NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def row(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


def gelu() -> Graph:
    """As exporters write it where they have no operator for it."""
    nodes = [
        node("Div", "x root", "a"),
        node("Erf", "a", "b"),
        node("Add", "b one", "c"),
        node("Mul", "x c", "d"),
        node("Mul", "d half"),
    ]
    scalars = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    return nodes, {name: np.float32(value) for name, value in scalars.items()}


def rms_norm() -> Graph:
    nodes = [
        node("Pow", "x two", "a"),
        node("ReduceMean", "a last", "b", keepdims=1),
        node("Add", "b eps", "c"),
        node("Sqrt", "c", "d"),
        node("Reciprocal", "d", "e"),
        node("Mul", "x e", "f"),
        node("Mul", "f g"),
    ]
    scalars = {"two": np.float32(2), "eps": np.float32(1e-6), "last": np.array([-1])}
    return nodes, scalars | {"g": row(1)}


def rotary() -> Graph:
    """x cos + rotated(x) sin, of heads of HEAD, the angles those of a row."""
    nodes = [
        node("Reshape", "x heads", "h"),
        node("Slice", "h zero half last", "a"),
        node("Slice", "h half whole last", "b"),
        node("Neg", "b", "n"),
        node("Concat", "n a", "r", axis=-1),
        node("Mul", "h cos", "c"),
        node("Mul", "r sin", "s"),
        node("Add", "c s"),
    ]
    counts = {"zero": 0, "half": HEAD // 2, "whole": HEAD, "last": -1}
    arrays = {name: np.array([count]) for name, count in counts.items()}
    angles = row(2)[:HEAD]
    shape = np.array([-1, WIDTH // HEAD, HEAD])
    return nodes, arrays | {"heads": shape, "cos": np.cos(angles), "sin": np.sin(angles)}


def graphs() -> dict[str, Graph]:
    """By name; of x, or of integers `n`, and of `z` where one is read, of the same sizes."""
    unary = ("Exp", "Tanh", "Sigmoid", "Erf", "Sqrt", "Relu")
    made: dict[str, Graph] = {name.lower(): ([node(name, "x")], {}) for name in unary}
    axes = {"rows": np.array([0]), "columns": np.array([1])}
    return made | {
        "gelu": gelu(),
        "gelu_tanh": ([node("Gelu", "x", approximate="tanh")], {}),
        "silu": ([node("Sigmoid", "x", "s"), node("Mul", "x s")], {}),
        "softmax": ([node("Softmax", "x", axis=-1)], {}),
        "layer_norm": ([node("LayerNormalization", "x g b")], {"g": row(3), "b": row(4)}),
        "rms_norm": rms_norm(),
        "rotary": rotary(),
        "add": ([node("Add", "x z")], {}),
        "mul": ([node("Mul", "x z")], {}),
        "add_row": ([node("Add", "x g")], {"g": row(5)}),
        "sum_rows": ([node("ReduceSum", "x rows", keepdims=0)], axes),
        "sum_columns": ([node("ReduceSum", "x columns", keepdims=0)], axes),
        "max_columns": ([node("ReduceMax", "x columns", keepdims=0)], axes),
        "transpose": ([node("Transpose", "x", perm=[1, 0])], {}),
        "concat": ([node("Concat", "x x", axis=1)], {}),
        "cast_f16": ([node("Cast", "x", to=HALF)], {}),
        "cast_i32": ([node("Cast", "x", to=TensorProto.INT32)], {}),
        "cast_i64": ([node("Cast", "x", to=TensorProto.INT64)], {}),
        "cast_i8": ([node("Cast", "x", to=TensorProto.INT8)], {}),
        "cast_u8": ([node("Cast", "x", to=TensorProto.UINT8)], {}),
        "cast_bool": ([node("Cast", "x", to=TensorProto.BOOL)], {}),
        "cast_i64_f32": ([node("Cast", "n", to=FLOAT)], {}),
        "cast_i64_i32": ([node("Cast", "n", to=TensorProto.INT32)], {}),
        "greater": ([node("Greater", "x z")], {}),
        "where": ([node("Less", "x z", "c"), node("Where", "c x z")], {}),
    }


def model(graph: Graph) -> onnx.ModelProto:
    nodes, arrays = graph
    read = {name for each in nodes for name in each.input}
    used = {name: array for name, array in arrays.items() if name in read}
    inputs = [
        helper.make_tensor_value_info(name, kind, ["rows", WIDTH])
        for name, kind in INPUTS.items()
        if name in read
    ]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in used.items()]
    made = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], constants)
    opsets = [helper.make_opsetid("", OPSET)]
    return onnx.shape_inference.infer_shapes(
        helper.make_model(made, opset_imports=opsets, ir_version=9)
    )


def compile_all(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / f"{name}.onnx"
        onnx.save(model(graphs()[name]), path)
        abqc.compile(path, output=path.with_suffix(".so"))
        print(name, flush=True)


def feeds_of(name: str, rows: int) -> Arrays:
    rng = np.random.default_rng(6)
    read = {each for node in graphs()[name][0] for each in node.input}
    drawn = {n: rng.standard_normal((rows, WIDTH)) for n in INPUTS if n in read}
    return {
        name: (values if INPUTS[name] == FLOAT else 100 * values).astype(
            helper.tensor_dtype_to_np_dtype(INPUTS[name])
        )
        for name, values in drawn.items()
    }


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def faults_of(run: Callable[[], object]) -> int:
    run()
    before = faults()
    run()
    return faults() - before


def measure(
    folder: Path, name: str, size: str, threads: int, isa: str | None, seconds: float
) -> str:
    feeds = feeds_of(name, ROWS[size])
    ours = abqc.load(folder / f"{name}.so", threads=threads, isa=isa)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    path = folder / f"{name}.onnx"
    theirs = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    expected = theirs.run(None, feeds)[0]
    actual = ours.run(feeds)[0]
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    moved = sum(array.nbytes for array in feeds.values()) + expected.nbytes
    source, target = (np.ones(moved // 2, np.uint8) for _ in range(2))
    sides: tuple[Callable[[], object], ...] = (
        lambda: ours.run(feeds),
        lambda: theirs.run(None, feeds),
        lambda: np.copyto(target, source),
    )
    taken: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        for side, run in enumerate(sides):
            taken[side] += time_block(run, seconds / ROUNDS / len(sides), 2)
            if threads > 1:
                time.sleep(0.03)  # in which onnxruntime's threads stop spinning
    mine, other, copy = (1e6 * median(each) for each in taken)
    return (
        f"{name:12s} {size:6s} {mine:10.1f} {other:10.1f} {copy:10.1f}"
        f" {mine / other:7.2f} {mine / copy:7.2f} {faults_of(sides[0]):7d}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=("compile", "time"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "bench-elementwise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", help="an instruction set; default: the best")
    parser.add_argument("--sizes", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--for", type=float, default=0.15, dest="seconds", metavar="SECONDS")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    names = args.names or list(graphs())
    if unknown := set(names) - set(graphs()):
        sys.exit(f"no graph is called {', '.join(sorted(unknown))}")
    if args.step == "compile":
        compile_all(args.folder, names)
        return
    onnxruntime.set_default_logger_severity(3)
    print("graph        size         ours     theirs       copy  /theirs   /copy  faults")
    for name in names:
        for size in args.sizes:
            line = measure(args.folder, name, size, args.threads, args.isa, args.seconds)
            print(line, flush=True)


if __name__ == "__main__":
    main()
