"""Dynamic quantization of activations, shared by the integer strategies.

Kernel (i, x: memref<?xf32>, q: memref<?xi8>, m: index): rows i * ROWS .. of the m x k matrix x, each
with a scale and zero point of its own (docs/numerics.md, "Quantizing at run time"), rotated before
if asked. What a row looks like in q is the strategy's: its `RowWriter` gets the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...dialects.formats import NumberFormat
from ...dialects.mlir import ir
from ..builder import INDEX, Builder, Value, buffer, function, vec
from ..isa import Isa

LANES = 16
CHAINS = 4  # independent reductions, so that latency is hidden
ROWS = 4  # of one grid index
INFINITY_BITS = 0x7F800000
MAGNITUDE_BITS = 0x7FFFFFFF
# x + 1.5 * 2^23 rounds |x| < 2^22 half to even and leaves the integer in the low bits.
ROUNDER = 12582912.0
ROUNDER_BITS = 0x4B400000


@dataclass(frozen=True)
class RowScale:
    """Scalars of one row: the scale as stored (NaN: broken row) and what codes are made with.

    `zero` (i32) is the zero point of unsigned codes u = q + shift, the shift included.
    """

    scale: Value
    divisor: Value
    zero: Value
    broken: Value


class RowWriter(Protocol):
    """A strategy's layout of packed rows."""

    @property
    def row_bytes(self) -> int: ...

    def write_row(self, b: Builder, codes: RowCodes, row: RowScale, q: Value, at: Value) -> None:
        """Write the row that begins at byte `at` of `q`."""
        ...


@dataclass(frozen=True)
class PackKernel:
    """The pack kernel of rows of `k` values of `format`, for a layout."""

    format: NumberFormat
    k: int
    hadamard_block: int
    writer: RowWriter

    def emit(self, module: ir.Module, isa: Isa, name: str) -> None:
        with function(module, isa, name, [buffer("f32"), buffer("i8"), INDEX]) as (b, i, x, q, m):
            scratch = b.alloca(self.k, "f32") if self.hadamard_block else None
            first = i * ROWS
            with b.loop(first, b.min(first + ROWS, m)) as rows:
                source, begin = x, rows.i * self.k
                if scratch is not None:
                    _rotate(b, x, begin, scratch, self.k, self.hadamard_block)
                    source, begin = scratch, b.index(0)
                codes = RowCodes(b, self.format, source, begin, self.k)
                row = codes.measure()
                self.writer.write_row(b, codes, row, q, rows.i * self.writer.row_bytes)


def _rotate(b: Builder, x: Value, begin: Value, row: Value, k: int, block: int) -> None:
    """row = the k values of x from `begin` on, Hadamard-transformed in blocks."""
    from .hadamard import emit_transform

    def copy(i: Value, mask: Value | None) -> tuple[()]:
        b.store(b.load(x, begin + i, LANES, mask), row, i, mask)
        return ()

    sweep(b, b.index(k), k % LANES == 0, copy)
    emit_transform(b, b.isa, row, k, block)


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
    """The k floats of one row, at `begin` of `source`, becoming codes."""

    b: Builder
    format: NumberFormat
    source: Value
    begin: Value
    k: int

    @property
    def shift(self) -> int:
        """u = q + shift is unsigned."""
        return -self.format.qmin

    @property
    def highest(self) -> int:
        """The largest u."""
        return self.format.qmax - self.format.qmin

    def measure(self) -> RowScale:
        """The row's dynamic scale and zero point."""
        b = self.b
        reach, low, high, total = self._ranges()
        if self.format.kind == "binary":
            scale = total / float(self.k)
        elif self.format.symmetric:
            scale = b.bitcast(reach, "f32") / float(self.format.qmax)
        else:
            scale = (high - low) / float(self.format.qmax)
        magnitude = b.bitcast(scale, "i32") & MAGNITUDE_BITS
        broken = b.max(reach, magnitude) >= INFINITY_BITS
        one = b.const(1.0, "f32")
        divisor = b.select(broken, one, b.select(scale == 0.0, one, scale))
        stored = scale if self.format.kind == "binary" else divisor
        nan = b.const(float("nan"), "f32")
        zero = b.const(self.shift, "i32")
        if not self.format.symmetric:
            lowest = b.select(broken, b.const(0.0, "f32"), low)
            zero = self._clamp(self._round(-lowest / divisor))
        return RowScale(b.select(broken, nan, stored), divisor, zero, broken)

    def vector(self, i: Value, row: RowScale, mask: Value | None = None) -> Value:
        """Codes u of elements i .. i + 16, vector<16xi32>; 0 off the mask."""
        b = self.b
        x = b.load(self.source, self.begin + i, LANES, mask)
        x = b.select(b.splat(row.broken, LANES), b.const(0.0, x.type), x)
        if self.format.kind == "binary":
            codes = b.select(x < 0.0, b.const(0, vec(LANES, "i32")), b.const(2, vec(LANES, "i32")))
        else:
            steps = self._round(x / b.splat(row.divisor, LANES))
            codes = self._clamp(steps + b.splat(row.zero, LANES))
        return codes if mask is None else b.select(mask, codes, b.const(0, codes.type))

    def _round(self, steps: Value) -> Value:
        """The nearest integers (half to even) of |steps| < 2^22, as i32."""
        whole = steps + ROUNDER
        bits = vec(LANES, "i32") if isinstance(steps.type, ir.VectorType) else "i32"
        return self.b.bitcast(whole, bits) - ROUNDER_BITS

    def _clamp(self, codes: Value) -> Value:
        b = self.b
        return b.max(b.min(codes, self.highest), 0)

    def _ranges(self) -> tuple[Value, Value, Value, Value]:
        """Over the row: largest magnitude (f32 bits; infinity's and above: not finite), lowest and
        highest value with 0 among them, sum of magnitudes."""
        b = self.b
        floats, ints = vec(LANES, "f32"), vec(LANES, "i32")
        start = [b.const(0, ints), b.const(0.0, floats), b.const(0.0, floats), b.const(0.0, floats)]
        step = CHAINS * LANES
        whole = self.k - self.k % step
        carry = [value for _ in range(CHAINS) for value in start]
        with b.loop(0, whole, step, carry=carry) as loop:
            carry = []
            for chain in range(CHAINS):
                x = b.load(self.source, self.begin + (loop.i + chain * LANES), LANES)
                carry += self._widen(loop.args[4 * chain : 4 * chain + 4], x)
            loop.carry(*carry)
        chains = [loop.results[4 * chain : 4 * chain + 4] for chain in range(CHAINS)]
        for at in range(whole, self.k, LANES):
            left = self.k - at
            mask = b.mask(LANES, b.index(left)) if left < LANES else None
            x = b.load(self.source, self.begin + at, LANES, mask)
            chain = (at - whole) // LANES % CHAINS
            chains[chain] = self._widen(chains[chain], x)
        reach, low, high, total = chains[0]
        for other in chains[1:]:
            reach, low = b.max(reach, other[0]), b.min(low, other[1])
            high, total = b.max(high, other[2]), total + other[3]
        return (
            b.reduce(reach, "maxsi"),
            b.reduce(low, "minnumf"),
            b.reduce(high, "maxnumf"),
            b.reduce(total, "add"),
        )

    def _widen(self, ranges: list[Value], x: Value) -> list[Value]:
        b = self.b
        reach, low, high, total = ranges
        magnitude = b.bitcast(x, vec(LANES, "i32")) & MAGNITUDE_BITS
        reach = b.max(magnitude, reach)
        if not self.format.symmetric:
            low, high = b.min(x, low), b.max(x, high)
        if self.format.kind == "binary":
            total = total + b.bitcast(magnitude, vec(LANES, "f32"))
        return [reach, low, high, total]
