"""Floats rounded in blocks that share a power of two (`formats.round_activation`), everywhere.

All is exact, and equal on CPUs and GPUs. `Value`s are scalars or vectors.
"""

from __future__ import annotations

from abqc.dialects.number_formats import NumberFormat

from ..builder import Emitter, Value
from .stored_values import F32_BIAS, F32_MANTISSA, as_bits, as_float, power_of_two

INFINITY_BITS = 0x7F800000
MAGNITUDE_BITS = 0x7FFFFFFF
_HALF_BIT = 1 << (F32_MANTISSA - 1)  # the mantissa of 1.5
_LARGEST_POWER = 2 * F32_BIAS  # the byte of 2^127, the largest


def magnitude_bits(b: Emitter, x: Value) -> Value:
    """|x| as its bits, i32: they are ordered as magnitudes are, infinity and NaN last."""
    return as_bits(b, x) & MAGNITUDE_BITS


def shared_exponent(b: Emitter, format: NumberFormat, reach: Value) -> Value:
    """The E8M0 byte (i32) of a block whose largest magnitude has the bits `reach`: OCP MX's
    floor(log2(largest magnitude)) - floor(log2(largest value of the format)), bounded below."""
    return b.max((reach >> F32_MANTISSA) - (_exponent(format.largest)), 0)


def rounded(b: Emitter, format: NumberFormat, x: Value, exponent: Value, reach: Value) -> Value:
    """`x` as the values of its block, f32; NaN where the block is not finite.

    `exponent` and `reach` are those of the block, in the type of x's bits.
    """
    steps = x * power_of_two(b, b.const(_LARGEST_POWER, exponent.type) - exponent)
    values = _nearest(b, format, steps) * power_of_two(b, exponent)
    return b.select(reach >= INFINITY_BITS, b.const(float("nan"), x.type), values)


def _nearest(b: Emitter, format: NumberFormat, steps: Value) -> Value:
    """The nearest values of the format: adding and subtracting 1.5 * 2^23 quanta rounds to them."""
    if format.minifloat is None:
        rounder = b.const(1.5 * 2.0**F32_MANTISSA, steps.type)
        low, high = float(format.qmin), float(format.qmax)
    else:
        type_ = format.minifloat
        smallest = (F32_BIAS + 1 - type_.bias) << F32_MANTISSA  # of a normal number
        binade = b.max(as_bits(b, steps) & INFINITY_BITS, smallest)
        up = (F32_MANTISSA - type_.mantissa_bits) << F32_MANTISSA
        rounder = as_float(b, (binade + up) | _HALF_BIT)
        low, high = -type_.largest, type_.largest
    return b.max(b.min((steps + rounder) - rounder, high), low)


def _exponent(largest: float) -> int:
    """floor(log2(largest))."""
    return int(largest).bit_length() - 1
