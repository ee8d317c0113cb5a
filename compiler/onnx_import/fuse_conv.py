"""Affine steps per channel behind a convolution are folded into its weights and bias."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto

from .constants import Constant, from_array
from .model import Model
from .norms import batch_factors

# y = factor * x + offset; None where a part is absent.
Affine = tuple[np.ndarray | None, np.ndarray | None]


def fuse_convolutions(model: Model) -> None:
    """Conv, then BatchNormalization, Mul or Add with one constant per channel: one Conv.

    For convolutions with constant weights whose output nothing else reads.
    """
    uses = model.use_counts()
    readers = {name: node for node in model.nodes for name in node.input}
    removed: set[str] = set()
    for node in model.nodes:
        if not _is_constant_conv(model, node):
            continue
        while uses[node.output[0]] == 1 and (reader := readers.get(node.output[0])) is not None:
            rule = RULES.get(reader.op_type)
            affine = rule(model, reader, node) if rule else None
            if affine is None:
                break
            _fold(model, node, *affine)
            removed.add(reader.name)
            node.output[0] = reader.output[0]
    model.nodes = [node for node in model.nodes if node.name not in removed]
    model.drop_dead_nodes()


def _is_constant_conv(model: Model, node: NodeProto) -> bool:
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    operands = [name for name in node.input[1:] if name]
    return all(name in model.constants and model.constants[name].is_f32 for name in operands)


def _fold(
    model: Model, node: NodeProto, factor: np.ndarray | None, offset: np.ndarray | None
) -> None:
    weight = model.constants[node.input[1]]
    channels = weight.shape[0]
    old = model.constants[node.input[2]].load() if len(node.input) > 2 and node.input[2] else None
    bias = np.zeros(channels, np.float32) if old is None else old
    if factor is not None:
        name = f"{node.name}/weight"
        model.constants[name] = _scaled(weight, factor)
        node.input[1] = name
        bias = bias * factor
    if offset is not None:
        bias = bias + offset
    name = f"{node.name}/bias"
    model.constants[name] = from_array(bias.astype(np.float32))
    del node.input[2:]
    node.input.append(name)


def _scaled(weight: Constant, factor: np.ndarray) -> Constant:
    columns = factor.reshape(-1, *(1 for _ in weight.shape[1:]))
    return Constant(weight.shape, weight.elem_type, lambda: weight.load() * columns)


def _batch_normalization(model: Model, node: NodeProto, conv: NodeProto) -> Affine | None:
    if any(name not in model.constants for name in node.input[1:5]) or len(node.output) > 1:
        return None
    if any(item.name == "training_mode" and item.i for item in node.attribute):
        return None
    return batch_factors(model, node)


def _add(model: Model, node: NodeProto, conv: NodeProto) -> Affine | None:
    values = _per_channel(model, node, conv)
    return None if values is None else (None, values)


def _multiply(model: Model, node: NodeProto, conv: NodeProto) -> Affine | None:
    values = _per_channel(model, node, conv)
    return None if values is None else (values, None)


def _per_channel(model: Model, node: NodeProto, conv: NodeProto) -> np.ndarray | None:
    """The other operand as [channels], if it is constant and one value per channel."""
    if node.input[0] == node.input[1]:
        return None
    other = node.input[1] if node.input[0] == conv.output[0] else node.input[0]
    constant = model.constants.get(other)
    if constant is None or constant.elem_type != TensorProto.FLOAT:
        return None
    weight = model.constants[conv.input[1]].shape
    channels, rank = weight[0], len(weight)
    shape = (1,) * (rank - len(constant.shape)) + constant.shape
    if len(shape) != rank or shape not in ((1, channels, *shape[2:]), (1,) * rank):
        return None
    if any(size != 1 for size in shape[2:]):
        return None
    return np.broadcast_to(constant.load().reshape(-1), (channels,)).copy()


RULES: dict[str, Callable[[Model, NodeProto, NodeProto], Affine | None]] = {
    "Add": _add,
    "BatchNormalization": _batch_normalization,
    "Mul": _multiply,
}
