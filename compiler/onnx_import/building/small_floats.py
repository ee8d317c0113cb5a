"""Floats of 16 bits and fewer: their codes, the f32 that each stands for, and rounding to them.

(OCP Microscaling Formats 1.0 for e8m0, e2m1, e2m3 and e3m2; OCP 8-bit Floating Point for e4m3 and
e5m2; the `fnuz` kinds of ONNX have one NaN, at the code of -0, no infinity and another bias.
Rounding is to the nearest, halves to even; ONNX's Cast for `saturate` and `round_mode`.)

Inside of the function a value of such a type is the f32 that it stands for. All functions here make
ops on scalars, without tables and branches, so that loops stay vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from abqc.dialects.mlir import arith, ir

from ..values.element_types import BF16, BOOL, F16, F32, U8, U16, U32, ElementType
from .scalars import Scalar, const

_SIGN, _INFINITY, _MANTISSA = 0x80000000, 0x7F800000, 0x007FFFFF  # of an f32
_BIAS, _WIDTH = 127, 23


@dataclass(frozen=True)
class Layout:
    """A sign, `exponent` bits and `mantissa` bits; numbers with exponent 0 are subnormal.

    `infinity` and `nan` are codes without sign, None where there is none; `unsigned_zero`: the code
    of -0 is the NaN.
    """

    exponent: int
    mantissa: int
    bias: int
    largest: float
    infinity: int | None = None
    nan: int | None = None
    unsigned_zero: bool = False

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def sign(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def smallest_exponent(self) -> int:
        """Of normal numbers."""
        return 1 - self.bias


LAYOUTS: dict[str, Layout] = {
    "float8_e4m3fn": Layout(4, 3, 7, 448.0, nan=0x7F),
    "float8_e4m3fnuz": Layout(4, 3, 8, 240.0, nan=0x80, unsigned_zero=True),
    "float8_e5m2": Layout(5, 2, 15, 57344.0, infinity=0x7C, nan=0x7E),
    "float8_e5m2fnuz": Layout(5, 2, 16, 57344.0, nan=0x80, unsigned_zero=True),
    "float4_e2m1fn": Layout(2, 1, 1, 6.0),
    "float6_e2m3fn": Layout(2, 3, 1, 7.5),
    "float6_e3m2fn": Layout(3, 2, 3, 28.0),
}
E8M0 = "float8_e8m0fnu"  # an exponent and nothing else: powers of two


def rounded(
    x: Scalar, dtype: ElementType, *, saturate: bool = True, round_mode: str = "up"
) -> Scalar:
    """The value of float type `dtype` next to a float `x`, as the type inside.

    `saturate` holds for 8 bits: what is too large becomes the largest value, else infinity or NaN.
    `round_mode` ("up", "down", "nearest") holds for e8m0.
    """
    if dtype.bits >= 32:
        return x.cast(dtype)
    x = _to_odd_f32(x)
    if dtype is F16:
        narrow = arith.TruncFOp(ir.F16Type.get(), x.ssa).result
        return Scalar(arith.ExtFOp(F32.inside(), narrow).result, dtype)
    if dtype is BF16:
        code = _bfloat_code(x) & ~0xFFFF
        return Scalar(_as_float(code).ssa, dtype)
    if dtype.name == E8M0:
        return Scalar(_power_of_two(_exponent_code(x, saturate, round_mode)).ssa, dtype)
    return Scalar(_on_grid(x, LAYOUTS[dtype.name], saturate).ssa, dtype)


def decode(code: ir.Value, dtype: ElementType) -> ir.Value:
    """The f32 that a value in its type outside stands for.

    That is f16, bf16, or an i8 code, in the lower bits where it has fewer than 8.
    """
    if dtype.bits == 16:
        return arith.ExtFOp(F32.inside(), code).result
    number = Scalar(code, U8).cast(U32)
    if dtype.name == E8M0:
        return _power_of_two(number).ssa
    layout = LAYOUTS[dtype.name]
    mantissa = number & ((1 << layout.mantissa) - 1)
    exponent = number.shift_right(layout.mantissa) & ((1 << layout.exponent) - 1)
    normal = _as_float(
        (exponent + (_BIAS - layout.bias)).shift_left(_WIDTH)
        | mantissa.shift_left(_WIDTH - layout.mantissa)
    )
    unit = math.ldexp(1.0, layout.smallest_exponent - layout.mantissa)
    small = mantissa.cast(F32) * unit
    size = (exponent == 0).select(small, normal)
    unsigned = number & (layout.sign - 1)
    if layout.infinity is not None:
        size = (unsigned == layout.infinity).select(size.like(math.inf), size)
        size = (unsigned > layout.infinity).select(size.like(math.nan), size)
    value = ((number & layout.sign) != 0).select(-size, size)
    if layout.nan is not None and layout.infinity is None:
        at = number if layout.unsigned_zero else unsigned
        value = (at == layout.nan).select(value.like(math.nan), value)
    return value.ssa


def encode(value: ir.Value, dtype: ElementType) -> ir.Value:
    """An f32 in the type outside. 8 bits and fewer: of an f32 that is a value of the type."""
    if dtype is F16:
        return arith.TruncFOp(dtype.outside(), value).result
    x = Scalar(value, F32)
    if dtype is BF16:  # by integers: for `arith.truncf` some C libraries lack a function
        code = _bfloat_code(x).shift_right(16).cast(U16)
        return arith.BitcastOp(dtype.outside(), code.ssa).result
    if dtype.name == E8M0:
        return _exponent_code(x, True, "down").cast(U8).ssa
    layout = LAYOUTS[dtype.name]
    bits = _bits(x)
    size = _as_float(bits & ~_SIGN)
    exponent = layout.bias - _BIAS
    normal = (bits & ~_SIGN).shift_right(_WIDTH - layout.mantissa) + (exponent << layout.mantissa)
    unit = math.ldexp(1.0, layout.mantissa - layout.smallest_exponent)
    is_small = size < math.ldexp(1.0, layout.smallest_exponent)
    small = (is_small.select(size, size.like(0.0)) * unit).cast(U32)
    code = is_small.select(small, normal)
    if layout.infinity is not None:
        code = (size == math.inf).select(code.like(layout.infinity), code)
    code = ((bits & _SIGN) != 0).select(code | layout.sign, code)
    if layout.unsigned_zero:
        code = (size == 0.0).select(code.like(0), code)
    if layout.nan is not None:
        sign = bits.shift_right(32 - layout.bits) & layout.sign
        nan = code.like(layout.nan) if layout.unsigned_zero else sign | layout.nan
        code = x.is_nan().select(nan, code)
    return code.cast(U8).ssa


def _bits(x: Scalar) -> Scalar:
    return Scalar(arith.BitcastOp(U32.inside(), x.ssa).result, U32)


def _as_float(bits: Scalar) -> Scalar:
    return Scalar(arith.BitcastOp(F32.inside(), bits.ssa).result, F32)


def _bfloat_code(x: Scalar) -> Scalar:
    """An i32 whose upper half is the bf16."""
    bits = _bits(x)
    odd = bits.shift_right(16) & 1
    nearest = bits + odd + 0x7FFF
    return x.is_nan().select(bits | 0x400000, nearest)


def _to_odd_f32(x: Scalar) -> Scalar:
    """A float as f32, so rounded that rounding it again to fewer bits is as rounding once.

    What is between two f32 becomes the one whose last bit is 1 (rounding to odd; Boldo, Melquiond,
    "Emulation of FMA and correctly rounded sums", 2008).
    """
    if x.dtype.bits != 64:
        return Scalar(x.ssa, F32)
    near = x.cast(F32)
    back, bits = near.cast(x.dtype), _bits(near)
    inexact = (back != x) & ~x.is_nan()
    beyond = back.abs() > x.abs()
    inward = beyond.select(bits - 1, bits)
    return inexact.select(_as_float(inward | 1), near)


def _on_grid(x: Scalar, layout: Layout, saturate: bool) -> Scalar:
    """Rounded to the layout's mantissa, as f32; what is too large as ONNX's Cast has it."""
    bits = _bits(x)
    lowest = (layout.smallest_exponent + _BIAS) << _WIDTH
    exponent = (bits & _INFINITY).maximum(lowest).minimum(254 << _WIDTH)
    unit = exponent - (layout.mantissa << _WIDTH)
    scale, inverse = _as_float(unit), _as_float(-unit + (2 * _BIAS << _WIDTH))
    near = (x * inverse).round_even() * scale
    limit = x.like(layout.largest)
    too_large = near.abs() > limit
    saturates = saturate or layout.nan is None
    if saturates:
        beyond = limit
    else:
        beyond = x.like(math.inf if layout.infinity is not None else math.nan)
    result = too_large.select((x < 0.0).select(-beyond, beyond), near)
    if layout.nan is None:  # what ml_dtypes makes of a NaN
        return x.is_nan().select(x.like(-0.0), result)
    return x.is_nan().select(x, result)


def _exponent_code(x: Scalar, saturate: bool, round_mode: str) -> Scalar:
    """The code of e8m0: the exponent of an f32, 255 for what is no number. The sign is ignored."""
    bits = _bits(x)
    exponent = bits.shift_right(_WIDTH) & 0xFF
    fraction = bits & _MANTISSA
    half = 1 << (_WIDTH - 1)
    if round_mode == "up":
        up = fraction != 0
    elif round_mode == "nearest":
        up = (fraction > half) | ((fraction == half) & (exponent > 0))
    else:
        up = const(False, BOOL)
    limit = 0xFE if saturate else 0xFF
    return (up & (exponent < limit)).select(exponent + 1, exponent)


def _power_of_two(code: Scalar) -> Scalar:
    """What a code of e8m0 stands for; 2^-127, the least, is a subnormal f32."""
    normal = code.shift_left(_WIDTH)
    bits = (code == 0).select(code.like(1 << (_WIDTH - 1)), normal)
    return (code == 255).select(const(math.nan, F32), _as_float(bits))
