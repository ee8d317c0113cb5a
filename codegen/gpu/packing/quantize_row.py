"""Quantizing rows on the device (docs/numerics.md, "Quantizing at run time").

Exact IEEE f32: divisions are correctly rounded, roundings half to even. A row (or sample) with
NaN, infinity or a range that f32 cannot hold is *broken*: its scale is NaN, its codes are those of
zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from abqc.codegen.builder import Value
from abqc.dialects.formats import NumberFormat

from ..builder import GpuBuilder
from ..magic import MAGIC, MAGIC_BITS

INFINITY_BITS = 0x7F800000
MAGNITUDE_BITS = 0x7FFFFFFF
FAR = 2.0**64


@dataclass(frozen=True)
class RowScale:
    """What a row's codes are made with, the same in all threads of the row.

    `scale` is as stored: NaN where the row is broken. `zero` (i32) is the zero point of q.
    """

    scale: Value
    divisor: Value
    zero: Value
    broken: Value
    quotient: Quotient | None = None


@dataclass(frozen=True)
class Quotient:
    """How values are divided by a row's scale that is of their own range: |x / scale| < 2^22.

    A division costs a dozen instructions, a quotient from the reciprocal six: it is corrected twice
    by what it leaves, which is exact, and then is the nearest f32 (Markstein, "Computation of
    elementary functions on the IBM RISC System/6000 processor", 1990) where nothing underflows. So
    x and the scale are multiplied by a power of two before.
    """

    power: Value
    divisor: Value
    reciprocal: Value

    @staticmethod
    def of(b: GpuBuilder, scale: Value) -> Quotient:
        one, large, small = (b.const(number, "f32") for number in (1.0, FAR, 1.0 / FAR))
        power = b.select(scale < 1.0 / FAR, large, b.select(scale > FAR, small, one))
        divisor = scale * power
        return Quotient(power, divisor, 1.0 / divisor)

    def rounded(self, b: GpuBuilder, x: Value) -> Value:
        """The nearest integer (i32) of x over the scale, half to even."""
        x = x * self.power
        quotient = x * self.reciprocal
        for _ in range(2):
            left = b.fma(-quotient, self.divisor, x)
            quotient = b.fma(left, self.reciprocal, quotient)
        return b.to_bits(quotient + MAGIC) - MAGIC_BITS


@dataclass(frozen=True)
class RowRange:
    """How a range is kept while values are looked at: a few scalars and how two of each combine."""

    b: GpuBuilder
    format: NumberFormat

    @property
    def types(self) -> list[str]:
        """Bits of f32 as i32. Asymmetric: the largest ones, signed (of the highest value, or 0) and
        unsigned (of the lowest value if any is negative). Else of the largest magnitude, and the
        sum of magnitudes (f32) for binary codes."""
        if not self.format.symmetric:
            return ["i32", "i32"]
        return ["i32", "f32"] if self.format.kind == "binary" else ["i32"]

    def start(self) -> list[Value]:
        return [self.b.const(0, type_) for type_ in self.types]

    def combine(self) -> list[Callable[[Value, Value], Value]]:
        b = self.b
        if not self.format.symmetric:
            return [b.max, b.unsigned_max]
        return [b.max, lambda x, y: x + y] if self.format.kind == "binary" else [b.max]

    def widen(self, ranges: Sequence[Value], x: Value) -> list[Value]:
        """The ranges with the value `x` (f32) in them."""
        b = self.b
        bits = b.to_bits(x)
        if not self.format.symmetric:
            return [b.max(bits, ranges[0]), b.unsigned_max(bits, ranges[1])]
        bits = bits & MAGNITUDE_BITS
        reach = b.max(bits, ranges[0])
        if self.format.kind == "binary":
            return [reach, ranges[1] + b.from_bits(bits, "f32")]
        return [reach]

    def scale(self, ranges: Sequence[Value], count: Value) -> RowScale:
        """The dynamic scale and zero point of `count` (f32) values of this range."""
        b, format = self.b, self.format
        reach, bounds = ranges[0], list(ranges[1:])
        if not format.symmetric:
            below = b.select(ranges[1] < 0, ranges[1] & MAGNITUDE_BITS, 0)
            bounds = [-b.from_bits(below, "f32"), b.from_bits(ranges[0], "f32")]
            reach = b.max(reach, below)
        largest = b.from_bits(reach, "f32")
        if format.clip != 1:
            largest, bounds = largest * format.clip, [bound * format.clip for bound in bounds]
        if format.kind == "binary":
            scale = bounds[0] / count
        elif format.symmetric:
            scale = largest / float(format.qmax)
        else:
            scale = (bounds[1] - bounds[0]) / float(format.qmax)
        broken = b.max(reach, b.to_bits(scale) & MAGNITUDE_BITS) >= INFINITY_BITS
        if format.kind != "binary":  # whose codes are signs, whatever the scale
            scale = b.select(scale == 0.0, b.const(1.0, "f32"), scale)
        row = given_scale(b, b.select(broken, b.const(float("nan"), "f32"), scale))
        row = replace(row, quotient=Quotient.of(b, row.divisor))
        if format.symmetric:
            return row
        lowest = b.select(broken, b.const(0.0, "f32"), bounds[0])
        zero = _round(b, -lowest / row.divisor)
        zero = b.max(b.min(zero, format.qmax), 0)
        return replace(row, zero=zero)


def given_scale(b: GpuBuilder, scale: Value, zero: Value | None = None) -> RowScale:
    """A scale (f32, not finite: broken) and zero point (i32, 0 if None) that are known."""
    broken = (b.to_bits(scale) & MAGNITUDE_BITS) >= INFINITY_BITS
    divisor = b.select(broken, b.const(1.0, "f32"), scale)
    stored = b.select(broken, b.const(float("nan"), "f32"), scale)
    return RowScale(stored, divisor, b.const(0, "i32") if zero is None else zero, broken)


def code(b: GpuBuilder, format: NumberFormat, row: RowScale, x: Value) -> Value:
    """The code q (i32) of the value `x`."""
    x = b.select(row.broken, b.const(0.0, "f32"), x)
    if format.kind == "binary":
        return b.select(x < 0.0, b.const(-1, "i32"), 1)
    if row.quotient is not None:
        steps = row.quotient.rounded(b, x) + row.zero
        return b.max(b.min(steps, format.qmax), format.qmin)
    # Clamped before the zero point is added: a saturated step must not overflow.
    steps = _round(b, x / row.divisor)
    steps = b.max(b.min(steps, format.qmax - row.zero), format.qmin - row.zero)
    return steps + row.zero


def _round(b: GpuBuilder, steps: Value) -> Value:
    """The nearest integer (i32), half to even; saturates."""
    return b.intrinsic("llvm.nvvm.f2i.rn", "i32", steps)
