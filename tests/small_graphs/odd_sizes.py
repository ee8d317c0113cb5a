"""Sizes that random graphs (`test_random_graphs.py`) came upon: none at all, or known too late."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from .graph import Graph, graph, node, normal


def without_elements() -> dict[str, Graph]:
    """A constant without elements, and a concatenation with it."""
    constants = {"none": np.zeros((0, 3), np.float32), "neither": np.zeros((0, 3), bool)}
    nodes = [
        node("Concat", "none x none", "y", axis=0),
        node("Greater", "x none", "g"),
        node("Concat", "neither g", "z0", axis=0),
        node("Cast", "z0", "z", to=1),
    ]
    x = [("x", np.float32, ["n", 3])]
    feeds = [{"x": normal(n, 3)} for n in (1,)]
    fixed = [node("Concat", "x none", "y", axis=0)]
    return {
        "concat_nothing_open": graph(nodes, x, "y z", constants, feeds),
        "concat_nothing": graph(
            fixed, [("x", np.float32, [2, 3])], "y", constants, [{"x": normal(2, 3)}]
        ),
    }


def open_window() -> dict[str, Graph]:
    """Weights that are an input of open sizes, the window being an attribute."""
    made = node("Conv", "x w", "y", kernel_shape=[2, 3])
    inputs = [("x", np.float32, ["n", 2, "h", "v"]), ("w", np.float32, ["o", 2, "a", "b"])]
    feeds = [{"x": normal(1, 2, 5, 6), "w": normal(o, 2, 2, 3, seed=1)} for o in (4, 1)]
    return {"conv_open_window": graph([made], inputs, "y", {}, feeds)}


def open_channels() -> dict[str, Graph]:
    """A convolution in groups of channels that only its weights tell: decompose-conv failed."""
    made = node("Conv", "x w", "y", kernel_shape=[3], group=2)
    x = [("x", np.float32, ["n", "c", "t"])]
    feeds = [{"x": normal(n, 4, 7)} for n in (2, 1)]
    return {"conv_open_channels": graph([made], x, "y", {"w": normal(6, 2, 3)}, feeds)}


def open_heads() -> dict[str, Graph]:
    """Rotary embedding of heads whose size only its tables tell: an assertion failed."""
    made = node("RotaryEmbedding", "x cos sin", "y")
    constants = {"cos": np.cos(normal(1, 5, 2)), "sin": np.sin(normal(1, 5, 2))}
    x = [("x", np.float32, ["b", "h", 5, "d"])]
    data = normal(1, 3, 5, 4)
    first, second = data[..., :2], data[..., 2:]
    cos, sin = constants["cos"][:, None], constants["sin"][:, None]
    expected = np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return {"rotary_open": graph([made], x, "y", constants, [{"x": data}], 23, expected=[expected])}


def bfloat16_weights() -> dict[str, Graph]:
    """Embedded bfloat16 weights of more than a few elements: an internal error."""
    weights = ml_dtypes.bfloat16(1) * np.arange(64).reshape(8, 8).astype(ml_dtypes.bfloat16)
    nodes = [node("Cast", "w", "wf", to=1), node("MatMul", "x wf", "y")]
    x = [("x", np.float32, ["n", 8])]
    feeds = [{"x": normal(3, 8)}]
    return {"bfloat16_weights": graph(nodes, x, "y", {"w": weights}, feeds)}


def weights_without_elements() -> dict[str, Graph]:
    """A sum over no terms: packing the weights failed."""
    made = node("MatMul", "x w", "y")
    x = [("x", np.float32, ["n", 0])]
    constants = {"w": np.zeros((0, 5), np.float32)}
    return {"matmul_nothing": graph([made], x, "y", constants, [{"x": normal(3, 0)}])}
