"""Small graphs at the sizes of real models, beside onnxruntime on one thread.

    python tests/bench/bench_cases.py [NAME ...]

For each graph: microseconds of a run of ours and of onnxruntime's, and their ratio. Runs of both
alternate, and the fastest of each counts, so that the machine's other work does not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import abqc
import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, helper, numpy_helper

ROUNDS = 60
SECONDS = 3.0  # of a graph at most

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A graph of `nodes`; `open_axes` of inputs have names in place of sizes."""

    nodes: Sequence[NodeProto]
    feeds: Arrays
    constants: Arrays = field(default_factory=dict)
    open_axes: dict[str, Sequence[int]] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        inputs = []
        for name, array in self.feeds.items():
            shape: list[int | str] = list(array.shape)
            for axis in self.open_axes.get(name, [0]):
                shape[axis] = f"{name}{axis}"
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, shape))
        made = {name for node in self.nodes for name in node.output}
        read = {name for node in self.nodes for name in node.input}
        outputs = [onnx.ValueInfoProto(name=name) for name in sorted(made - read)]
        constants = [numpy_helper.from_array(a, name) for name, a in self.constants.items()]
        graph = helper.make_graph(list(self.nodes), "case", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", 17)]
        return onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=opsets, ir_version=8)
        )


def node(op_type: str, inputs: str, outputs: str, **attributes: object) -> NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def integers(high: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, high, shape)


def attention(heads: int) -> Case:
    """Self-attention as transformers' older exports write it: heads by a Reshape of open sizes."""
    shape = np.array([0, 0, heads, 64])
    nodes = []
    for kind, permutation in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", f"x w{kind}", f"{kind}0"),
            node("Reshape", f"{kind}0 shape", f"{kind}1"),
            node("Transpose", f"{kind}1", f"{kind}2", perm=permutation),
        ]
    nodes += [
        node("Mul", "q2 scale", "q3"),
        node("MatMul", "q3 k2", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p v2", "o"),
        node("Transpose", "o", "y", perm=[0, 2, 1, 3]),
    ]
    weights = {f"w{kind}": floats(192, 192) * np.float32(0.05) for kind in "qkv"}
    constants = {"shape": shape, "scale": np.float32(0.125), **weights}
    return Case(nodes, {"x": floats(1, 197, 192)}, constants, {"x": [0, 1]})


def shared_weight() -> Case:
    """Eight layers that share a weight through Identity, as ALBERT's do."""
    nodes, x = [], "x"
    for i in range(8):
        nodes += [
            node("Identity", "w", f"w{i}"),
            node("MatMul", f"{x} w{i}", f"m{i}"),
            node("Relu", f"m{i}", f"r{i}"),
        ]
        x = f"r{i}"
    return Case(nodes, {"x": floats(64, 512)}, {"w": floats(512, 512) * np.float32(0.05)})


def scatter(op_type: str, **attributes: object) -> Case:
    """128 rows of a table of 1,024 x 64, or 128 places in each of its columns."""
    if op_type == "ScatterND":
        indices = RNG.permutation(1024)[:128].reshape(128, 1)
        updates = floats(128, 64)
    else:
        rows = np.arange(1024).repeat(64).reshape(1024, 64)
        indices, updates = RNG.permuted(rows, axis=0)[:128], floats(128, 64)
    feeds = {"x": floats(1024, 64), "i": indices, "u": updates}
    return Case([node(op_type, "x i u", "y", **attributes)], feeds, open_axes={"i": [0], "u": [0]})


def recurrent(op_type: str, gates: int, directions: int = 1) -> Case:
    """64 steps of a batch of one, 128 wide."""
    names = "forward" if directions == 1 else "bidirectional"
    weights = {
        "w": floats(directions, gates * 128, 128) * np.float32(0.05),
        "r": floats(directions, gates * 128, 128) * np.float32(0.05),
        "b": floats(directions, 2 * gates * 128) * np.float32(0.05),
    }
    nodes = [node(op_type, "x w r b", "y", hidden_size=128, direction=names)]
    return Case(nodes, {"x": floats(64, 1, 128)}, weights)


def loop() -> Case:
    """A hundred iterations, each a small sum."""
    body = helper.make_graph(
        [node("Identity", "c", "c2"), node("Add", "a one", "a2"), node("Identity", "a2", "s")],
        "body",
        [
            helper.make_tensor_value_info("n", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [64]),
        ],
        [
            helper.make_tensor_value_info("c2", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("a2", onnx.TensorProto.FLOAT, [64]),
            helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [64]),
        ],
    )
    feeds = {"count": np.array(100), "x": floats(64)}
    constants = {"one": np.float32(1), "true": np.array(True)}
    open_axes: dict[str, Sequence[int]] = {"count": [], "x": []}
    nodes = [node("Loop", "count true x", "y rows", body=body)]
    return Case(nodes, feeds, constants, open_axes)


def cases() -> dict[str, Callable[[], Case]]:
    image = {"x": floats(1, 16, 56, 56)}
    rows = {"x": floats(64, 1024)}
    twenty = {"k": np.array([20])}
    sparse = {"x": (RNG.random((64, 1024)) < 0.1).astype(np.float32)}
    return {
        "top_k": lambda: Case([node("TopK", "x k", "a i", axis=1)], rows, twenty),
        "top_k_of_one_row": lambda: Case(
            [node("TopK", "x k", "a i")], {"x": floats(1, 50257)}, {"k": np.array([50])}
        ),
        "top_k_of_all": lambda: Case(
            [node("TopK", "x k", "a i")], {"x": floats(16, 1024)}, {"k": np.array([1024])}
        ),
        "attention_heads_3": lambda: attention(3),
        "attention_heads_minus_1": lambda: attention(-1),
        "shared_weight": shared_weight,
        "gather_table": lambda: Case(
            [node("Gather", "t i", "y")], {"i": integers(30522, 1, 128)}, {"t": floats(30522, 384)}
        ),
        "gather_rows": lambda: Case(
            [node("Gather", "x i", "y")], {"x": floats(1024, 64), "i": integers(1024, 256)}
        ),
        "gather_columns": lambda: Case(
            [node("Gather", "x i", "y", axis=1)], {"x": floats(64, 1024), "i": integers(1024, 256)}
        ),
        "gather_elements": lambda: Case(
            [node("GatherElements", "x i", "y", axis=1)],
            {"x": floats(64, 1024), "i": integers(1024, 64, 256)},
        ),
        "gather_nd": lambda: Case(
            [node("GatherND", "x i", "y")], {"x": floats(64, 64, 64), "i": integers(64, 256, 2)}
        ),
        "scatter_nd": lambda: scatter("ScatterND"),
        "scatter_nd_add": lambda: scatter("ScatterND", reduction="add"),
        "scatter_elements": lambda: scatter("ScatterElements"),
        "scatter_elements_add": lambda: scatter("ScatterElements", reduction="add"),
        "non_zero": lambda: Case([node("NonZero", "x", "y")], sparse),
        "compress": lambda: Case(
            [node("Compress", "x c", "y", axis=0)],
            {"x": floats(1024, 64), "c": RNG.random(1024) < 0.3},
        ),
        "where_nonzero_gather": lambda: Case(
            [
                node("NonZero", "x", "places"),
                node("Transpose", "places", "rows", perm=[1, 0]),
                node("GatherND", "x rows", "y"),
            ],
            sparse,
        ),
        "one_hot": lambda: Case(
            [node("OneHot", "i d v", "y")],
            {"i": integers(1000, 128)},
            {"d": np.array(1000), "v": np.array([0, 1], np.float32)},
        ),
        "cum_sum": lambda: Case([node("CumSum", "x a", "y")], rows, {"a": np.array(1)}),
        "arg_max": lambda: Case([node("ArgMax", "x", "y", axis=1)], rows),
        "unique": lambda: Case([node("Unique", "x", "y")], {"x": integers(500, 4096)}),
        "transpose": lambda: Case([node("Transpose", "x", "y", perm=[0, 2, 3, 1])], image),
        "concat": lambda: Case([node("Concat", "x x", "y", axis=1)], rows),
        "slice_backwards": lambda: Case(
            [node("Slice", "x b e a s", "y")],
            rows,
            {
                "b": np.array([-1]),
                "e": np.array([np.iinfo(np.int64).min]),
                "a": np.array([1]),
                "s": np.array([-1]),
            },
        ),
        "pad": lambda: Case(
            [node("Pad", "x p", "y")], image, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
        ),
        "max_pool": lambda: Case(
            [node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
            image,
        ),
        "resize": lambda: Case(
            [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear")],
            image,
            {"s": np.array([1, 1, 2, 2], np.float32)},
        ),
        "softmax": lambda: Case([node("Softmax", "x", "y", axis=-1)], rows),
        "reduce_sum": lambda: Case([node("ReduceSum", "x a", "y")], rows, {"a": np.array([1])}),
        "einsum": lambda: Case(
            [node("Einsum", "q k", "y", equation="bhqd,bhkd->bhqk")],
            {"q": floats(1, 6, 128, 64), "k": floats(1, 6, 128, 64)},
        ),
        "lstm": lambda: recurrent("LSTM", 4),
        "gru_both_directions": lambda: recurrent("GRU", 3, directions=2),
        "loop": loop,
    }


def measure(case: Case, folder: Path) -> tuple[float, float]:
    """Seconds of a run of ours and of onnxruntime's, the fastest of many in turn."""
    path = folder / "case.onnx"
    onnx.save(case.model(), path)
    ours = abqc.compile(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    theirs = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    runs = (lambda: ours.run(case.feeds, threads=1), lambda: theirs.run(None, case.feeds))
    for expected, actual in zip(runs[1](), runs[0](), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
    best = [float("inf"), float("inf")]
    deadline = time.perf_counter() + SECONDS
    for round_ in range(10 * ROUNDS):
        for side, run in enumerate(runs):
            started = time.perf_counter()
            run()
            best[side] = min(best[side], time.perf_counter() - started)
        if round_ >= ROUNDS and time.perf_counter() > deadline:
            break
    return best[0], best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="graphs; default: all")
    names = parser.parse_args().names
    onnxruntime.set_default_logger_severity(3)
    print(f"{'graph':26s}{'ours us':>10s}{'theirs us':>11s}{'ratio':>7s}")
    for name, make in cases().items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = measure(make(), Path(folder))
        print(f"{name:26s}{ours * 1e6:10.1f}{theirs * 1e6:11.1f}{ours / theirs:7.2f}", flush=True)


if __name__ == "__main__":
    main()
