"""Caches of keys and values: what a sample has had, and its new rows behind them.

A cache is a buffer [B, H, capacity, D] with a sample's rows at its beginning; how many these are
differs from sample to sample. `CacheCodes` are caches of integers (onnxruntime's
GroupQueryAttention).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import reshape
from ..values import symbolic
from ..values.element_types import I8, I64, INDEX, U8, ElementType
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import Value
from .cache_updates import updated


def appended(
    b: Builder, past: Value | None, new: Value, past_lengths: Value, capacity: Dim
) -> Value:
    """A buffer of `capacity` rows with a sample's `past_lengths[b]` rows of the past and, behind
    them, the new ones; what is behind these is left open."""
    return updated(b, past, new, past_lengths, capacity, 2)


def from_row(b: Builder, x: Value, begins: Value, count: Dim) -> Value:
    """Rows `begins[b]` to `begins[b] + count` of each sample of [B, H, T, D]; the last row again
    where there are no more."""
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    last = b.scalar(x.dims[2] - 1)

    def body(at: list[Scalar]) -> Scalar:
        place = (at[2] + b.read(begins, [at[0]]).cast(INDEX)).clamp(0, last)
        return b.read(source, [at[0], at[1], place, at[3]])

    return b.tabulate([*x.dims[:2], count, x.dims[3]], x.dtype, body)


def filled_up(b: Builder, past: Value, new: Value, before: Dim) -> Value:
    """A buffer with new rows behind the first `before` ones, the same number for all samples."""
    total = before + new.dims[2]
    fits = symbolic.negated(symbolic.is_less(past.dims[2], total))
    b.require(fits, f"the cache {past} has no room for the new rows {new}")
    b.require(symbolic.negated(symbolic.is_less(before, ZERO)), "a past has a negative length")
    begin = b.scalar(before).cast(I64)
    lengths = Value(I64, new.dims[:1], ssa=b.full(I64, new.dims[:1], begin))
    return appended(b, past, new, lengths, past.dims[2])


def of_beams(b: Builder, x: Value, beams: Value, before: Dim) -> Value:
    """[samples * beams, H, T, D] with each of the first `before` rows from the beam that had it:
    number `beams[sample, beam, row]` of the same sample."""
    width = b.scalar(beams.dims[1])
    b.require_equal(beams.dims[0] * beams.dims[1], x.dims[0], f"{beams} does not fit {x}")
    source, origins = (Value(v.dtype, v.dims, ssa=b.tensor(v)) for v in (x, beams))
    had, room = b.scalar(before), b.scalar(beams.dims[2] - 1)

    def body(at: list[Scalar]) -> Scalar:
        line, head, row, column = at
        sample, beam = line // width, line % width
        origin = b.read(origins, [sample, beam, row.minimum(room)]).cast(INDEX)
        is_old = row < had
        b.check(~is_old | ((origin >= 0) & (origin < width)), "a beam is out of range")
        origin = is_old.select(origin.clamp(0, width - 1), beam)
        return b.read(source, [sample * width + origin, head, row, column])

    return b.tabulate(x.dims, x.dtype, body)


@dataclass(frozen=True)
class CacheCodes:
    """Rows as `scale * code`, codes of 8 bits, or of 4 bits with 8 added, two in a byte.

    `scale` [1] or [1, H, 1, D].
    """

    scale: Value
    bits: int

    @property
    def dtype(self) -> ElementType:
        return I8 if self.bits == 8 else U8

    def encoded(self, b: Builder, x: Value) -> Value:
        """[B, H, T, D] as [B, H, T, bytes]: to the nearest code, halves to the even one."""
        low = -(1 << (self.bits - 1))

        def code(value: Scalar, step: Scalar) -> Scalar:
            nearest = (value / step.cast(value.dtype)).round_even()
            return nearest.clamp(float(low), float(-low - 1)).cast(I8)

        codes = b.elementwise([x, self._wide(b)], I8, code)
        if self.bits == 8:
            return codes
        source = Value(I8, codes.dims, ssa=b.tensor(codes))

        def packed(at: list[Scalar]) -> Scalar:
            *lead, column = at
            first, second = (b.read(source, [*lead, column * 2 + i]) + 8 for i in range(2))
            return first.cast(U8) | second.cast(U8).shift_left(4)

        b.require_equal(x.dims[3] // 2 * 2, x.dims[3], f"the rows of {x} have no even length")
        return b.tabulate([*x.dims[:3], x.dims[3] // 2], U8, packed)

    def decoded(self, b: Builder, codes: Value, width: Dim, dtype: ElementType) -> Value:
        """Rows of `width` elements."""
        if self.bits == 4:
            source = Value(U8, codes.dims, ssa=b.tensor(codes))

            def unpacked(at: list[Scalar]) -> Scalar:
                *lead, column = at
                byte = b.read(source, [*lead, column // 2])
                return (byte.shift_right((column % 2).cast(U8) * 4) & 15).cast(I8) - 8

            codes = b.tabulate([*codes.dims[:3], width], I8, unpacked)
        return b.elementwise(
            [codes, self._wide(b)], dtype, lambda c, step: c.cast(dtype) * step.cast(dtype)
        )

    def _wide(self, b: Builder) -> Value:
        return reshape(b, self.scale, [ONE]) if self.scale.rank < 4 else self.scale
