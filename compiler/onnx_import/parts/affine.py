"""Codes and what they stand for: `scale * (code - zero)`, built for tensors of a run.

What is constant is decoded in `quantized.py`, without the IR.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import reshape
from ..building.small_floats import rounded
from ..registry import Node
from ..values import symbolic
from ..values.constants import Constant, from_array
from ..values.element_types import BF16, F16, F32, I32, ElementType
from ..values.quantized import BITS, dequantized_constant, quantized_constant
from ..values.symbolic import ONE, ceildiv
from ..values.value import Steps, Value, constant_value

# Integer kernels take activations of so many bits at most (docs/numerics.md).
KERNEL_BITS = 8

FLOATS = (F32, F16, BF16)


def along(node: Node, part: Value, x: Value, axis: int, block: int = 0) -> Value:
    """A scale or zero point in a form that broadcasts against `x`.

    It has one element, or one for each place along `axis`, or (as many axes as x has) one for each
    `block` elements along `axis`, the last block maybe short.
    """
    b = node.b
    if part.size == 1:
        return reshape(b, part, [])
    if not -x.rank <= axis < x.rank:
        raise node.error(f"axis {axis} is out of range for {x}")
    axis %= x.rank
    if part.rank == 1 and not block:
        b.require_equal(
            part.dims[0], x.dims[axis], f"a scale or zero point for each place along axis {axis}"
        )
        return reshape(b, part, [x.dims[axis] if at == axis else ONE for at in range(x.rank)])
    if part.rank != x.rank:
        raise node.error(f"scale or zero point {part} does not fit {x}")
    return _spread(node, part, x, axis, block)


def _spread(node: Node, part: Value, x: Value, axis: int, block: int) -> Value:
    """Each element of `part` repeated for its block."""
    b = node.b
    size = symbolic.Dim.of(block)
    if not block:
        size = ceildiv(x.dims[axis], part.dims[axis])
        if size.value is None:
            raise node.error("the sizes do not say how long a block is", hint="set 'block_size'")
    for at, (own, whole) in enumerate(zip(part.dims, x.dims, strict=True)):
        expected = ceildiv(whole, size) if at == axis else whole
        b.require_equal(own, expected, f"scale or zero point {part} has a size along axis {at}")
    if size == ONE:
        return part
    source = Value(part.dtype, part.dims, ssa=b.tensor(part))
    step = b.scalar(size)

    def body(indices: list[Scalar]) -> Scalar:
        at = [i / step if at == axis else i for at, i in enumerate(indices)]
        return b.read(source, at)

    return b.tabulate(x.dims, part.dtype, body)


def dequantize(
    node: Node,
    codes: Value,
    scale: Value,
    zero: Value | None,
    *,
    axis: int = 1,
    block: int = 0,
    to: ElementType | None = None,
) -> Value:
    """`scale * (codes - zero)` as floats of type `to` (None: the scale's)."""
    result = to or scale.dtype
    if result not in FLOATS:
        raise node.error(f"a scale of {scale.dtype.name} gives no {result.name}")
    if zero is not None and zero.dtype != codes.dtype:
        raise node.error(f"codes of {codes.dtype.name} and a zero point of {zero.dtype.name}")
    known = _constant(codes, scale, zero, axis, block, result)
    if known is not None:
        return known
    parts = _beside(node, scale, zero, codes, axis, block)

    def body(code: Scalar, step: Scalar, *shift: Scalar) -> Scalar:
        if not code.dtype.is_integer:
            return code * step
        whole = code.cast(I32)
        return (whole - shift[0].cast(I32) if shift else whole).cast(F32) * step

    value = node.b.elementwise([codes, *parts], result, body)
    if scale.size == 1 and codes.dtype.is_integer and codes.dtype.bits <= KERNEL_BITS:
        value.steps = Steps(codes.dtype, *parts, *[None] * (2 - len(parts)))  # type: ignore[arg-type]
    return value


def _constant(
    codes: Value,
    scale: Value,
    zero: Value | None,
    axis: int,
    block: int,
    to: ElementType,
) -> Value | None:
    """What constants stand for: they stay codes wherever something takes codes."""
    if codes.constant is None or scale.as_constant is None:
        return None
    if zero is not None and zero.as_constant is None:
        return None
    constant = dequantized_constant(
        codes.constant,
        scale.as_constant,
        None if zero is None else zero.as_constant,
        axis=axis,
        block=block,
        elem_type=to.onnx,
    )
    return None if constant is None else constant_value(constant, to)


def _beside(
    node: Node, scale: Value, zero: Value | None, x: Value, axis: int, block: int
) -> list[Value]:
    """The scale and, if it is not known to be 0, the zero point, broadcasting against `x`."""
    parts = [scale] if zero is None or _is_zero(zero) else [scale, zero]
    return [along(node, part, x, axis, block) for part in parts]


def _is_zero(zero: Value) -> bool:
    array = zero.numpy() if zero.size == 1 else None
    return array is not None and float(array.reshape(-1)[0]) == 0


def quantize(
    node: Node,
    x: Value,
    scale: Value,
    zero: Value | None,
    to: ElementType,
    *,
    axis: int = 1,
    block: int = 0,
    saturate: bool = True,
) -> Value:
    """Codes of type `to`: `saturate(round(x / scale) + zero)`, halves to even.

    The division is done in f32. `saturate` holds for 8-bit floats, as in ONNX's Cast.
    """
    if zero is not None and zero.dtype != to:
        raise node.error(f"codes of {to.name} and a zero point of {zero.dtype.name}")
    known = _constant_codes(x, scale, zero, to, axis, block)
    if known is not None:
        return known
    parts = _beside(node, scale, zero, x, axis, block)

    def body(value: Scalar, step: Scalar, *shift: Scalar) -> Scalar:
        steps = value.cast(F32) / step.cast(F32)
        if to.is_small_float:
            return rounded(steps + shift[0] if shift else steps, to, saturate=saturate)
        return code_of(steps, shift[0] if shift else None, to)

    return node.b.elementwise([x, *parts], to, body)


def _constant_codes(
    x: Value, scale: Value, zero: Value | None, to: ElementType, axis: int, block: int
) -> Value | None:
    """The codes of a constant: a weight that the model rounds itself."""
    if x.constant is None or not x.dtype.is_float or to.onnx not in BITS:
        return None
    steps, shift = scale.as_constant, None if zero is None else zero.as_constant
    if steps is None or (zero is not None and shift is None):
        return None
    codes = quantized_constant(x.constant, steps, shift, to.onnx, axis=axis, block=block)
    return None if codes is None else constant_value(codes, to)


def code_of(steps: Scalar, zero: Scalar | None, to: ElementType) -> Scalar:
    """`saturate(round(steps) + zero)` as an integer of at most 16 bits."""
    low, high = to.limits
    rounded = steps.round_even()
    if zero is not None:
        rounded = rounded + zero.cast(F32)
    limited = rounded.clamp(float(low), float(high))
    # By way of 32 bits, which every instruction set converts many of at once.
    i32 = ir.IntegerType.get_signless(32)
    whole = arith.FPToSIOp(i32, limited.ssa).result
    return Scalar(arith.TruncIOp(to.inside(), whole).result, to)


def product_operand(
    b: Builder, x: Value, weight: Constant
) -> tuple[ir.Value, Mapping[str, ir.Value]]:
    """The first operand of an `abq` product with `weight`, and its scales if it is of codes.

    Where both sides are dequantized, `x` is taken back to its codes: as every element is a step of
    its grid, the division and the rounding give exactly the code that it was made of.
    """
    source = b.tensor(x)
    if x.steps is None or weight.quantized is None:
        return source, {}
    dtype, scale, zero = x.steps.dtype, x.steps.scale, x.steps.zero
    symmetric = dtype.signed and zero is None
    code = abq.CodeType.get(ir.StringAttr.get(kernel_scheme(symmetric)))
    # Unsigned codes are what asymmetric kernels take.
    shift = 1 << (KERNEL_BITS - 1) if dtype.signed and not symmetric else 0
    x_scale = _row(b, scale, F32, 0)
    x_zero = _row(b, zero if zero is not None else b.constant(0, I32), I32, shift)
    quantized = abq.QuantizeOp(
        source,
        ir.RankedTensorType.get(abq.shape(source), code),
        x_scale.type,
        x_zero.type,
        x_scale=x_scale,
        x_zero=x_zero,
    )
    return quantized.codes, {"x_scale": quantized.scale, "x_zero": quantized.zero}


def kernel_scheme(symmetric: bool) -> str:
    return f"a{KERNEL_BITS}:tensor:{'sym' if symmetric else 'asym'}"


def _row(b: Builder, part: Value, dtype: ElementType, added: int) -> ir.Value:
    """The one element of `part` plus `added`, as a tensor of one element of the IR."""
    number = part.numpy()
    if number is not None:
        whole = np.asarray(number.reshape(1).astype(dtype.dtype) + added, dtype.dtype)
        return b.tensor(constant_value(from_array(whole), dtype))
    made = part
    if added or part.dtype.inside() != dtype.inside():
        made = b.elementwise([part], dtype, lambda x: x.cast(dtype) + added)
    return b.tensor(reshape(b, made, [ONE]))
