"""Writes rows of `planes.layout.PlaneRows`.

A warp has a unit, four codes in a byte each of a lane's word: 32 words of 32 bits, whose
transposition is for each byte (word of a plane) and bit (plane) a word with one bit from each lane.
It takes five exchanges, whatever the number of planes (Warren, "Hacker's Delight", 7-3, across
lanes), and leaves one word of the unit in each lane.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from ..planes.layout import UNIT_BYTES, PlaneRows
from ..rows.threads import CHUNK, Chunk
from .int8 import join_bytes

# By distance, the bits of a word whose index has that bit off.
_LOW_BITS = {16: 0x0000FFFF, 8: 0x00FF00FF, 4: 0x0F0F0F0F, 2: 0x33333333, 1: 0x55555555}


@dataclass(frozen=True)
class PlaneWriter:
    """Codes as bits of planes."""

    layout: PlaneRows

    @property
    def positions(self) -> int:
        return self.layout.positions

    def write(self, b: GpuBuilder, row: Value, position: Value, codes: Chunk, own: Value) -> None:
        """Codes q (i32) at a lane's positions; `own`: whether the row has these positions."""
        if self.layout.format.kind == "binary":  # -1, 1 (and 0 of padding) to bits
            codes = [(q + 1) >> 1 for q in codes]
        word = transpose_bits(b, join_bytes(b, codes))
        planes = self.layout.format.bits
        plane, part = b.lane & 7, b.lane >> 3
        unit = position >> (CHUNK.bit_length() - 1)
        own = own if planes == 8 else own & (plane < planes)
        with b.when(own):
            b.store(word, row, unit * self.layout.unit_bytes + plane * UNIT_BYTES + part * 4)


def transpose_bits(b: GpuBuilder, word: Value) -> Value:
    """Lane r gets bit r of every lane, lane l's in bit l."""
    for distance, low in _LOW_BITS.items():
        upper = (b.lane & distance) != 0
        keep = b.select(upper, b.const(~low, "i32"), low)
        turn = b.select(upper, b.const(32 - distance, "i32"), distance)
        partner = b.exchange(word, "bfly", distance)
        moved = b.intrinsic("llvm.fshl.i32", "i32", partner, partner, turn)
        word = (word & keep) | (moved & (keep ^ -1))
    return word
