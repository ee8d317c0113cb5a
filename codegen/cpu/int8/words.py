"""Zero points and offsets of short segments, taken out by one product of pairs of words.

    sum (u - za)(mul v - c)  =  mul sum uv  +  (-mul za, terms za - sum u) . (sum v, c)

Where segments are short, both pairs are words of 16 bits: VPMADDWD or, with AVX-512, VPDPWSSD adds
their product to an accumulator, in place of one or two slow products of 32 bits.
"""

from __future__ import annotations

from abqc.codegen.builder import Builder, Value, vec

from ..panels.layout import PANEL, RowLayout, WeightLayout

WORD_MAX = (1 << 15) - 1


def fits_words(weight: WeightLayout, row: RowLayout) -> bool:
    """Whether no segment's pairs reach beyond 16 bits, signed."""
    u_highest = (1 << row.code_bits) - 1
    return weight.reduction.segment_size * max(u_highest, weight.value.highest) <= WORD_MAX


def word_products(b: Builder, row: Value, weights: Value) -> Value:
    """row . weights[16]: i32, of which row and weights are pairs of words, low first."""
    lanes = min(PANEL, b.isa.lanes(32))
    pair = b.bitcast(b.splat(row, lanes), vec(2 * lanes, "i16"))
    parts = []
    for begin in range(0, PANEL, lanes):
        part = weights if lanes == PANEL else b.slice(weights, begin, lanes)
        words = b.bitcast(part, pair.type)
        parts.append(b.intrinsic(b.isa.madd_i16, vec(lanes, "i32"), pair, words))
    return b.join(*parts)
