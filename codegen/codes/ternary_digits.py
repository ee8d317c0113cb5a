"""Ternary codes at 1.6 bits: five digits of base 3 in a byte, as in llama.cpp's TQ1_0.

The number n = d0 * 81 + d1 * 27 + d2 * 9 + d3 * 3 + d4 is stored as ceil(n * 256 / 243). As a part
of 256 that is a little more than 0.d0d1d2d3d4 in base 3, so that digit j is the integer part of
three times the fraction of byte * 3^j: products of 8 bits, without a division.
"""

from __future__ import annotations

import numpy as np

from ..builder import Value

DIGITS = 5  # of a byte
WORD_BYTES = 4
_POWERS = 3 ** np.arange(DIGITS - 1, -1, -1)
_EVEN_BYTES, _EVEN_DIGITS = 0x00FF00FF, 0x00030003


def pack_digits(digits: np.ndarray) -> np.ndarray:
    """Digits 0, 1, 2 [..., 5] as bytes, uint8 [...]."""
    number = digits.astype(np.int32) @ _POWERS.astype(np.int32)
    return ((number * 256 + 242) // 243).astype(np.uint8)


def unpack_digits(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack_digits`: uint8 [..., 5]."""
    fraction = packed.astype(np.int32)[..., None] * 3 ** np.arange(DIGITS) & 0xFF
    return (fraction * 3 >> 8).astype(np.uint8)


def pack_words(registers: np.ndarray, lane_bits: int) -> np.ndarray:
    """Registers, uint32 [..., R] with a digit in each lane of 8 or 16 bits, as words [..., R / J]
    in whose lanes are the digits of J = 5 lane_bits / 8 registers."""
    lanes, shared = WORD_BYTES * 8 // lane_bits, DIGITS * lane_bits // 8
    digits = registers.view(np.uint8).reshape(*registers.shape, lanes, -1)[..., 0]
    by_word = digits.reshape(*registers.shape[:-1], -1, shared, lanes).swapaxes(-1, -2)
    by_byte = by_word.reshape(*by_word.shape[:-2], WORD_BYTES, DIGITS)
    return np.ascontiguousarray(pack_digits(by_byte)).view(np.uint32)[..., 0]


def unpack_words(words: np.ndarray, lane_bits: int) -> np.ndarray:
    """The inverse of `pack_words`."""
    lanes, shared = WORD_BYTES * 8 // lane_bits, DIGITS * lane_bits // 8
    by_byte = unpack_digits(np.ascontiguousarray(words[..., None]).view(np.uint8))
    digits = by_byte.reshape(*words.shape, lanes, shared).swapaxes(-1, -2)
    wide = np.ascontiguousarray(digits.astype(f"u{lane_bits // 8}"))
    return wide.view(np.uint32).reshape(*words.shape[:-1], -1)


def digit_of_bytes(words: Value, digit: int) -> Value:
    """Digit `digit` of each of the four bytes of i32 words, in the place of the byte."""
    odd = digit_of_even_bytes(words >> 8, digit)
    return digit_of_even_bytes(words, digit) | (odd << 8)


def digit_of_even_bytes(words: Value, digit: int) -> Value:
    """The same of bytes 0 and 2; 0 in the place of the others."""
    fraction = ((words & _EVEN_BYTES) * 3**digit) & _EVEN_BYTES
    return ((fraction * 3) >> 8) & _EVEN_DIGITS
