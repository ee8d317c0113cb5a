"""Affine steps per channel behind a convolution are folded into its weights and bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from onnx import NodeProto, TensorProto

from ..values.constants import Constant, from_array
from .model import Model, attribute
from .names import Names

# y = factor * x + offset, of one number for each channel; None where a part is absent.
Affine = tuple[np.ndarray | None, np.ndarray | None]


def fuse_convolutions(model: Model) -> None:
    """Conv, then BatchNormalization, Mul or Add with one constant per channel: one Conv.

    For convolutions with constant f32 weights whose output nothing else reads; ConvTranspose as
    well, in one group.
    """
    uses = model.use_counts()
    readers = {name: node for node in model.nodes for name in node.input}
    names = Names(model)
    removed: set[int] = set()
    for node in model.nodes:
        if not _has_constant_weights(model, node):
            continue
        while uses[node.output[0]] == 1 and (reader := readers.get(node.output[0])) is not None:
            rule = RULES.get(reader.op_type) if reader.domain in ("", "ai.onnx") else None
            affine = rule(model, reader, node) if rule else None
            if affine is None:
                break
            _fold(model, node, names, *affine)
            removed.add(id(reader))
            node.output[0] = reader.output[0]
    model.nodes = [node for node in model.nodes if id(node) not in removed]
    model.drop_dead_nodes()


# The axis of the weights that counts the output's channels.
CONVOLUTIONS = {"Conv": 0, "ConvTranspose": 1}


def _has_constant_weights(model: Model, node: NodeProto) -> bool:
    if node.op_type not in CONVOLUTIONS or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1:
        return False
    operands = [name for name in node.input[1:] if name]
    return bool(operands) and all(
        name in model.constants and model.constants[name].is_f32 for name in operands
    )


def _channels(model: Model, node: NodeProto) -> int:
    return model.constants[node.input[1]].shape[CONVOLUTIONS[node.op_type]]


def _fold(
    model: Model,
    node: NodeProto,
    names: Names,
    factor: np.ndarray | None,
    offset: np.ndarray | None,
) -> None:
    old = model.constants[node.input[2]].load() if len(node.input) > 2 and node.input[2] else None
    bias = np.zeros(_channels(model, node)) if old is None else old.astype(np.float64)
    if factor is not None:
        scaled = _scaled(model.constants[node.input[1]], factor, CONVOLUTIONS[node.op_type])
        node.input[1] = names.fresh(f"{node.name}/weight")
        model.constants[node.input[1]] = scaled
        bias = bias * factor
    if offset is not None:
        bias = bias + offset
    name = names.fresh(f"{node.name}/bias")
    model.constants[name] = from_array(bias.astype(np.float32))
    del node.input[2:]
    node.input.append(name)


def _scaled(weight: Constant, factor: np.ndarray, axis: int) -> Constant:
    shape = [1] * len(weight.shape)
    shape[axis] = -1
    columns = factor.astype(np.float32).reshape(shape)
    bare = replace(weight, base=None, permutation=(), quantized=None)
    return replace(bare, load=lambda: weight.load() * columns)


def _batch_normalization(model: Model, node: NodeProto, conv: NodeProto) -> Affine | None:
    if any(name not in model.constants for name in node.input[1:5]):
        return None
    if any(node.output[1:]) or attribute(node, "training_mode", 0):
        return None
    if not attribute(node, "spatial", 1):
        return None
    scale, bias, mean, variance = (
        model.constants[name].load().astype(np.float64) for name in node.input[1:5]
    )
    if scale.shape != (_channels(model, conv),):
        return None
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return factor, bias - mean * factor


def _add(model: Model, node: NodeProto, conv: NodeProto) -> Affine | None:
    values = _per_channel(model, node, conv)
    return None if values is None else (None, values)


def _multiply(model: Model, node: NodeProto, conv: NodeProto) -> Affine | None:
    values = _per_channel(model, node, conv)
    return None if values is None else (values, None)


def _per_channel(model: Model, node: NodeProto, conv: NodeProto) -> np.ndarray | None:
    """The other operand as [channels], if it is constant and one value per channel."""
    if model.opset < 7 or node.input[0] == node.input[1]:
        return None  # before opset 7 an attribute said where the second operand begins
    other = node.input[1] if node.input[0] == conv.output[0] else node.input[0]
    constant = model.constants.get(other)
    if constant is None or constant.elem_type != TensorProto.FLOAT:
        return None
    channels = _channels(model, conv)
    rank = len(model.constants[conv.input[1]].shape)
    shape = (1,) * (rank - len(constant.shape)) + constant.shape
    ones = (1,) * rank
    if shape not in (ones, (1, channels, *ones[2:])):
        return None
    values = constant.load().reshape(-1).astype(np.float64)
    return np.broadcast_to(values, (channels,)).copy()


RULES: dict[str, Callable[[Model, NodeProto, NodeProto], Affine | None]] = {
    "Add": _add,
    "BatchNormalization": _batch_normalization,
    "Mul": _multiply,
}
