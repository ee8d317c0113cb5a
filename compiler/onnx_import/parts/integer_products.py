"""Products of codes, to the integer, by the kernels for codes where one side is constant.

A kernel returns its sum as f32, which is exact below 2^24. What the weights can add up to is known
here: larger sums are cut into halves until they stay below, and the integers of these are added.
(Where only the f32 is asked for, as in models that scale it at once, nothing is cut: the kernel
rounds the exact sum.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from abqc.dialects.mlir import arith, ir
from onnx import TensorProto

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import slice_axis
from ..registry import Node
from ..values.constants import Constant, QuantizedConstant, from_array
from ..values.element_types import F32, I32
from ..values.quantized import dequantized_constant
from ..values.value import Value, constant_value
from .affine import along, dequantize

EXACT = 1 << 24  # f32 has every integer up to here
CODE_BITS = 8
EXACT_TERMS = EXACT // 255**2  # products of so many differences of codes are exact in f32

# Multiplies floats (x, w), both of which stand for integers.
Product = Callable[[Value, Value], Value]


def is_code(value: Value) -> bool:
    return value.dtype.is_integer and value.dtype.bits <= CODE_BITS


def one_number(zero: Value | None) -> bool:
    return zero is None or zero.size == 1


def shifted(node: Node, codes: Value, zero: Value | None, axis: int) -> Value:
    """`codes - zero` as 32-bit integers; `zero` is along `axis`, or has as many axes as codes."""
    if zero is None:
        return node.b.elementwise([codes], I32, lambda q: q.cast(I32))
    spread = zero
    if zero.rank != codes.rank or zero.rank == 1:
        spread = along(node, zero, codes, axis)
    return node.b.elementwise([codes, spread], I32, lambda q, z: q.cast(I32) - z.cast(I32))


def whole_steps(node: Node, codes: Value, zero: Value | None, axis: int) -> Value:
    """`codes - zero` as floats that know their codes."""
    return dequantize(node, codes, node.b.constant(1.0, F32), zero, axis=axis)


def weight_steps(codes: Constant, zero: Constant | None, axis: int) -> Constant | None:
    """`codes - zero` of a constant, which remembers the codes; None where the zeros do not fit."""
    one = from_array(np.ones((), np.float32))
    return dequantized_constant(codes, one, zero, axis=axis, elem_type=TensorProto.FLOAT)


def exact_product(
    b: Builder, x: Value, w: Constant, multiply: Product, *, reduced: int, lane: int
) -> Value:
    """The 32-bit integers of `multiply(x, w)`, both sides floats that know their codes.

    Of the axes of `w`, `lane` counts outputs and all others are summed over, `reduced` among them:
    it is the last axis of `x` where `w` is a matrix, else (convolutions) the second.
    """
    y = multiply(x, constant_value(w, F32))
    size = w.shape[reduced]
    if is_exact(x, w, lane=lane) or size == 1:
        return to_integers(b, y)

    def halves() -> ir.Value:
        axis = x.rank - 1 if len(w.shape) == 2 else 1
        sums = []
        for begin, end in ((0, size // 2), (size // 2, size)):
            part = slice_axis(b, x, axis, begin, end - begin)
            part.steps = x.steps
            cut = _cut(w, reduced, begin, end)
            sums.append(exact_product(b, part, cut, multiply, reduced=reduced, lane=lane))
        return b.tensor(b.elementwise(sums, I32, lambda p, q: p + q))

    return Value(I32, y.dims, make=halves, in_f32=y.ssa)


def is_exact(x: Value, w: Constant, *, lane: int) -> bool:
    """Whether f32 has all integers that the products of an output add up to."""
    return _largest_sum(w, lane) * _largest_code(x) < EXACT


def to_integers(b: Builder, y: Value) -> Value:
    """Floats that are integers, as such."""
    whole = b.elementwise([y], I32, _to_integer)
    whole.in_f32 = b.tensor(y)
    return whole


def _to_integer(y: Scalar) -> Scalar:
    return Scalar(arith.FPToSIOp(I32.inside(), y.ssa).result, I32)


def _largest_sum(w: Constant, lane: int) -> int:
    """Of the magnitudes of the weights of an output."""
    magnitudes = np.abs(w.load())
    others = tuple(axis for axis in range(magnitudes.ndim) if axis != lane)
    return int(magnitudes.sum(axis=others, dtype=np.float64).max(initial=0))


def _largest_code(x: Value) -> int:
    """Of the magnitudes `|code - zero|`."""
    assert x.steps is not None
    low, high = x.steps.dtype.limits
    if x.steps.zero is None:
        return max(-low, high)
    zero = x.steps.zero.numpy()
    if zero is None:
        return high - low
    return max(high - int(zero.reshape(-1)[0]), int(zero.reshape(-1)[0]) - low)


def _cut(w: Constant, axis: int, begin: int, end: int) -> Constant:
    """Elements `begin` to `end` of a constant of whole steps, along an axis that is summed over."""
    assert w.quantized is not None
    codes = w.quantized.codes
    within = tuple(slice(begin, end) if at == axis else slice(None) for at in range(len(w.shape)))
    shape = tuple(end - begin if at == axis else size for at, size in enumerate(w.shape))
    load, base_load = codes.load, w.load
    part = Constant(shape, codes.elem_type, lambda: load()[within])
    source = QuantizedConstant(part, w.quantized.scale, w.quantized.zero)
    return Constant(shape, w.elem_type, lambda: base_load()[within], quantized=source)


def in_f32(b: Builder, whole: Value) -> Value:
    """32-bit integers as f32, rounded."""
    if whole.in_f32 is not None:
        return Value(F32, whole.dims, ssa=whole.in_f32)
    return b.elementwise([whole], F32, lambda v: v.cast(F32))
