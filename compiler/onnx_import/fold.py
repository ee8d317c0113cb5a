"""Constant folding, node by node; what only moves or casts a weight stays lazy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .constants import Constant, QuantizedConstant, from_array
from .model import Model, attribute, subgraphs
from .quantized import along_axis, dequantized

# A folded tensor may not be larger than this or than twice its inputs: an Expand or a
# ConstantOfShape must not turn a number into a weight.
GROWTH = 1 << 16

NOT_FOLDED = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
    "Multinomial", "Dropout", "BatchNormalization", "DynamicQuantizeLinear",
}  # fmt: skip

Rule = Callable[[Model, NodeProto], Constant | None]


def fold_constants(model: Model, work_dir: Path) -> None:
    """Replaces every node whose inputs are all constant by the constants it makes.

    Types are inferred again for as long as that makes more sizes known.
    """
    spool = _Spool(work_dir / "folded")
    while True:
        model.infer_types()
        kept = []
        for node in model.nodes:
            results = _fold(model, node, spool)
            if results is None:
                kept.append(node)
            else:
                model.constants.update(zip(node.output, results, strict=False))
        unchanged = len(kept) == len(model.nodes)
        model.nodes = kept
        model.drop_dead_nodes()
        if unchanged:
            return


def _fold(model: Model, node: NodeProto, spool: _Spool) -> list[Constant] | None:
    if node.domain not in ("", "ai.onnx") or node.op_type in NOT_FOLDED:
        return None
    if any(True for _ in subgraphs(node)):
        return None
    if node.op_type in STATIC and (size := STATIC[node.op_type](model, node)) is not None:
        return [size]
    if any(name and name not in model.constants for name in node.input):
        return None
    if not node.input and node.op_type != "Constant":
        return None
    if not any(node.input) and node.op_type != "Constant":
        return None
    rule = LAZY.get(node.op_type)
    result = rule(model, node) if rule else None
    if result is not None:
        return [result]
    return _evaluate(model, node, spool)


def _shape(model: Model, node: NodeProto) -> Constant | None:
    """The shape of a tensor, where all that is asked for is static."""
    shape = model.shape(node.input[0])
    if shape is None:
        return None
    part = shape[slice(attribute(node, "start", 0), attribute(node, "end", None))]
    return None if None in part else from_array(np.array(part, np.int64))


def _size(model: Model, node: NodeProto) -> Constant | None:
    shape = model.shape(node.input[0])
    if shape is None or None in shape:
        return None
    return from_array(np.array(math.prod(size or 0 for size in shape), np.int64))


def _evaluate(model: Model, node: NodeProto, spool: _Spool) -> list[Constant] | None:
    """The node's outputs by ONNX's reference evaluator; None where it cannot tell."""
    if not _is_bounded(model, node):
        return None
    names = [name for name in dict.fromkeys(node.input) if name]
    inputs = [
        helper.make_tensor_value_info(n, model.constants[n].elem_type, model.constants[n].shape)
        for n in names
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], node.op_type, inputs, outputs)
    proto = helper.make_model(graph, opset_imports=list(model.shell.opset_import))
    try:
        feeds = {name: model.constants[name].load() for name in names}
        values = ReferenceEvaluator(proto).run(None, feeds)
    except Exception:
        return None  # not every operator is there; the front end takes the node as it is
    if not all(isinstance(value, (np.ndarray, np.generic)) for value in values):
        return None
    arrays = iter([np.asarray(value) for value in values])
    elem_types = [model.elem_type(name) for name in node.output]
    try:
        return [
            spool.constant(next(arrays), elem_type) if name else from_array(np.zeros(0))
            for name, elem_type in zip(node.output, elem_types, strict=True)
        ]
    except KeyError:
        return None  # a numpy type that ONNX does not have


def _is_bounded(model: Model, node: NodeProto) -> bool:
    limit = max(GROWTH, 2 * sum(model.constants[name].size for name in node.input if name))
    if node.op_type == "ConstantOfShape":
        return int(np.prod(model.constants[node.input[0]].load().astype(object))) <= limit
    for name in node.output:
        shape = model.shape(name) if name else ()
        if shape is None or None in shape:
            # Unknown sizes: only operators that cannot grow their inputs are safe.
            if node.op_type in ("Expand", "Tile", "Range", "Pad", "Resize", "OneHot", "Upsample"):
                return False
        elif int(np.prod(np.array(shape, object))) > limit:
            return False
    return True


class _Spool:
    """Keeps folded tensors in files, mapped again when they are read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def constant(self, array: np.ndarray, elem_type: int = 0) -> Constant:
        elem_type = elem_type or helper.np_dtype_to_tensor_dtype(array.dtype)
        array = array.astype(helper.tensor_dtype_to_np_dtype(elem_type), copy=False)
        if array.nbytes <= GROWTH or not array.dtype.isbuiltin:
            return from_array(array.copy(), elem_type)
        self._directory.mkdir(exist_ok=True)
        file = self._directory / f"{len(list(self._directory.iterdir()))}.npy"
        np.save(file, array)
        return Constant(tuple(array.shape), elem_type, lambda: np.load(file, mmap_mode="r"))


def _constant(model: Model, node: NodeProto) -> Constant | None:
    for item in node.attribute:
        value = helper.get_attribute_value(item)
        if item.name == "value":
            return from_array(numpy_helper.to_array(value), value.data_type)
        if item.name in ("value_float", "value_floats"):
            return from_array(np.asarray(value, np.float32))
        if item.name in ("value_int", "value_ints"):
            return from_array(np.asarray(value, np.int64))
    return None


def _transpose(model: Model, node: NodeProto) -> Constant | None:
    constant = model.constants[node.input[0]]
    rank = len(constant.shape)
    return constant.transposed(tuple(attribute(node, "perm", range(rank)[::-1])))


def _reshape(model: Model, node: NodeProto) -> Constant | None:
    constant = model.constants[node.input[0]]
    if len(node.input) < 2:
        return None
    wanted = [int(size) for size in model.constants[node.input[1]].load()]
    if not attribute(node, "allowzero", 0):
        wanted = [
            constant.shape[axis] if size == 0 and axis < len(constant.shape) else size
            for axis, size in enumerate(wanted)
        ]
    known = int(np.prod([size for size in wanted if size != -1], dtype=object))
    if -1 in wanted and known:
        wanted[wanted.index(-1)] = constant.size // known
    if int(np.prod(wanted, dtype=object)) != constant.size or -1 in wanted:
        return None
    return constant.reshaped(tuple(wanted))


def _identity(model: Model, node: NodeProto) -> Constant | None:
    return model.constants[node.input[0]]


def _cast(model: Model, node: NodeProto) -> Constant | None:
    constant, to = model.constants[node.input[0]], attribute(node, "to")
    plain = "biuf"  # kinds of numpy types whose conversion ONNX defines as numpy does
    if not to or constant.dtype.kind not in plain:
        return None
    if helper.tensor_dtype_to_np_dtype(to).kind not in plain:
        return None
    return constant.cast(to)


def _dequantize_linear(model: Model, node: NodeProto) -> Constant | None:
    codes, scale = (model.constants[name] for name in node.input[:2])
    zero = model.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    if scale.elem_type != TensorProto.FLOAT or codes.dtype.kind not in "iuV":
        return None
    axis = attribute(node, "axis", 1)
    spread = along_axis(scale, codes.shape, axis)
    spread_zero = along_axis(zero, codes.shape, axis) if zero is not None else None
    if spread is None or (zero is not None and spread_zero is None):
        return None
    return dequantized(QuantizedConstant(codes, spread, spread_zero), codes.shape)


def _multiply(model: Model, node: NodeProto) -> Constant | None:
    """Integers, cast to float, times a scale: what DequantizeLinear would be."""
    a, b = (model.constants[name] for name in node.input)
    for values, scale in ((a, b), (b, a)):
        source, spread = values.quantized, _spread_like(values, scale)
        if source is not None and source.scale is None and spread is not None:
            return dequantized(QuantizedConstant(source.codes, spread, source.zero), values.shape)
    return None


def _subtract(model: Model, node: NodeProto) -> Constant | None:
    """A zero point, on the way to `_multiply`."""
    values, zero = (model.constants[name] for name in node.input)
    source, spread = values.quantized, _spread_like(values, zero)
    if source is None or source.scale is not None or source.zero is not None or spread is None:
        return None
    return dequantized(QuantizedConstant(source.codes, None, spread), values.shape)


def _spread_like(values: Constant, part: Constant) -> Constant | None:
    """`part`, of f32 and smaller than `values`, with as many axes."""
    rank = len(values.shape)
    if part.elem_type != TensorProto.FLOAT or len(part.shape) > rank or part.size >= values.size:
        return None
    shape = (1,) * (rank - len(part.shape)) + part.shape
    fits = all(size in (1, whole) for size, whole in zip(shape, values.shape, strict=True))
    return part.reshaped(shape) if fits else None


STATIC: dict[str, Rule] = {"Shape": _shape, "Size": _size}

LAZY: dict[str, Rule] = {
    "Constant": _constant,
    "DequantizeLinear": _dequantize_linear,
    "Mul": _multiply,
    "Sub": _subtract,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Identity": _identity,
    "Cast": _cast,
}
