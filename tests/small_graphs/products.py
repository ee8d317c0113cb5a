"""Matrix products, and weights that are shared; what scikit-learn's converter writes."""

from __future__ import annotations

import numpy as np

from .graph import Graph, graph, node, normal


def two_matmuls() -> dict[str, Graph]:
    """A linear layer that reads another one's output directly: KeyError in pack-layouts."""
    graphs = {}
    for n in (96, 6906):
        constants = {
            "W1": normal(160, 80, scale=0.1), "b1": normal(80, scale=0.1),
            "W2": normal(80, n, scale=0.1), "b2": normal(n, scale=0.1),
        }  # fmt: skip
        nodes = [
            node("MatMul", "x W1", "a"),
            node("Add", "a b1", "c"),
            node("MatMul", "c W2", "d"),
            node("Add", "d b2", "y"),
        ]
        x = [("x", np.float32, ["b", "s", 160])]
        feeds = [{"x": normal(1, 5, 160)}, {"x": normal(2, 40, 160)}]
        graphs[f"two_matmuls_{n}"] = graph(nodes, x, "y", constants, feeds, opset=11)
    return graphs


def batched_matmul() -> dict[str, Graph]:
    """A batch decided at run time was refused, or killed the caller where it had to broadcast."""
    both = [("q", np.float32, ["b", "t", 8]), ("m", np.float32, ["c", 8, "s"])]
    one = [("q", np.float32, ["b", "t", 8])]
    mm = [node("MatMul", "q m", "y", "mm")]
    same = [{"q": normal(2, 3, 8), "m": normal(2, 8, 4)}]
    broadcast = [{"q": normal(1, 3, 8), "m": normal(5, 8, 4)}]
    shared = [("q", np.float32, ["b", "t", 8]), ("m", np.float32, ["b", 8, "s"])]
    weight = {"m": normal(5, 8, 4)}
    return {
        "matmul_same_batch": graph(mm, shared, "y", {}, same),
        "matmul_broadcast": graph(mm, both, "y", {}, same + broadcast),
        "matmul_weight_batch": graph(
            mm, one, "y", weight, [{"q": normal(5, 3, 8)}, {"q": normal(1, 2, 8)}]
        ),
    }


def shared_weight() -> dict[str, Graph]:
    """A weight shared through Identity or Transpose was stored once for each use."""
    graphs = {}
    for kind in ("direct", "identity", "transposed"):
        nodes, x = [], "x"
        for k in range(8):
            w = "W" if kind == "direct" else f"W{k}"
            if kind == "identity":
                nodes.append(node("Identity", "W", w))
            if kind == "transposed":
                nodes.append(node("Transpose", "W", w, perm=[1, 0]))
            nodes += [node("MatMul", f"{x} {w}", f"m{k}", f"mm{k}"), node("Relu", f"m{k}", f"r{k}")]
            x = f"r{k}"
        inputs = [("x", np.float32, ["b", 512])]
        weight = {"W": normal(512, 512, scale=0.05)}
        graphs[f"shared_weight_{kind}"] = graph(nodes, inputs, x, weight, [{"x": normal(3, 512)}])
    return graphs


def scaled_features() -> dict[str, Graph]:
    """What skl2onnx writes: operators of another domain."""
    x = [("x", np.float32, ["b", 2])]
    feeds = [{"x": normal(5, 2)}, {"x": normal(1, 2)}]
    tree = {
        "nodes_treeids": [0] * 3, "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0] * 3,
        "nodes_values": [0.5, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
        "nodes_missing_value_tracks_true": [0] * 3, "target_treeids": [0, 0],
        "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0],
        "n_targets": 1,
    }  # fmt: skip
    ml = {"domain": "ai.onnx.ml"}
    scaler = node("Scaler", "x", "y", "scaler", offset=[0.1, 0.2], scale=[2.0, 3.0], **ml)
    regressor = node("TreeEnsembleRegressor", "x", "y", "tree", **tree, **ml)
    return {
        name: graph([made], x, "y", {}, feeds, opset=15, domains=("ai.onnx.ml",))
        for name, made in (("ml_scaler", scaler), ("ml_tree", regressor))
    }
