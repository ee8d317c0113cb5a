"""Stored codes to registers of an MMA or a dot product, in registers (see layout.py for where the
bits are).

    s8          4 codes a register, each `s8_factor(format)` * q. Asymmetric codes stand at the
                bottom of a byte (u8, factor 1), symmetric ones at its top (s8), so that two's
                complement needs no sign extension. An accumulator of such products is an exact
                multiple of the factor; `>>` (arithmetic) by `s8_shift(format)` gives that of the
                codes. Indexed codes become their integers, digits their q (factor 1).
    f16, bf16   2 codes a register, each exactly q - zero. The bits are put into the mantissa of
                2^10 (2^7), which is then subtracted: Kim et al., "Who Says Elephants Can't Run"
                (2022), as in Marlin (Frantar et al., 2024). Indexed codes become their values,
                those of a table rounded to 16 bits.

Instructions for a code, counted in the machine code for sm_80 (shifts are shared by registers, a
mask and what is combined with it are one `lop3`):

    bits              1     2     3     4     5     6     7     8
    s8              0.47  0.44  0.95  0.38  0.95  0.95  1.45  0
    f16             1.05  1.06  1.9   1.1   1.9   1.9   3.0   1.25
    bf16            1.1   1.1   1.95  1.4   2.2   2.2   3.0   3.3
    f16, bf16 with zero points: 0.5 more
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from abqc.codegen.builder import Value, vec
from abqc.codegen.codes.stored_values import integer_bytes
from abqc.codegen.codes.ternary_digits import DIGITS, digit_of_bytes, digit_of_even_bytes
from abqc.dialects.formats import NumberFormat
from abqc.dialects.minifloats import Minifloat

from ..builder import GpuBuilder
from ..packing.layout import FloatElement, round_to
from .codebook import codebook_s8
from .layout import WORD_BITS, BitPart, WeightLayout

MASKED_XOR = (0xF0 & 0xCC) ^ 0xAA  # of lop3: (a & b) ^ c

# Binary codes become 0x40 for +1 and 0xC0 for -1: bit 6 always, and the inverted code above it.
_BINARY_SHIFT = 6


def s8_shift(format: NumberFormat) -> int:
    """The binary logarithm of `s8_factor`."""
    if format.kind == "binary":
        return _BINARY_SHIFT
    if format.indexed or format.in_digits:
        return 0
    return 8 - format.bits if format.symmetric else 0


def s8_factor(format: NumberFormat) -> int:
    """What the codes are multiplied with in s8 registers."""
    return 1 << s8_shift(format)


def byte_type(format: NumberFormat) -> Literal["s8", "u8"]:
    """How the bytes of a register that `s8_register` makes are read."""
    return "s8" if format.symmetric else "u8"


def s8_register(
    b: GpuBuilder, layout: WeightLayout, words: Sequence[Value], register: int
) -> Value:
    """Register `register` (layout.py) of a chunk: 4 bytes `s8_factor` * q, i32.

    `words` are the `layout.chunk_words` words (i32) of this lane, in the order of memory.
    """
    assert layout.lane_bits == 8
    if layout.format.in_digits:  # less 1, without a borrow from the next byte
        raised = _digits(layout, words, register) | _repeat(0x80, 8)
        return (raised - _repeat(1, 8)) ^ _repeat(0x80, 8)
    if layout.format.indexed:
        assert layout.format.minifloat is not None, f"{layout.format.name} has no integers"
        return integer_bytes(_gather(b, layout, words, register, 0, 0), layout.format.minifloat)
    if layout.bits == 8:
        return words[register]
    place = 8 - layout.bits if layout.format.symmetric else 0
    flipped = 0xC0 if layout.format.kind == "binary" else 0
    return _gather(b, layout, words, register, place, flipped)


@dataclass(frozen=True)
class HalfType:
    """A 16-bit float as a place for integers: `magic` is 2^mantissa, below which bits are added."""

    element: FloatElement
    mantissa: int
    bias: int
    magic: int

    @property
    def vector(self) -> object:
        return vec(2, self.element)


HALF_TYPES: dict[str, HalfType] = {
    "f16": HalfType("f16", 10, 15, 0x6400),
    "bf16": HalfType("bf16", 7, 127, 0x4300),
}


def half_register(
    b: GpuBuilder,
    layout: WeightLayout,
    words: Sequence[Value],
    register: int,
    element: FloatElement = "f16",
    minus_zero: Value | None = None,
) -> Value:
    """Register `register` (layout.py) of a chunk: 2 codes as exact floats, vector<2 x element>.

    `words` as for `s8_register`. `minus_zero` is -zero of the column, twice, in a vector of that
    type; it is added (exactly) where given.
    """
    assert layout.lane_bits == 16
    half = HALF_TYPES[element]
    if layout.format.indexed:
        return _indexed_values(b, layout.format, _gather(b, layout, words, register, 0, 0), half)
    if layout.format.in_digits:
        digits = _digits(layout, words, register)
        return _unscale(b, half, digits | _repeat(half.magic, 16), 0, 1)
    if layout.bits > half.mantissa:
        value = _by_nibbles(b, layout, words, register, half)
    else:
        value = _by_mantissa(b, layout, words, register, half)
    return value if minus_zero is None else value + minus_zero


def _digits(layout: WeightLayout, words: Sequence[Value], register: int) -> Value:
    """The digits (0, 1, 2) of a register, one at the bottom of each lane."""
    word, field = words[register // layout.word_digits], register % layout.word_digits
    if layout.lane_bits == 8:
        return digit_of_bytes(word, field)
    byte, digit = divmod(field, DIGITS)
    return digit_of_even_bytes(_shift(word, -8 * byte), digit)


def _indexed_values(b: GpuBuilder, format: NumberFormat, codes: Value, half: HalfType) -> Value:
    """The values of two codes, each at the bottom of a lane of 16 bits."""
    if format.minifloat is not None:
        return _minifloats(b, codes, format.minifloat, half)
    assert format.table is not None
    bits = round_to(format.values, half.element).view(np.uint16)
    low = codebook_s8(b, codes, [int(x) & 0xFF for x in bits])
    high = codebook_s8(b, codes, [int(x) >> 8 for x in bits])
    return b.from_bits((low & 0x00FF00FF) | ((high & 0x00FF00FF) << 8), half.vector)


def _minifloats(b: GpuBuilder, codes: Value, type_: Minifloat, half: HalfType) -> Value:
    """Exact: moved to the place of a longer mantissa, and multiplied by a power of two."""
    sign_bit = type_.bits - 1
    sign = (codes & _repeat(1 << sign_bit, 16)) << (15 - sign_bit)
    magnitude = codes & _repeat((1 << sign_bit) - 1, 16)
    bits = sign | (magnitude << (half.mantissa - type_.mantissa_bits))
    factor = b.const(2.0 ** (half.bias - type_.bias), half.vector)
    return b.fma(b.from_bits(bits, half.vector), factor, b.const(-0.0, half.vector))


def _by_mantissa(
    b: GpuBuilder, layout: WeightLayout, words: Sequence[Value], register: int, half: HalfType
) -> Value:
    """All bits of a code at one place of the mantissa."""
    bits, format = layout.bits, layout.format
    first = layout.parts[0]
    _, field = _field(layout, first, words, register)
    if format.kind == "binary":  # one bit up, so that all constants of 2 v - 1 are exact
        place = 1 + field % _places(1, 2, half)
    else:
        place = field % _places(first.bits, bits, half)
    magic = half.magic
    if format.symmetric and format.kind != "binary":
        magic |= 1 << (place + bits - 1)  # flips the sign: the code plus 2^(bits - 1)
    joined = _gather(b, layout, words, register, place, magic)
    if format.kind == "binary":
        return _unscale(b, half, joined, place - 1, 1)
    return _unscale(b, half, joined, place, 0 if not format.symmetric else 1 << (bits - 1))


def _places(part_bits: int, bits: int, half: HalfType) -> int:
    """Bits of a lane that a field need not be shifted within: its code ends below the exponent.

    A multiple of `part_bits`.
    """
    return ((half.mantissa - bits) // part_bits + 1) * part_bits


def _unscale(b: GpuBuilder, half: HalfType, value: Value, place: int, offset: int) -> Value:
    """(value - 2^mantissa) / 2^place - offset, exactly, of the bits of two floats."""
    floats = b.from_bits(value, half.vector)
    base = float(1 << half.mantissa) * 2.0**-place + offset
    if place == 0:
        if half.element == "f16":
            return floats - base
        return b.fma(floats, b.const(1.0, half.vector), b.const(-base, half.vector))
    return b.fma(floats, b.const(2.0**-place, half.vector), b.const(-base, half.vector))


def _by_nibbles(
    b: GpuBuilder, layout: WeightLayout, words: Sequence[Value], register: int, half: HalfType
) -> Value:
    """8 bits in a mantissa of 7: low + 16 * high, each exact."""
    (part,) = layout.parts
    word, field = _field(layout, part, words, register)
    high_mask = half.magic | (8 if layout.format.symmetric else 0)
    low = _masked_xor(b, _shift(word, -field), 0xF, half.magic, 16)
    high = _masked_xor(b, _shift(word, -field - 4), 0xF, high_mask, 16)
    base = float(1 << half.mantissa)
    offset = 128.0 if layout.format.symmetric else 0.0
    sixteen, one = b.const(16.0, half.vector), b.const(1.0, half.vector)
    highs = b.fma(b.from_bits(high, half.vector), sixteen, b.const(-16 * base, half.vector))
    lows = b.fma(b.from_bits(low, half.vector), one, b.const(-base - offset, half.vector))
    return b.fma(highs, one, lows)


def _field(
    layout: WeightLayout, part: BitPart, words: Sequence[Value], register: int
) -> tuple[Value, int]:
    """The word that holds a part of a register, and the bit of its 8- or 16-bit lanes."""
    fields = layout.lane_bits // part.bits
    return words[part.first_word + register // fields], register % fields * part.bits


def _gather(
    b: GpuBuilder,
    layout: WeightLayout,
    words: Sequence[Value],
    register: int,
    place: int,
    flipped: int,
) -> Value:
    """The codes of a register at bit `place` of its lanes, XORed with `flipped`; 0 elsewhere."""
    lane_bits = layout.lane_bits
    result: Value | int = flipped
    for part in layout.parts:
        word, field = _field(layout, part, words, register)
        moved = _shift(word, place + part.shift - field)
        mask = ((1 << part.bits) - 1) << (place + part.shift)
        result = _masked_xor(b, moved, mask, result, lane_bits)
    assert isinstance(result, Value)
    return result


def _masked_xor(b: GpuBuilder, word: Value, mask: int, flipped: Value | int, bits: int) -> Value:
    """(word & mask) ^ flipped, masks in every lane of `bits` bits.

    As one `lop3`: with two constants, ptxas would make it two instructions.
    """
    repeated = b.const(_repeat(mask, bits), "i32")
    if isinstance(flipped, int):
        if flipped == 0:
            return word & repeated
        flipped = b.const(_repeat(flipped, bits), "i32")
    return b.logic3(word, repeated, flipped, MASKED_XOR)


def _shift(word: Value, left: int) -> Value:
    if left == 0:
        return word
    return word << left if left > 0 else word >> -left


def _repeat(bits: int, lane_bits: int) -> int:
    """`bits` in every lane of a word."""
    return sum(bits << at for at in range(0, WORD_BITS, lane_bits))
