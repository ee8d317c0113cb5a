"""Sizes that random graphs (`test_random_graphs.py`) came upon: none at all, or known too late."""

from __future__ import annotations

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
