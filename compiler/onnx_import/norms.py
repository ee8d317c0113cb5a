"""Normalizations, spelled out: torch-mlir's own lowering broadcasts by index, which fuses badly."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from .build import Nodes
from .constants import Constant
from .model import Model, attribute


def layer_normalization(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """scale * (x - mean) / sqrt(variance + epsilon) + bias, over the axes from `axis` on."""
    x = node.input[0]
    shape = model.shape(x)
    if shape is None or model.elem_type(x) != TensorProto.FLOAT or _reads(model, node.output[1:]):
        return None
    rank = len(shape)
    axes = list(range(attribute(node, "axis", -1) % rank, rank))
    new = Nodes(model, node)
    normal = _standardized(new, x, axes, attribute(node, "epsilon", 1e-5))
    if len(node.input) < 3 or not node.input[2]:
        new.add("Mul", [normal, node.input[1]])
    else:
        new.add("Add", [new.add("Mul", [normal, node.input[1]], "scaled"), node.input[2]])
    return new


def instance_normalization(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """scale * (x - mean) / sqrt(variance + epsilon) + bias, over all axes but the first two.

    (torch-mlir takes -1 for a size that it does not know.)
    """
    x, scale, bias = node.input
    shape = model.shape(x)
    if shape is None or len(shape) < 3 or model.elem_type(x) != TensorProto.FLOAT:
        return None
    new = Nodes(model, node)
    normal = _standardized(new, x, list(range(2, len(shape))), attribute(node, "epsilon", 1e-5))
    channels = new.constant("channels", np.asarray([-1] + [1] * (len(shape) - 2), np.int64))
    factor = new.add("Reshape", [scale, channels], "factor")
    offset = new.add("Reshape", [bias, channels], "offset")
    new.add("Add", [new.add("Mul", [normal, factor], "scaled"), offset])
    return new


def _standardized(new: Nodes, x: str, axes: list[int], epsilon: float) -> str:
    """(x - mean) / sqrt(variance + epsilon) over `axes`."""
    centered = new.add("Sub", [x, new.reduce("ReduceMean", x, axes, "mean")], "centered")
    squares = new.add("Mul", [centered, centered], "squares")
    variance = new.reduce("ReduceMean", squares, axes, "variance")
    shifted = new.add("Add", [variance, new.scalar("epsilon", epsilon)], "shifted")
    one = new.scalar("one", 1.0)
    inverse = new.add("Div", [one, new.add("Sqrt", [shifted], "deviation")], "inverse")
    return new.add("Mul", [centered, inverse], "normal")


def softmax(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """exp(x - max) / sum(exp(x - max)) along one axis."""
    x = node.input[0]
    shape = model.shape(x)
    if not shape or model.elem_type(x) != TensorProto.FLOAT:
        return None
    rank = len(shape)
    axis = attribute(node, "axis", -1 if model.opset >= 13 else 1) % rank
    if model.opset < 13 and axis != rank - 1:
        return None  # it would reduce all axes from `axis` on
    new = Nodes(model, node)
    largest = new.reduce("ReduceMax", x, [axis], "max")
    powers = new.add("Exp", [new.add("Sub", [x, largest], "shifted")], "exp")
    new.add("Div", [powers, new.reduce("ReduceSum", powers, [axis], "sum")])
    return new


def batch_normalization(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """For inference with constant statistics: one product and one sum per channel."""
    x, statistics = node.input[0], list(node.input[1:5])
    shape = model.shape(x)
    if shape is None or len(shape) < 2 or _reads(model, node.output[1:]):
        return None
    if attribute(node, "training_mode", 0) or any(s not in model.constants for s in statistics):
        return None
    if any(model.elem_type(name) != TensorProto.FLOAT for name in (x, *statistics)):
        return None
    channels = (-1,) + (1,) * (len(shape) - 2)
    factor, offset = batch_factors(model, node)
    new = Nodes(model, node)
    scaled = new.add("Mul", [x, new.constant("factor", factor.reshape(channels))], "scaled")
    new.add("Add", [scaled, new.constant("offset", offset.reshape(channels))])
    return new


def batch_factors(model: Model, node: NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """y = factor * x + offset, of f32 [channels] each, computed in f64."""
    scale, bias, mean, variance = (_f64(model.constants[name]) for name in node.input[1:5])
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    offset = bias - mean * factor
    return factor.astype(np.float32), offset.astype(np.float32)


def _f64(constant: Constant) -> np.ndarray:
    return constant.load().astype(np.float64)


def _reads(model: Model, names: object) -> bool:
    used = model.use_counts()
    return any(name in used for name in names)  # type: ignore[attr-defined]
