"""Tables of sums of activations, for weights of one bit as strategy `int8` stores them.

Half of a stored byte, a nibble, holds the weights of one channel at four places of K that lie 4
apart. So the 64 bytes of a unit, with those of one place of a quad side by side, look up sums for
16 channels in four tables of 16 bytes by one VPSHUFB:

    table[half][part][k % 4][nibble] = sum over bits c of the nibble of u[16 half + 4 c + k % 4]

A sum that fits a byte twice has one part. Others have two, their low `split` bits and what is above
these, so that no addition of bytes overflows or saturates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from abqc.codegen.builder import Builder, Value
from abqc.codegen.codes.dense_units import unit_quads

from ..int8.layout import QUAD
from ..panels.layout import PANEL, RowLayout

BITS = 4  # of a nibble: weights that are looked up at once
HALVES = 2  # of a byte
TERMS = QUAD * unit_quads(1)  # of a unit
HALF_TERMS = TERMS // HALVES
ENTRIES = 1 << BITS
TABLE_BYTES = QUAD * ENTRIES  # for the places of a quad
BYTE_MAX = 255


@dataclass(frozen=True)
class Tables:
    """The tables of a row whose codes are at most `highest`."""

    highest: int

    @property
    def largest_sum(self) -> int:
        return BITS * self.highest

    @cached_property
    def split(self) -> int:
        """Bits of a sum's lower part; 0: it has one part."""
        if HALVES * self.largest_sum <= BYTE_MAX:
            return 0
        return min(range(1, 8), key=self._largest_part)

    @property
    def parts(self) -> int:
        return 2 if self.split else 1

    @property
    def lookups(self) -> int:
        """So many sums of each part can be added up in a byte."""
        largest = self._largest_part(self.split) if self.split else self.largest_sum
        return BYTE_MAX // largest

    def _largest_part(self, split: int) -> int:
        return max((1 << split) - 1, self.largest_sum >> split)

    @property
    def unit_bytes(self) -> int:
        return HALVES * self.parts * TABLE_BYTES

    def offset(self, half: int, part: int) -> int:
        """Where a part of half of a unit is, in bytes."""
        return (half * self.parts + part) * TABLE_BYTES

    def of_codes(self, b: Builder, u: Value) -> list[Value]:
        """The parts of the tables of half of a unit, of its codes vector<[bit][k % 4]xi8>."""
        total = None
        for bit in range(BITS):
            places = [bit * QUAD + place for place in range(QUAD) for _ in range(ENTRIES)]
            term = b.zext(b.shuffle(u, u, places), "i16") * b.consts(_has(bit) * QUAD, "i16")
            total = term if total is None else total + term
        assert total is not None
        if not self.split:
            return [b.trunc(total, "i8")]
        low = total & ((1 << self.split) - 1)
        return [b.trunc(part, "i8") for part in (low, total >> self.split)]


@dataclass(frozen=True)
class TableRowLayout(RowLayout):
    """A packed row: what strategy `int8` has there, then the tables of every unit."""

    tables: Tables

    @property
    def tables_offset(self) -> int:
        return super().row_bytes

    @property
    def segment_table_bytes(self) -> int:
        """From one segment's tables to the next one's."""
        return self.reduction.segment_pitch // TERMS * self.tables.unit_bytes

    @property
    def row_bytes(self) -> int:
        units = self.reduction.padded_k // TERMS
        return self.tables_offset + units * self.tables.unit_bytes


def ones(b: Builder) -> Value:
    """The table where all codes are 1."""
    return b.consts([nibble.bit_count() for nibble in range(ENTRIES)] * QUAD, "i8")


def by_place(b: Builder, codes: Value) -> Value:
    """The 64 bytes [channel][place] of a unit as [place][channel]."""
    order = [channel * QUAD + place for place in range(QUAD) for channel in range(PANEL)]
    return b.shuffle(codes, codes, order)


def by_channel(b: Builder, sums: Value) -> Value:
    """The inverse of `by_place`."""
    order = [place * PANEL + channel for channel in range(PANEL) for place in range(QUAD)]
    return b.shuffle(sums, sums, order)


def nibbles(codes: Value) -> tuple[Value, Value]:
    """The halves of bytes, the lower ones first."""
    return codes & (ENTRIES - 1), codes >> BITS


def _has(bit: int) -> list[int]:
    """Of every nibble, whether it has a bit."""
    return [nibble >> bit & 1 for nibble in range(ENTRIES)]
