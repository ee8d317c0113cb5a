"""Words of packed weights for a warp that has half of a tile's columns."""

from __future__ import annotations

from collections.abc import Sequence

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from ..weights.layout import BLOCKS, WeightLayout


def words_of_half(
    b: GpuBuilder, layout: WeightLayout, words: Sequence[Value], second: Value
) -> list[Value]:
    """A chunk's words (layout.py) in which the registers of blocks 0 and 1 are those of the second
    half of the tile, blocks 2 and 3, where `second` is 1, and not 0 (i32)."""
    chosen = list(words)
    of_half = BLOCKS // 2 * layout.registers_per_block
    for part in layout.parts:
        fields = layout.lane_bits // part.bits
        for unit in range(layout.chunk_units):
            first = unit * BLOCKS * layout.registers_per_block
            if fields > of_half:  # one word has both halves: the second one in its upper fields
                at = part.first_word + first // fields
                chosen[at] = words[at] >> second * (of_half * part.bits)
                continue
            for i in range(of_half // fields):
                at = part.first_word + first // fields + i
                other = words[at + of_half // fields]
                chosen[at] = b.select(second != 0, other, words[at])
    return chosen
