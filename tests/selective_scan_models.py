"""Selective scans as ONNX writes them, whole or with a mistake, for tests of their recognition.

A step is a list of nodes, `Op inputs -> output`; `edits` replaces nodes by their output's name.
Its inputs are h, delta, x, b and c of the step, its results new and y; a name with ! is no value of
the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from onnx_models import model, node

CHANNELS, STATES = 6, 4
STEP = {
    "wide": "Unsqueeze delta last",
    "power": "Mul wide A",
    "decay": "Exp power",
    "kept": "Mul decay h",
    "dx": "Mul delta x",
    "dx_wide": "Unsqueeze dx last",
    "b_wide": "Unsqueeze b middle",
    "drive": "Mul dx_wide b_wide",
    "new": "Add kept drive",
    "c_wide": "Unsqueeze c middle",
    "read": "Mul new c_wide",
    "y": "ReduceSum read last",
}
# y by a product, as transformers has it.
BY_PRODUCT = {"c_wide": "Unsqueeze c last", "read": "MatMul new c_wide", "y": "Squeeze read last"}
# x goes past the state, with a factor for each channel.
SKIP = {"read_x": "Mul x D", "y": "Add read_y read_x", "read_y": "ReduceSum read last"}
SOFTPLUS = {"plain": "Softplus delta", "dx": "Mul plain x", "wide": "Unsqueeze plain last"}
# The state is batch x states x channels.
TURNED = {
    "wide": "Unsqueeze delta middle",
    "power": "Mul wide A_turned",
    "dx_wide": "Unsqueeze dx middle",
    "b_wide": "Unsqueeze b last",
    "c_wide": "Unsqueeze c last",
    "y": "ReduceSum read middle",
}


def constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    a = -np.exp(rng.standard_normal((CHANNELS, STATES))).astype(np.float32)
    return {
        "A": a,
        "A_turned": np.ascontiguousarray(a.T),
        "D": rng.standard_normal(CHANNELS).astype(np.float32),
        "last": np.array([-1]),
        "middle": np.array([1]),
        "one": np.float32(1),
        "five": np.float32(5),
        "twenty": np.float32(20),
    }


def step_nodes(edits: Mapping[str, str], suffix: str = "") -> list[NodeProto]:
    """The nodes of a step; names that it makes end in `suffix`, and so do its inputs."""
    shared = constants()
    nodes = []
    for output, text in (STEP | dict(edits)).items():
        op, *inputs = text.split()
        keep = {"keepdims": 0} if op == "ReduceSum" else {}
        names = [n.rstrip("!") if n in shared or "!" in n else n + suffix for n in inputs]
        nodes.append(node(op, " ".join(names), output + suffix, output + suffix, **keep))
    return sorted_nodes(nodes)


def sorted_nodes(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """In an order in which values are made before they are read."""
    made = {name for n in nodes for name in n.output}
    ordered: list[NodeProto] = []
    while len(ordered) < len(nodes):
        known = {name for n in ordered for name in n.output}
        ready = [n for n in nodes if n not in ordered and made & set(n.input) <= known]
        ordered.append(ready[0])
    return ordered


def _inputs(turned: bool) -> list[tuple[str, type, Sequence[int | str]]]:
    state = [STATES, CHANNELS] if turned else [CHANNELS, STATES]
    return [
        ("h0", np.float32, ["batch", *state]),
        *((name, np.float32, ["batch", "seq", CHANNELS]) for name in ("deltas", "xs")),
        *((name, np.float32, ["batch", "seq", STATES]) for name in ("bs", "cs")),
    ]


SCANNED = {"deltas": "delta", "xs": "x", "bs": "b", "cs": "c"}


def scan(
    edits: Mapping[str, str] | None = None, *, turned: bool = False, state: str = "new",
    **attributes: object,
) -> onnx.ModelProto:  # fmt: skip
    """ONNX Scan; `state` is what the body carries on."""
    inputs = _inputs(turned)
    shapes = {name: shape for name, _, shape in inputs}
    body = helper.make_graph(
        step_nodes((TURNED if turned else {}) | dict(edits or {})),
        "body",
        [
            helper.make_tensor_value_info("h", 1, shapes["h0"]),
            *(
                helper.make_tensor_value_info(name, 1, [shapes[outer][0], shapes[outer][2]])
                for outer, name in SCANNED.items()
            ),
        ],
        [
            helper.make_tensor_value_info(state, 1, shapes["h0"]),
            helper.make_tensor_value_info("y", 1, ["batch", CHANNELS]),
        ],
    )
    axes = {"scan_input_axes": [1] * 4, "scan_output_axes": [1], "num_scan_inputs": 4}
    nodes = [
        node("Scan", "h0 deltas xs bs cs", "last_h ys", "scan", body=body, **axes | attributes)
    ]
    return model(nodes, inputs, _results(shapes), constants(), opset=18)


def _results(
    shapes: Mapping[str, Sequence[int | str]],
) -> list[tuple[str, type, Sequence[int | str]]]:
    return [("ys", np.float32, shapes["xs"]), ("last_h", np.float32, shapes["h0"])]


def loop(edits: Mapping[str, str] | None = None, *, ends_early: bool = False) -> onnx.ModelProto:
    """ONNX Loop, which gathers what a step reads by its number."""
    inputs = _inputs(False)
    shapes = {name: shape for name, _, shape in inputs}
    gathers = [node("Gather", f"{o} number", n, f"gather {n}", axis=1) for o, n in SCANNED.items()]
    condition = [
        node("ReduceMax", "y", "most", "most", keepdims=0),
        node("Less", "most five", "on"),
    ]
    go_on = condition if ends_early else [node("Identity", "was_on", "on")]
    body = helper.make_graph(
        [*gathers, *step_nodes(dict(edits or {})), *go_on],
        "body",
        [
            helper.make_tensor_value_info("number", 7, []),
            helper.make_tensor_value_info("was_on", 9, []),
            helper.make_tensor_value_info("h", 1, shapes["h0"]),
        ],
        [
            helper.make_tensor_value_info("on", 9, []),
            helper.make_tensor_value_info("new", 1, shapes["h0"]),
            helper.make_tensor_value_info("y", 1, ["batch", CHANNELS]),
        ],
    )
    nodes = [
        node("Shape", "xs", "count", "count", start=1, end=2),
        node("Loop", "count _ h0", "last_h rows", "loop", body=body),
        node("Transpose", "rows", "ys", "ys", perm=[1, 0, 2]),
    ]
    return model(nodes, inputs, _results(shapes), constants(), opset=18)


def steps(
    count: int = 3,
    edits: Mapping[int, Mapping[str, str]] | None = None,
    order: Sequence[int] | None = None,
) -> onnx.ModelProto:
    """A traced Python loop: `count` steps one after the other, rows concatenated.

    `edits` by number of the step; `order` is that of the rows.
    """
    inputs = [(name, dtype, [count if s == "seq" else s for s in shape])
              for name, dtype, shape in _inputs(False)]  # fmt: skip
    shapes = {name: shape for name, _, shape in inputs}
    nodes: list[NodeProto] = [node("Identity", "h0", "h_0", "h_0")]
    numbers = {f"number{k}": np.array(k) for k in range(count)}
    for k in range(count):
        nodes += [
            node("Gather", f"{outer} number{k}", f"{name}_{k}", f"{name}_{k}", axis=1)
            for outer, name in SCANNED.items()
        ]
        nodes += step_nodes((edits or {}).get(k, {}), f"_{k}")
        nodes.append(node("Identity", f"new_{k}", f"h_{k + 1}", f"h_{k + 1}"))
        nodes.append(node("Unsqueeze", f"y_{k} middle", f"row_{k}", f"row_{k}"))
    rows = " ".join(f"row_{k}" for k in (order or range(count)))
    nodes.append(node("Concat", rows, "ys", "stack", axis=1))
    nodes.append(node("Identity", f"h_{count}", "last_h", "last_h"))
    return model(nodes, inputs, _results(shapes), constants() | numbers, opset=18)


def mixer(width: int = 8) -> onnx.ModelProto:
    """A scan between products, as in a layer of Mamba: u [batch, seq, width] -> out."""
    whole = scan(SOFTPLUS)
    rng = np.random.default_rng(2)
    sizes = {"deltas": CHANNELS, "xs": CHANNELS, "bs": STATES, "cs": STATES}
    weights = {
        f"W_{name}": rng.standard_normal((width, n)).astype(np.float32) for name, n in sizes.items()
    }
    weights["W_out"] = rng.standard_normal((CHANNELS, width)).astype(np.float32)
    products = [node("MatMul", f"u W_{name}", name, f"{name}_proj") for name in sizes]
    state = node("ConstantOfShape", "state_shape", "h0", "zeros")
    shape = [
        node("Shape", "u", "count", "count", end=1),
        node("Concat", "count state_size", "state_shape", "state_shape", axis=0),
    ]
    nodes = [*products, *shape, state, *whole.graph.node]
    nodes.append(node("MatMul", "ys W_out", "out", "out_proj"))
    given = constants() | weights | {"state_size": np.array([CHANNELS, STATES])}
    rows = ["batch", "seq", width]
    return model(nodes, [("u", np.float32, rows)], [("out", np.float32, rows)], given, opset=18)


def in_double(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same with all floats in 64 bits."""

    def widen(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                wide = numpy_helper.to_array(tensor).astype(np.float64)
                tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
        for step in graph.node:
            for attribute in step.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    widen(attribute.g)

    widen(proto.graph)
    return proto
