"""Integer arithmetic between codes (docs/numerics.md, "Integer-only graphs"), in numpy.

A real factor is a fixed-point number, multiplier * 2^-shift, and the product with an integer is
rounded once, halves upwards: Jacob et al. (arXiv 1712.05877) as TFLite has it with single rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from abqc.dialects.schemes import Scheme
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

MULTIPLIER_BITS = 31  # a normalized multiplier is at least 2^30 and below 2^31
MAX_SHIFT = 62
MIN_SHARED_SHIFT = 16  # of terms of one sum: each is within 2^-9 of a code, if it has 8 bits
MAX_DIVIDED_SHIFT = 38  # of what is divided by a count of at most 2^22
# What may be scaled: accumulators of 32 bits and a bias of at most MAX_BIAS. The product with a
# multiplier and half of 2^MAX_SHIFT then fit 64 bits.
MAX_BIAS = 1 << 30


@dataclass(frozen=True)
class StaticCodes:
    """What the codes of a tensor mean: `scale` (an f32) times code less `zero`, by `scheme`."""

    scheme: Scheme
    scale: float
    zero: int

    @property
    def low(self) -> int:
        return self.scheme.format.qmin

    @property
    def high(self) -> int:
        return self.scheme.format.qmax

    @property
    def signed(self) -> bool:
        """Whether the byte of a code is two's complement."""
        return self.scheme.format.qmin < 0

    def code(self, values: F64 | float) -> I64:
        """clamp(rne(x / scale) + zero); the lowest code for a NaN."""
        with np.errstate(invalid="ignore", over="ignore"):
            steps = np.rint(np.asarray(values, np.float64) / self.scale) + self.zero
        return np.clip(np.where(np.isnan(steps), self.low, steps), self.low, self.high).astype(
            np.int64
        )

    def value(self, codes: I64) -> F64:
        return (codes - self.zero) * np.float64(self.scale)


@dataclass(frozen=True)
class FixedPoint:
    """Factors, one or one a channel: `multiplier` * 2^-`shift`, with shifts from 1 to MAX_SHIFT."""

    multiplier: I64
    shift: I64


def fixed_point(factors: F64 | float) -> FixedPoint:
    """The nearest of positive factors. ValueError for those of 2^29 and more.

    Multipliers have 31 bits, but for factors below 2^-31, which are multiples of 2^-62.
    """
    fraction, exponent = np.frexp(np.atleast_1d(np.asarray(factors, np.float64)))
    shift = MULTIPLIER_BITS - exponent.astype(np.int64)
    if (shift < 2).any() or not np.isfinite(fraction).all() or (fraction < 0).any():
        raise ValueError(f"no fixed-point multiplier is {np.max(factors)}")
    below = np.maximum(shift - MAX_SHIFT, 0)
    multiplier = np.rint(np.ldexp(fraction, MULTIPLIER_BITS - below)).astype(np.int64)
    shift = np.minimum(shift, MAX_SHIFT)
    carried = multiplier == 1 << MULTIPLIER_BITS
    return FixedPoint(np.where(carried, multiplier >> 1, multiplier), shift - carried)


def common_shift(*factors: float) -> FixedPoint:
    """Factors of terms of one sum: the largest magnitude is normalized, all have its shift.

    They may be negative. ValueError as of `fixed_point`, and where the others would have less than
    MIN_SHARED_SHIFT bits behind the point.
    """
    largest = fixed_point(max(map(abs, factors)))
    shift = int(largest.shift[0])
    if shift < MIN_SHARED_SHIFT:
        raise ValueError(f"a factor of {max(map(abs, factors))} leaves the others no bits")
    multiplier = np.rint(np.ldexp(np.array(factors, np.float64), shift)).astype(np.int64)
    return FixedPoint(multiplier, np.full(len(factors), shift, np.int64))


def rounded_shift(products: I64, shift: I64 | int) -> I64:
    """floor(products / 2^shift + 1/2)."""
    shift = np.asarray(shift, np.int64)
    return (products + (np.int64(1) << (shift - 1))) >> shift


def requantize(
    acc: I64,
    bias: I64,
    factor: FixedPoint,
    y: StaticCodes,
    bounds: tuple[int, int] | None = None,
    offset: I64 | int = 0,
) -> I64:
    """Codes of accumulators [..., N] with biases [N] in their unit and factors of one or N.

    `bounds` are codes between which the results stay: those of an activation that clips. `offset`
    [N] is added to the codes (`bias_codes`).
    """
    low, high = bounds or (y.low, y.high)
    scaled = rounded_shift((acc.astype(np.int64) + bias) * factor.multiplier, factor.shift)
    return np.clip(scaled + (y.zero + offset), low, high)


def divide(total: I64, count: int, factor: FixedPoint, y: StaticCodes) -> I64:
    """Codes of sums of codes less a zero point that are divided by a count, rounded once."""
    shift = int(factor.shift[0])
    scaled = total.astype(np.int64) * factor.multiplier[0] + (count << (shift - 1))
    return np.clip(scaled // (count << shift) + y.zero, y.low, y.high)


def add(
    a: I64,
    of_a: StaticCodes,
    b: I64,
    of_b: StaticCodes,
    y: StaticCodes,
    *,
    subtract: bool = False,
    bounds: tuple[int, int] | None = None,
) -> I64:
    """Codes of the sum or difference of what codes stand for."""
    low, high = bounds or (y.low, y.high)
    factor = add_factors(of_a, of_b, y, subtract=subtract)
    first, second = factor.multiplier
    total = (a - of_a.zero) * first + (b - of_b.zero) * second
    return np.clip(rounded_shift(total, factor.shift[0]) + y.zero, low, high)


def add_factors(
    of_a: StaticCodes, of_b: StaticCodes, y: StaticCodes, *, subtract: bool
) -> FixedPoint:
    second = of_b.scale / y.scale
    return common_shift(of_a.scale / y.scale, -second if subtract else second)


def multiply(
    a: I64,
    of_a: StaticCodes,
    b: I64,
    of_b: StaticCodes,
    y: StaticCodes,
    bounds: tuple[int, int] | None = None,
) -> I64:
    """Codes of the product of what codes stand for."""
    factor = fixed_point(of_a.scale * of_b.scale / y.scale)
    product = (a - of_a.zero) * (b - of_b.zero)
    return requantize(product, np.zeros(1, np.int64), factor, y, bounds)


def table(function: Callable[[F64], F64], x: StaticCodes, y: StaticCodes) -> NDArray[np.int8]:
    """Bytes of the codes of `function` of what each byte stands for, [256], by the byte without
    sign. The function is computed in f64. Bytes that are no codes count as the nearest code."""
    byte = np.arange(256)
    codes = np.where(x.signed & (byte > 127), byte - 256, byte)
    with np.errstate(all="ignore"):
        results = function(x.value(np.clip(codes, x.low, x.high)))
    return y.code(results).astype(np.uint8).view(np.int8)


def bias_codes(bias: F64, units: F64, y: StaticCodes) -> tuple[I64, I64]:
    """What is added to accumulators of `units` [N], rne(bias / unit), and to their codes, 0.

    A channel of next to no weights may have more than MAX_BIAS units of bias: there 0 is added to
    the accumulators, and rne(bias / scale) to the codes.
    """
    with np.errstate(over="ignore"):
        codes = np.rint(np.asarray(bias, np.float64) / units)
    beyond = np.abs(codes) > MAX_BIAS
    steps = np.clip(np.rint(np.asarray(bias, np.float64) / y.scale), -MAX_BIAS, MAX_BIAS)
    return (
        np.where(beyond, 0, codes).astype(np.int64),
        np.where(beyond, steps, 0).astype(np.int64),
    )
