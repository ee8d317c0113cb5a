"""Constant folding, node by node; what only moves or casts a weight stays lazy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from abqc.errors import ModelError
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ..graph.model import attribute, subgraphs
from .constants import HALVES, Constant, QuantizedConstant, from_array
from .deferred import REDUCTIONS, deferred
from .element_types import element_type
from .quantized import BITS, dequantized, dequantized_constant, quantized_constant

# A folded tensor may not be larger than this or than twice its inputs: an Expand or a
# ConstantOfShape must not turn a number into a weight.
GROWTH = 1 << 16

# The opset since which arithmetic broadcasts as numpy does.
BROADCASTS = 7

NOT_FOLDED = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
    "Multinomial", "Dropout", "BatchNormalization", "Expand", "Tile", "ConstantOfShape",
    "EyeLike", "OneHot",
}  # fmt: skip

Inputs = Sequence[Constant | None]
Rule = Callable[[NodeProto, Inputs], Constant | None]


class Folder:
    """Evaluates nodes whose inputs are constants. Large results are files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def fold(self, node: NodeProto, inputs: Inputs, version: int) -> list[Constant] | None:
        """The outputs of a node of the default domain; None if it should be lowered."""
        if node.op_type in NOT_FOLDED or any(True for _ in subgraphs(node)):
            return None
        rule = LAZY.get(node.op_type)
        result = rule(node, inputs) if rule else None
        if result is not None:
            return [result]
        large = sum(constant.size for constant in inputs if constant is not None) > GROWTH
        if large and node.op_type not in REDUCTIONS:
            later = deferred(node, inputs) if version >= BROADCASTS else None
            return None if later is None else [later]
        return self._evaluate(node, inputs, version)

    def _evaluate(self, node: NodeProto, inputs: Inputs, version: int) -> list[Constant] | None:
        """By ONNX's reference evaluator; None where it cannot tell."""
        total = sum(constant.size for constant in inputs if constant is not None)
        from onnx.reference import ReferenceEvaluator  # most models have nothing to evaluate

        given = [
            (name, constant)
            for name, constant in zip(node.input, inputs, strict=True)
            if constant is not None
        ]
        infos = [
            helper.make_tensor_value_info(name, constant.elem_type, constant.shape)
            for name, constant in dict(given).items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = helper.make_graph([node], node.op_type, infos, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
        try:
            feeds = {name: constant.load() for name, constant in given}
            values = ReferenceEvaluator(model).run(None, feeds)
            arrays = [_known_array(value) for value in values]
        except Exception:
            # The evaluator lacks operators and forms; all of them can be lowered or refused, by
            # rules that name the node and the reason.
            return None
        if any(array is None or array.size > max(GROWTH, 2 * total) for array in arrays):
            return None
        rest = iter(arrays)
        return [
            self._kept(next(rest)) if name else from_array(np.zeros(0, np.float32))  # type: ignore[arg-type]
            for name in node.output
        ]

    def _kept(self, array: np.ndarray) -> Constant:
        elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        if array.nbytes <= GROWTH or not array.dtype.isbuiltin:
            return from_array(array.copy(), elem_type)
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._directory / f"{len(list(self._directory.iterdir()))}.npy"
        np.save(file, array)
        return Constant(tuple(array.shape), elem_type, lambda: np.load(file, mmap_mode="r"))


def _known_array(value: object) -> np.ndarray | None:
    """A result of a type that the front end has."""
    if not isinstance(value, (np.ndarray, np.generic)):
        return None
    array = np.asarray(value)
    number = helper.np_dtype_to_tensor_dtype(array.dtype)
    return array if element_type(number) is not None else None


def constant_of(node: NodeProto) -> Constant:
    """The value of a Constant node."""
    for item in node.attribute:
        value = helper.get_attribute_value(item)
        if item.name == "value":
            return from_array(numpy_helper.to_array(value), value.data_type)
        if item.name in ("value_float", "value_floats"):
            return from_array(np.asarray(value, np.float32))
        if item.name in ("value_int", "value_ints"):
            return from_array(np.asarray(value, np.int64))
    given = ", ".join(item.name for item in node.attribute) or "no value"
    raise ModelError(f"Constant: {given} is not supported", node=node.name)


def _constant(node: NodeProto, inputs: Inputs) -> Constant | None:
    return constant_of(node)


def _transpose(node: NodeProto, inputs: Inputs) -> Constant | None:
    (constant,) = inputs
    assert constant is not None
    rank = len(constant.shape)
    return constant.transposed(tuple(attribute(node, "perm", range(rank)[::-1])))


def _identity(node: NodeProto, inputs: Inputs) -> Constant | None:
    return inputs[0]


def _cast(node: NodeProto, inputs: Inputs) -> Constant | None:
    constant, to = inputs[0], attribute(node, "to")
    plain = "biuf"  # kinds of numpy types whose conversion ONNX defines as numpy does
    if constant is None or not isinstance(to, int):
        return None
    if constant.elem_type in HALVES and to == TensorProto.FLOAT:
        return constant.cast(to)  # exact, and bfloat16 is of no kind of numpy's
    if constant.dtype.kind not in plain:
        return None
    target = element_type(to)
    if target is None or target.dtype.kind not in plain:
        return None
    if constant.dtype.kind == "f" and target.dtype.kind in "iu" and constant.size > GROWTH:
        return None
    return constant.cast(to)


def _dequantize_linear(node: NodeProto, inputs: Inputs) -> Constant | None:
    codes, scale = inputs[:2]
    if codes is None or scale is None:
        return None
    return dequantized_constant(
        codes,
        scale,
        inputs[2] if len(inputs) > 2 else None,
        axis=attribute(node, "axis", 1),
        block=attribute(node, "block_size", 0),
        elem_type=attribute(node, "output_dtype", 0) or scale.elem_type,
    )


def _quantize_linear(node: NodeProto, inputs: Inputs) -> Constant | None:
    values, scale = inputs[:2]
    zero = inputs[2] if len(inputs) > 2 else None
    asked = attribute(node, "output_dtype", 0) or TensorProto.UINT8
    to = asked if zero is None else zero.elem_type
    if values is None or scale is None or to not in BITS or values.dtype.kind != "f":
        return None
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    return quantized_constant(values, scale, zero, to, axis=axis, block=block)


def _multiply(node: NodeProto, inputs: Inputs) -> Constant | None:
    """Integers, cast to float, times a scale: what DequantizeLinear would be."""
    a, b = inputs
    assert a is not None and b is not None
    for values, scale in ((a, b), (b, a)):
        source, spread = values.quantized, _spread_like(values, scale)
        if source is not None and source.scale is None and spread is not None:
            return dequantized(QuantizedConstant(source.codes, spread, source.zero), values.shape)
    return None


def _subtract(node: NodeProto, inputs: Inputs) -> Constant | None:
    """A zero point, on the way to `_multiply`."""
    values, zero = inputs
    assert values is not None and zero is not None
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


LAZY: dict[str, Rule] = {
    "Constant": _constant,
    "DequantizeLinear": _dequantize_linear,
    "QuantizeLinear": _quantize_linear,
    "Mul": _multiply,
    "Sub": _subtract,
    "Transpose": _transpose,
    "Identity": _identity,
    "Cast": _cast,
}
