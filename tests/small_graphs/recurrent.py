"""LSTM, GRU and RNN, in float and as onnxruntime quantizes them."""

from __future__ import annotations

import numpy as np

from .graph import Graph, graph, node, normal

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _weights(op_type: str, directions: int) -> dict[str, np.ndarray]:
    gates = _GATES[op_type]
    return {
        "W": normal(directions, 16 * gates, 8, scale=0.1, seed=1),
        "R": normal(directions, 16 * gates, 16, scale=0.1, seed=2),
        "B": normal(directions, 32 * gates, scale=0.1, seed=3),
    }


def several_steps() -> dict[str, Graph]:
    """Every recurrent operator over more than one step was refused."""
    graphs = {}
    for op_type in _GATES:
        for count, direction in ((1, "forward"), (2, "bidirectional"), (1, "reverse")):
            made = node(op_type, "x W R B", "y", "rnn", hidden_size=16, direction=direction)
            x = [("x", np.float32, [5, 2, 8])]
            name = f"{op_type.lower()}_{direction}"
            feeds = [{"x": normal(5, 2, 8)}]
            graphs[name] = graph([made], x, "y", _weights(op_type, count), feeds)
    return graphs


def open_number_of_steps() -> dict[str, Graph]:
    """An LSTM over a dynamic number of steps whose state comes from inputs."""
    made = node("LSTM", "x W R B _ h c", "y hn cn", "lstm", hidden_size=16)
    inputs = [
        ("x", np.float32, ["t", "b", 8]),
        ("h", np.float32, [1, "b", 16]),
        ("c", np.float32, [1, "b", 16]),
    ]
    feeds = [
        {"x": normal(t, b, 8), "h": normal(1, b, 16, seed=1), "c": normal(1, b, 16, seed=2)}
        for t, b in ((5, 1), (1, 3))
    ]
    return {"lstm_open": graph([made], inputs, "y hn cn", _weights("LSTM", 1), feeds, opset=16)}


def dynamic_quantize_lstm() -> dict[str, Graph]:
    """What onnxruntime's quantize_dynamic makes of an LSTM: W and R are [1, I, 4H] int8."""
    rng = np.random.default_rng(0)
    constants = {
        "W": rng.integers(-127, 128, (1, 8, 64)).astype(np.int8),
        "R": rng.integers(-127, 128, (1, 16, 64)).astype(np.int8),
        "B": normal(1, 128, scale=0.1),
        "ws": np.full((1, 64), 0.01, np.float32), "wz": np.zeros((1, 64), np.int8),
        "rs": np.full((1, 64), 0.01, np.float32), "rz": np.zeros((1, 64), np.int8),
    }  # fmt: skip
    made = node(
        "DynamicQuantizeLSTM",
        "x W R B _ _ _ _ ws wz rs rz",
        "y",
        "lstm",
        domain="com.microsoft",
        hidden_size=16,
    )
    x = [("x", np.float32, ["t", 1, 8])]
    feeds = [{"x": normal(t, 1, 8)} for t in (6, 1)]
    domains = ("com.microsoft",)
    return {"dynamic_quantize_lstm": graph([made], x, "y", constants, feeds, domains=domains)}
