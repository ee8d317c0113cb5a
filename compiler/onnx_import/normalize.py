"""Rewrites that leave fewer forms for the front end: one function for each operator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto, helper

from . import broadcasts, norms, quantized_ops, windows
from .build import Nodes
from .constants import Constant
from .model import Model, attribute, captured_names, subgraphs

Rule = Callable[[Model, NodeProto], list[NodeProto] | None]


def normalize(model: Model) -> None:
    """Applies `RULES` once to every node; a rule returns the nodes that replace its node."""
    result: list[NodeProto] = []
    for node in model.nodes:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        replacement = rule(model, node) if rule else None
        result.extend([node] if replacement is None else replacement)
    model.nodes = result
    model.drop_dead_nodes()


def drop_identities(model: Model) -> None:
    """Readers of an Identity read its input; one that makes an output of the model stays."""
    kept_names = set(model.output_names)
    for node in model.nodes:
        kept_names.update(name for graph in subgraphs(node) for name in captured_names(graph))
    source: dict[str, str] = {}
    for node in model.nodes:
        for at, name in enumerate(node.input):
            node.input[at] = source.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in kept_names:
            source[node.output[0]] = node.input[0]
    model.drop_dead_nodes()


def gemm(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """Gemm as MatMul and Add; alpha and beta are folded into B and C where those are constant."""
    a, b = node.input[0], node.input[1]
    c = node.input[2] if len(node.input) > 2 else ""
    if (wide := half_precision(model, node)) is not None:
        return wide
    if model.elem_type(b) != TensorProto.FLOAT:
        return None
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    if b not in model.constants or (c and beta != 1.0 and c not in model.constants):
        return _spelled_gemm(model, node, alpha, beta)
    nodes = []
    if attribute(node, "transA", 0):
        a = f"{node.name}/a"
        nodes.append(helper.make_node("Transpose", [node.input[0]], [a], a, perm=[1, 0]))
    weight = model.constants[b]
    if attribute(node, "transB", 0):
        weight = weight.transposed((1, 0))
    w = f"{node.name}/weight"
    model.constants[w] = _scaled(weight, alpha)
    product = f"{node.name}/product" if c else node.output[0]
    nodes.append(helper.make_node("MatMul", [a, w], [product], node.name))
    if c:
        bias = c
        if c in model.constants:
            bias = f"{node.name}/bias"
            model.constants[bias] = _row_bias(_scaled(model.constants[c], beta))
        nodes.append(helper.make_node("Add", [product, bias], [node.output[0]], f"{node.name}/add"))
    return nodes


def _spelled_gemm(model: Model, node: NodeProto, alpha: float, beta: float) -> list[NodeProto]:
    """alpha * A B + beta * C in single steps (torch-mlir drops alpha where there is no C)."""
    new = Nodes(model, node)
    a, b, *rest = node.input
    if attribute(node, "transA", 0):
        a = new.add("Transpose", [a], "a", perm=[1, 0])
    if attribute(node, "transB", 0):
        b = new.add("Transpose", [b], "b", perm=[1, 0])
    product = new.add("MatMul", [a, b], "product")
    if alpha != 1.0:
        product = new.add("Mul", [product, new.scalar("alpha", alpha)], "scaled")
    if not rest or not rest[0]:
        new.add("Identity", [product])
        return new
    c = rest[0]
    if beta != 1.0:
        c = new.add("Mul", [c, new.scalar("beta", beta)], "c")
    new.add("Add", [product, c])
    return new


def _scaled(constant: Constant, factor: float) -> Constant:
    if factor == 1.0:
        return constant
    return Constant(
        constant.shape, constant.elem_type, lambda: constant.load() * np.float32(factor)
    )


def _row_bias(constant: Constant) -> Constant:
    """[1, N] as [N], which the matmul can take in."""
    if len(constant.shape) == 2 and constant.shape[0] == 1:
        return constant.reshaped(constant.shape[1:])
    return constant


def half_precision(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """A product with a 16-bit float weight is computed in f32, which loses nothing."""
    inputs = [name for name in node.input if name]
    types = {model.elem_type(name) for name in inputs}
    if len(types) != 1 or not types <= {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        return None
    if not any(name in model.constants for name in inputs):
        return None
    new = Nodes(model, node)
    wide = [_widened(model, new, name, at) for at, name in enumerate(node.input)]
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    product = new.add(node.op_type, wide, "wide", **attributes)
    new[-1].name = node.name
    new.add("Cast", [product], to=types.pop())
    new[-1].name = f"{node.name}/narrow"
    return new


def _widened(model: Model, new: Nodes, name: str, at: int) -> str:
    if name not in model.constants:
        return new.add("Cast", [name], f"wide{at}", to=TensorProto.FLOAT) if name else ""
    wide = f"{new.origin.name}/wide{at}"
    model.constants[wide] = model.constants[name].cast(TensorProto.FLOAT)
    return wide


def conv(model: Model, node: NodeProto) -> list[NodeProto] | None:
    return half_precision(model, node) or windows.window(model, node)


def matmul(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """A constant on the left: W x = (x^T W^T)^T."""
    if (wide := half_precision(model, node)) is not None:
        return wide
    left, right = node.input
    if left not in model.constants or right in model.constants:
        return None
    rank = len(model.shape(right) or ())
    if len(model.constants[left].shape) != 2 or rank < 2:
        return None
    swap = [*range(rank - 2), rank - 1, rank - 2]
    x, w, y = (f"{node.name}/{part}" for part in ("x", "weight", "y"))
    model.constants[w] = model.constants[left].transposed((1, 0))
    return [
        helper.make_node("Transpose", [right], [x], x, perm=swap),
        helper.make_node("MatMul", [x, w], [y], node.name),
        helper.make_node("Transpose", [y], [node.output[0]], y, perm=swap),
    ]


def dropout(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """Inference drops nothing."""
    if len(node.output) > 1 and node.output[1] in model.use_counts():
        return None
    if len(node.input) > 2 and node.input[2]:
        mode = model.constants.get(node.input[2])
        if mode is None or mode.load():
            return None
    return [helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name)]


def global_pool(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """A reduction over the spatial axes, rather than a window of a size known at run time."""
    x = node.input[0]
    rank = len(model.shape(x) or ())
    if rank < 3 or model.elem_type(x) != TensorProto.FLOAT:
        return None
    op_type = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
    new = Nodes(model, node)
    new.reduce(op_type, x, list(range(2, rank)))
    return new


def unsigned_division(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """torch-mlir divides unsigned integers as signed ones: widened, both are the same."""
    wider = WIDER.get(model.elem_type(node.input[0]))
    if wider is None:
        return None
    new = Nodes(model, node)
    a, b = (new.add("Cast", [name], f"wide{i}", to=wider) for i, name in enumerate(node.input))
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    quotient = new.add(node.op_type, [a, b], "quotient", **attributes)
    new.add("Cast", [quotient], to=model.elem_type(node.input[0]))
    return new


def reciprocal(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """1 / x: torch-mlir's own form asserts in its innermost loop that x is not 0."""
    if model.elem_type(node.input[0]) != TensorProto.FLOAT:
        return None
    new = Nodes(model, node)
    new.add("Div", [new.scalar("one", 1.0), node.input[0]])
    return new


def cum_sum(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """Exclusive sums are those of the elements moved by one (torch-mlir subtracts the elements from
    the inclusive sums, which of an infinity makes NaN)."""
    x, axis = node.input
    shape = model.shape(x)
    if not attribute(node, "exclusive", 0) or shape is None or axis not in model.constants:
        return None
    along, reverse = int(model.constants[axis].load()) % len(shape), attribute(node, "reverse", 0)
    pads = np.zeros((2, len(shape)), np.int64)
    pads[reverse, along] = 1
    new = Nodes(model, node)
    padded = new.add("Pad", [x, new.constant("pads", pads.reshape(-1))], "padded")
    ends = [1, np.iinfo(np.int64).max] if reverse else [0, -1]
    cuts = [new.constant(f"cut{i}", np.array([n])) for i, n in enumerate((*ends, along))]
    new.add("CumSum", [new.add("Slice", [padded, *cuts], "moved"), axis], reverse=reverse)
    return new


def top_k(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """Where any order will do, the sorted one does (torch-mlir has no other). It compares unsigned
    integers as signed ones: widened, both are the same."""
    narrow = model.elem_type(node.input[0])
    wider = WIDER.get(narrow)
    if wider is None and attribute(node, "sorted", 1):
        return None
    new = Nodes(model, node)
    x, k = node.input
    values, places = node.output
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    attributes["sorted"] = 1
    if wider is not None:
        x = new.add("Cast", [x], "wide", to=wider)
        values = f"{node.name}/values"
    new.append(helper.make_node("TopK", [x, k], [values, places], node.name, **attributes))
    if wider is not None and node.output[0]:
        new.add("Cast", [values], to=narrow)
    return new


def scatter(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """Extremes of unsigned integers, as for TopK."""
    narrow = model.elem_type(node.input[0])
    wider = WIDER.get(narrow)
    reduction = attribute(node, "reduction", b"none")
    if wider is None or reduction not in (b"max", b"min"):
        return None
    new = Nodes(model, node)
    x, indices, updates = node.input
    x, updates = (new.add("Cast", [v], f"wide{i}", to=wider) for i, v in enumerate((x, updates)))
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    scattered = new.add(node.op_type, [x, indices, updates], "scattered", **attributes)
    new.add("Cast", [scattered], to=narrow)
    return new


WIDER = {
    TensorProto.UINT8: TensorProto.INT32,
    TensorProto.UINT16: TensorProto.INT32,
    TensorProto.UINT32: TensorProto.INT64,
}

RULES: dict[str, Rule] = {
    "DequantizeLinear": quantized_ops.dequantize_linear,
    "MatMulInteger": quantized_ops.matmul_integer,
    "QLinearConv": quantized_ops.qlinear_conv,
    "QLinearMatMul": quantized_ops.qlinear_matmul,
    "QuantizeLinear": quantized_ops.quantize_linear,
    "Div": unsigned_division,
    "Mod": unsigned_division,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "Dropout": dropout,
    "Expand": broadcasts.expand,
    "Gemm": gemm,
    "InstanceNormalization": norms.instance_normalization,
    "LayerNormalization": norms.layer_normalization,
    "MatMul": matmul,
    "Reciprocal": reciprocal,
    "ScatterElements": scatter,
    "ScatterND": scatter,
    "Softmax": norms.softmax,
    "TopK": top_k,
    "BatchNormalization": norms.batch_normalization,
    "Conv": conv,
    "CumSum": cum_sum,
    "MaxPool": windows.window,
    "AveragePool": windows.window,
}
