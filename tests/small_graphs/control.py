"""If, Loop and Scan."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from .graph import Graph, graph, ints, node, normal, scalar, subgraph

_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def squeeze_if() -> dict[str, Graph]:
    """torch's legacy export of x.squeeze(-1): branches of different rank were refused, though the
    condition is known once sizes are; it has shape [1]."""
    squeezed = subgraph("then", [node("Squeeze", "r last", "a")], [], [("a", _FLOAT, ["n", 8])])
    kept = subgraph("else", [node("Identity", "r", "b")], [], [("b", _FLOAT, ["n", 8, "k"])])
    nodes = [
        node("Relu", "x", "r"),
        node("Shape", "r", "s"),
        node("Gather", "s two", "d", axis=0),
        node("Equal", "d one", "eq"),
        node("If", "eq", "y", "the_if", then_branch=squeezed, else_branch=kept),
    ]
    constants = {"two": ints(2), "one": ints(1), "last": ints(-1)}
    feeds = [{"x": normal(n, 8, 1)} for n in (3, 1)]
    return {"if_squeeze": graph(nodes, [("x", np.float32, ["n", 8, 1])], "y", constants, feeds)}


def loop_carries() -> dict[str, Graph]:
    """A tensor carried for a number of steps: refused."""
    body = subgraph(
        "body",
        [node("Identity", "c", "c1"), node("Tanh", "s", "t"), node("Add", "t x", "s1")],
        [("i", _INT64, []), ("c", _BOOL, []), ("s", _FLOAT, [4])],
        [("c1", _BOOL, []), ("s1", _FLOAT, [4])],
    )
    x = ("x", np.float32, [4])
    loop = [node("Loop", "n _ x", "y", "loop", body=body)]
    counts = [{"x": normal(4), "n": scalar(n)} for n in (3, 0)]
    return {
        "loop_fixed": graph(loop, [x], "y", {"n": scalar(5)}, [{"x": normal(4)}]),
        "loop_counted": graph(loop, [x, ("n", np.int64, [])], "y", {}, counts),
    }


def scan_sums() -> dict[str, Graph]:
    """A running sum: refused."""
    body = subgraph(
        "body",
        [node("Add", "s e", "s1"), node("Identity", "s1", "o")],
        [("s", _FLOAT, [4]), ("e", _FLOAT, [4])],
        [("s1", _FLOAT, [4]), ("o", _FLOAT, [4])],
    )
    nodes = [node("Scan", "s0 x", "sN y", "scan", num_scan_inputs=1, body=body)]
    inputs = [("s0", np.float32, [4]), ("x", np.float32, ["t", 4])]
    feeds = [{"s0": normal(4), "x": normal(t, 4, seed=1)} for t in (6, 1)]
    return {"scan_sum": graph(nodes, inputs, "sN y", {}, feeds)}
