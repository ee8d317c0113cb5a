"""How decoded trellis codes meet activations: a thread has one output channel and some rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from abqc.codegen.builder import Value
from abqc.dialects.formats import Half

from ..builder import GpuBuilder
from ..packing.layout import Int8Rows

ONES = 0x01010101


@dataclass(frozen=True)
class Unit:
    """32 codes from `packed` on in padded K, which are the columns `first` .. `end` of K, or those
    that are 32 from there, if these are fewer."""

    packed: Value
    first: Value
    end: Value


class Products(Protocol):
    """Sums over the units of a group, for the thread's rows."""

    def zeros(self) -> list[Value]:
        """The sums of nothing."""
        ...

    def add(self, sums: Sequence[Value], words: Sequence[Value], unit: Unit) -> list[Value]:
        """The sums with those of a unit, whose codes are `words` (i32 of 4)."""
        ...

    def values(self, sums: Sequence[Value]) -> list[Value]:
        """The sums of a whole group for each row, zero points taken into account: f32."""
        ...

    def row_scales(self) -> list[Value]:
        """Of each row; none where activations have no scales."""
        ...


@dataclass(frozen=True)
class Int8Products:
    """Exact products of codes. `rows` are packed rows (`layout`); the last sum is that of the
    weight's codes."""

    b: GpuBuilder
    layout: Int8Rows
    rows: Sequence[Value]

    def zeros(self) -> list[Value]:
        return [self.b.const(0, "i32")] * (len(self.rows) + 1)

    def add(self, sums: Sequence[Value], words: Sequence[Value], unit: Unit) -> list[Value]:
        b, sums = self.b, list(sums)
        signs = "us" if self.layout.unsigned else "ss"
        for number, word in enumerate(words):
            for r, row in enumerate(self.rows):
                codes = b.load(row, "i32", unit.packed + 4 * number, cache="nc")
                sums[r] = b.dot4(codes, word, sums[r], signs=signs)
            sums[-1] = b.dot4(b.const(ONES, "i32"), word, sums[-1], signs="ss")
        return sums

    def values(self, sums: Sequence[Value]) -> list[Value]:
        b = self.b
        zeros = [b.load(row, "i32", self.layout.zero_offset, cache="nc") for row in self.rows]
        return [
            b.to_float(total - zero * sums[-1]) for total, zero in zip(sums, zeros, strict=False)
        ]

    def row_scales(self) -> list[Value]:
        return [self.b.load(row, "f32", self.layout.scale_offset, cache="nc") for row in self.rows]


@dataclass(frozen=True)
class FloatProducts:
    """f32 sums of activations rounded to `half`; `rows` are rows of f32."""

    b: GpuBuilder
    half: Half
    rows: Sequence[Value]

    def zeros(self) -> list[Value]:
        return [self.b.const(0.0, "f32")] * len(self.rows)

    def add(self, sums: Sequence[Value], words: Sequence[Value], unit: Unit) -> list[Value]:
        b, sums = self.b, list(sums)
        for number, word in enumerate(words):
            for byte in range(4):
                column = unit.first + (4 * number + byte)
                inside = column < unit.end
                at = b.min(column, unit.end - 1) * 4
                code = b.to_float((word << (24 - 8 * byte)).sar(24))
                for r, row in enumerate(self.rows):
                    x = b.extend(b.narrow(b.load(row, "f32", at, cache="nc"), self.half))
                    sums[r] = b.fma(b.select(inside, x, 0.0), code, sums[r])
        return sums

    def values(self, sums: Sequence[Value]) -> list[Value]:
        return list(sums)

    def row_scales(self) -> list[Value]:
        return []
