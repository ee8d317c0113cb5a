"""Gathers, scatters, slices and TopK."""

from __future__ import annotations

import numpy as np

from .graph import Graph, graph, ints, node, normal


def gather_elements() -> dict[str, Graph]:
    """Indices that only the run knows were refused: every BERT without token types."""
    inputs = [("x", np.float32, ["b", 9]), ("i", np.int64, ["b", "k"])]
    rng = np.random.default_rng(0)
    feeds = [{"x": normal(b, 9), "i": rng.integers(-9, 9, (b, k))} for b, k in ((2, 4), (1, 1))]
    direct = graph([node("GatherElements", "x i", "y", axis=1)], inputs, "y", {}, feeds)
    # BertModel without token_type_ids: constant data, indices that are a slice of a constant.
    constants = {
        "types": np.zeros((1, 512), np.int64), "positions": np.arange(512)[None], "z": ints(0),
        "ax": ints(1), "table": normal(2, 4),
    }  # fmt: skip
    nodes = [
        node("Shape", "ids", "s", start=1, end=2),
        node("Slice", "positions z s ax", "p"),
        node("GatherElements", "types p", "t", "ge", axis=1),
        node("Gather", "table t", "y"),
    ]
    ids = [("ids", np.int64, ["b", "s"])]
    sentences = [{"ids": np.zeros((2, s), np.int64)} for s in (7, 512)]
    return {
        "gather_elements": direct,
        "gather_elements_buffer": graph(nodes, ids, "y", constants, sentences),
    }


def scatter_reductions() -> dict[str, Graph]:
    """torch's scatter_reduce over rows with an unknown number (pooling in graph networks)."""
    inputs = [
        ("x", np.float32, ["g", 4]),
        ("i", np.int64, ["n", 4]),
        ("u", np.float32, ["n", 4]),
    ]
    rng = np.random.default_rng(0)
    feeds = [
        {"x": normal(3, 4), "i": rng.integers(0, 3, (n, 4)), "u": normal(n, 4, seed=1)}
        for n in (9, 1)
    ]
    return {
        f"scatter_{reduction}": graph(
            [node("ScatterElements", "x i u", "y", axis=0, reduction=reduction)],
            inputs,
            "y",
            {},
            feeds,
            opset=18,
        )
        for reduction in ("max", "min", "add", "mul")
    }


def top_k() -> dict[str, Graph]:
    """20 of 1,024: 150 times slower than onnxruntime."""
    made = node("TopK", "x k", "y i", axis=1)
    x = [("x", np.float32, ["b", 1024])]
    found = graph([made], x, "y", {"k": ints(20)}, [{"x": normal(b, 1024)} for b in (3, 1)])
    return {"top_k": found}


def slices() -> dict[str, Graph]:
    """A negative step with a start beyond the end: SIGSEGV, or a row of garbage."""
    graphs = {}
    forms = {
        "beyond": (10, -100, -1),
        "reversed": (-1, -9999, -2),
        "empty": (3, 3, 1),
        "before": (-9999, 2, 1),
        "backwards_empty": (0, 5, -1),
    }
    for name, (start, end, step) in forms.items():
        constants = {"start": ints(start), "end": ints(end), "axis": ints(0), "step": ints(step)}
        made = node("Slice", "x start end axis step", "y")
        x = [("x", np.float32, ["n", 3])]
        feeds = [{"x": normal(n, 3)} for n in (5, 1, 0)]
        graphs[f"slice_{name}"] = graph([made], x, "y", constants, feeds)
    return graphs
