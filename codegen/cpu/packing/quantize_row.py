"""Quantizing one run of floats at run time (docs/numerics.md, "Quantizing at run time").

Everything is exact IEEE f32 and equal on every ISA: rounding adds and subtracts 1.5 * 2^23, which
needs no rounding instruction. Where there are fused multiply-adds nothing is divided: x / s becomes
q + r (x - q s), r = 1 / s and q = x r (Markstein's step). For codes of at most 8 bits and divisors
in `PLAIN_DIVISORS` that rounds to the integers that the quotient rounds to: of all s in [1, 2), the
floats next to (k + 1/2) s were tried, k below 256, and other exponents only move the point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value, vec
from abqc.dialects.formats import NumberFormat
from abqc.dialects.mlir import arith, ir

LANES = 16
CHAINS = 4  # independent reductions, so that latency is hidden
INFINITY_BITS = 0x7F800000
MAGNITUDE_BITS = 0x7FFFFFFF
# x + 1.5 * 2^23 rounds |x| < 2^22 half to even and leaves the integer in the low bits.
ROUNDER = 12582912.0
ROUNDER_BITS = 0x4B400000
LOWEST_STEPS = -4194304.0  # -2^22
# Neither a reciprocal nor a remainder is subnormal or infinite, by whose steps codes differ.
PLAIN_DIVISORS = 2.0**-100, 2.0**120


@dataclass(frozen=True)
class RowScale:
    """Scalars that a row's codes are made with.

    `scale` is the scale as stored: NaN where a value or the scale itself is not finite (`broken`).
    `zero` (i32) is the zero point of the unsigned codes u = q + shift, the shift included.
    """

    scale: Value
    divisor: Value
    zero: Value
    broken: Value
    measured: bool  # on these floats, which are then few steps
    reciprocal: Value | None  # of the divisor, on instruction sets with fused multiply-adds
    plain: Value  # whether the divisor is in PLAIN_DIVISORS


def sweep(
    b: Builder,
    count: Value,
    whole: bool,
    body: Callable[..., Sequence[Value]],
    carry: Sequence[Value] = (),
) -> list[Value]:
    """`carry = body(i, mask, *carry)` for i = 0, 16, ... below `count`; the carry at the end.

    `mask` is None where all 16 lanes are below `count`. `whole` says that 16 divides `count`.
    """
    full = count if whole else count - count % LANES
    with b.loop(0, full, LANES, carry=carry) as loop:
        loop.carry(*body(loop.i, None, *loop.args))
    if whole:
        return loop.results
    return list(body(full, b.mask(LANES, count - full), *loop.results))


@dataclass(frozen=True)
class RowCodes:
    """`count` floats, from element `begin` of `source` on, times a `factor` if there is one,
    becoming codes."""

    b: Builder
    format: NumberFormat
    source: Value
    begin: Value
    count: Value
    factor: Value | None = None

    @property
    def shift(self) -> int:
        """u = q + shift is unsigned."""
        return -self.format.qmin

    @property
    def highest(self) -> int:
        """The largest u."""
        return self.format.qmax - self.format.qmin

    def measure(self) -> RowScale:
        """The dynamic scale and zero point of these floats."""
        return self.of_ranges(self.ranges())

    def of_ranges(self, ranges: Sequence[Value]) -> RowScale:
        """The dynamic scale and zero point of floats that have these `ranges`."""
        b = self.b
        reach, low, high, total = ranges
        largest = b.bitcast(reach, "f32")
        if self.format.clip != 1:
            low, high, largest = (x * self.format.clip for x in (low, high, largest))
        if self.format.kind == "binary":
            scale = total / b.to_float(b.from_index(self.count, "i64"))
        elif self.format.symmetric:
            scale = largest / float(self.format.qmax)
        else:
            scale = (high - low) / float(self.format.qmax)
        broken = b.max(reach, b.bitcast(scale, "i32") & MAGNITUDE_BITS) >= INFINITY_BITS
        if self.format.kind != "binary":  # whose codes are signs, whatever the scale
            scale = b.select(scale == 0.0, b.const(1.0, "f32"), scale)
        divisor = b.select(broken, b.const(1.0, "f32"), scale)
        zero = b.const(self.shift, "i32")
        if not self.format.symmetric:
            lowest = b.select(broken, b.const(0.0, "f32"), low)
            zero = self._clamp(self._round(-lowest / divisor))
        return self._row_scale(scale, zero, broken, measured=True)

    def given(self, scale: Value, zero: Value, *, measured: bool = False) -> RowScale:
        """A scale (f32, NaN: broken) and a zero point of q (i32), `measured` on these floats or any
        others."""
        broken = (self.b.bitcast(scale, "i32") & MAGNITUDE_BITS) >= INFINITY_BITS
        return self._row_scale(scale, zero + self.shift, broken, measured=measured)

    def _row_scale(self, scale: Value, zero: Value, broken: Value, *, measured: bool) -> RowScale:
        b = self.b
        nan, one = b.const(float("nan"), "f32"), b.const(1.0, "f32")
        divisor = b.select(broken, one, scale)
        reciprocal = one / divisor if b.isa.fma else None
        lowest, highest = PLAIN_DIVISORS
        plain = (divisor >= lowest) & (divisor <= highest)
        stored = b.select(broken, nan, scale)
        return RowScale(stored, divisor, zero, broken, measured, reciprocal, plain)

    def vector(self, i: Value, row: RowScale, mask: Value | None = None) -> Value:
        """Codes u of elements i .. i + 16, vector<16xi32>; 0 off the mask."""
        codes = self._clamp(self.steps(i, row, mask))
        return codes if mask is None else self.b.select(mask, codes, self.b.const(0, codes.type))

    def steps(self, i: Value, row: RowScale, mask: Value | None = None) -> Value:
        """As `vector`, but codes of values beyond the format's may be beyond it too, and off the
        mask may be anything."""
        b, x = self.b, self._floats(i, mask)
        if self.format.kind == "binary":
            return b.select(x < 0.0, b.const(0, vec(LANES, "i32")), b.const(2, vec(LANES, "i32")))
        whole = b.bitcast(self._divided(x, row) + ROUNDER, vec(LANES, "i32"))
        return whole + b.splat(row.zero - ROUNDER_BITS, LANES)

    def _floats(self, i: Value, mask: Value | None = None) -> Value:
        x = self.b.load(self.source, self.begin + i, LANES, mask)
        return x if self.factor is None else x * self.b.splat(self.factor, LANES)

    def bytes(self, codes: Value) -> Value:
        """What `joined_bytes` or `interleaved_bytes` made of `steps`, as codes of the format."""
        if self.highest == 255:
            return codes
        return Value(arith.minui(codes.ir, self.b.const(self.highest, codes.type).ir))

    def _divided(self, x: Value, row: RowScale) -> Value:
        """x / divisor, or what rounds to the same integer; of a broken row, anything."""
        b, reciprocal = self.b, row.reciprocal
        divisor = b.splat(row.divisor, LANES)

        def above(steps: Value) -> Value:
            """What is below the rounder's range would come out above it."""
            return steps if row.measured else b.max(b.const(LOWEST_STEPS, steps.type), steps)

        def divided() -> list[Value]:
            return [above(x / divisor)]

        if reciprocal is None:
            return divided()[0]
        factor = b.splat(reciprocal, LANES)

        def multiplied() -> list[Value]:
            near = above(x * factor)
            if not row.measured:  # an infinite one would leave no remainder
                near = b.min(b.const(-LOWEST_STEPS, near.type), near)
            rest = b.fma(near, b.splat(-row.divisor, LANES), x)
            return [above(b.fma(rest, factor, near))]

        return b.either(row.plain, [x.type], multiplied, divided)[0]

    def _round(self, steps: Value) -> Value:
        """The nearest integers (half to even) of |steps| < 2^22, as i32."""
        whole = steps + ROUNDER
        bits = vec(LANES, "i32") if isinstance(steps.type, ir.VectorType) else "i32"
        return self.b.bitcast(whole, bits) - ROUNDER_BITS

    def _clamp(self, codes: Value) -> Value:
        b = self.b
        return b.max(b.min(codes, self.highest), 0)

    def ranges(self) -> list[Value]:
        """Largest magnitude (f32 bits as i32; infinity's and above: something is not finite),
        lowest and highest value with 0 among them, sum of magnitudes."""
        b = self.b
        floats, ints = vec(LANES, "f32"), vec(LANES, "i32")
        start = [b.const(0, ints), b.const(0.0, floats), b.const(0.0, floats), b.const(0.0, floats)]
        step = CHAINS * LANES
        unrolled = self.count - self.count % step
        with b.loop(0, unrolled, step, carry=start * CHAINS) as loop:
            carry: list[Value] = []
            for chain in range(CHAINS):
                x = self._floats(loop.i + chain * LANES)
                carry += self._widen(loop.args[4 * chain : 4 * chain + 4], x)
            loop.carry(*carry)
        merged = loop.results[:4]
        for chain in range(1, CHAINS):
            merged = self.merge(merged, loop.results[4 * chain : 4 * chain + 4])

        def rest(i: Value, mask: Value | None, *ranges: Value) -> list[Value]:
            return self._widen(ranges, self._floats(unrolled + i, mask))

        merged = sweep(b, self.count - unrolled, False, rest, merged)
        while merged[0].lanes > 1:  # LLVM would take the lanes of floats one by one
            half = merged[0].lanes // 2
            low, high = ([b.slice(x, at, half) for x in merged] for at in (0, half))
            merged = self.merge(low, high)
        return [b.extract(value, 0) for value in merged]

    def _widen(self, ranges: Sequence[Value], x: Value) -> list[Value]:
        b = self.b
        reach, low, high, total = ranges
        magnitude = b.bitcast(x, vec(LANES, "i32")) & MAGNITUDE_BITS
        reach = b.max(magnitude, reach)
        if not self.format.symmetric:
            low, high = b.min(x, low), b.max(x, high)
        if self.format.kind == "binary":
            total = total + b.bitcast(magnitude, vec(LANES, "f32"))
        return [reach, low, high, total]

    def merge(self, a: Sequence[Value], c: Sequence[Value]) -> list[Value]:
        """The ranges of two pieces, scalars or vectors, as one."""
        b = self.b
        return [b.max(a[0], c[0]), b.min(a[1], c[1]), b.max(a[2], c[2]), a[3] + c[3]]


@dataclass(frozen=True)
class StoredCodes(RowCodes):
    """`count` codes that `source` holds as bytes, two's complement where they are signed."""

    def steps(self, i: Value, row: RowScale, mask: Value | None = None) -> Value:
        stored = self.b.load(self.source, self.begin + i, LANES, mask)
        if self.shift == 0:
            return self.b.zext(stored, "i32")
        return self.b.sext(stored, "i32") + self.shift
