"""Caches of keys and values: what a sample has had, and its new rows behind them.

A cache is a buffer [B, H, capacity, D] with a sample's rows at its beginning; how many these are
differs from sample to sample. `CacheCodes` are caches of integers (onnxruntime's
GroupQueryAttention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..building.shaping import pad, reshape
from ..values import symbolic
from ..values.element_types import I8, INDEX, U8, ElementType
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import Value


def appended(
    b: Builder, past: Value | None, new: Value, past_lengths: Value, capacity: Dim
) -> Value:
    """A buffer of `capacity` rows with a sample's `past_lengths[b]` rows of the past and, behind
    them, the new ones; what is behind these is left open."""
    dims = (*new.dims[:2], capacity, new.dims[3])
    added = Value(new.dtype, new.dims, ssa=b.tensor(new))
    count = b.scalar(new.dims[2])
    old = None if past is None else Value(past.dtype, past.dims, ssa=b.tensor(past))
    has_old = past is not None and past.dims[2] != ZERO
    room = b.scalar(past.dims[2]) if past is not None else const(0, INDEX)

    def body(at: list[Scalar]) -> Scalar:
        place = at[2] - b.read(past_lengths, [at[0]]).cast(INDEX)
        is_new = (place >= 0) & (place < count)
        value = b.read(added, [at[0], at[1], is_new.select(place, 0), at[3]])
        other = value.like(0)
        if has_old and old is not None:
            # Nothing is read of a past without rows: where it has none, all are new or zeros.
            other = _read_within(b, old, at, room)
        return is_new.select(value, other)

    if has_old and past is not None and past.dims[2].value is None:
        # At least one row, so that a loop may read row 0 of a past that has none in this run.
        old = _with_room(b, past, symbolic.maximum(past.dims[2], ONE))
    return b.tabulate(dims, new.dtype, body)


def _with_room(b: Builder, past: Value, length: Dim) -> Value:
    ends = [ZERO, ZERO, length - past.dims[2], ZERO]
    wide = pad(b, past, [0] * 4, ends)
    return Value(past.dtype, wide.dims, ssa=b.tensor(wide))


def _read_within(b: Builder, old: Value, at: Sequence[Scalar], room: Scalar) -> Scalar:
    inside = at[2] < room
    value = b.read(old, [at[0], at[1], inside.select(at[2], 0), at[3]])
    return inside.select(value, 0)


def from_row(b: Builder, x: Value, begins: Value, count: Dim) -> Value:
    """Rows `begins[b]` to `begins[b] + count` of each sample of [B, H, T, D]; the last row again
    where there are no more."""
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    last = b.scalar(x.dims[2] - 1)

    def body(at: list[Scalar]) -> Scalar:
        place = (at[2] + b.read(begins, [at[0]]).cast(INDEX)).clamp(0, last)
        return b.read(source, [at[0], at[1], place, at[3]])

    return b.tabulate([*x.dims[:2], count, x.dims[3]], x.dtype, body)


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
