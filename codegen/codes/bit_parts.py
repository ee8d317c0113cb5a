"""How codes of any width are stored: as values, in parts of 8, 4, 2 and 1 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.dialects.formats import NumberFormat

from ..builder import Value


@dataclass(frozen=True)
class StoredValue:
    """q - z = mul * v - offset - z, for the stored value v of `bits` bits.

    `indexed` is the format whose codes are stored; v are then its integers, where it has some.
    """

    bits: int
    mul: int
    offset: int
    signed: bool
    indexed: NumberFormat | None = None
    in_digits: bool = False  # five in a byte (ternary_digits.py)

    @staticmethod
    def unsigned(format: NumberFormat) -> StoredValue:
        if format.indexed:
            return StoredValue(format.bits, 1, 0, True, format)
        if format.kind == "binary":
            return StoredValue(1, 2, 1, False)
        return StoredValue(format.bits, 1, -format.qmin, False, in_digits=format.in_digits)

    @staticmethod
    def signed_byte(format: NumberFormat) -> StoredValue:
        """For formats of 8 bits."""
        return StoredValue(8, 1, 0 if format.symmetric else -128, True)

    @property
    def highest(self) -> int:
        """The largest magnitude of v."""
        if self.indexed is not None:
            return self.indexed.qmax if self.indexed.has_integers else 0
        return 128 if self.signed else (1 << self.bits) - 1

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """v, or the code of an indexed format, as the low bits of uint8."""
        if self.indexed is not None:
            return self.indexed.to_bits(codes)
        return ((codes.astype(np.int16) + self.offset) // self.mul).astype(np.uint8)

    def numbers(self, stored: np.ndarray) -> np.ndarray:
        """v of what `encode` gave; 0 where it is no integer, so that sums of v mean nothing."""
        if self.indexed is None:
            return stored.astype(np.int8) if self.signed else stored
        if not self.indexed.has_integers:
            return np.zeros_like(stored)
        return self.indexed.integers(stored)


@dataclass(frozen=True)
class BitPart:
    """`bits` bits of every value, from bit `shift` on; 8 // bits quads share a vector."""

    bits: int
    shift: int

    @property
    def quads(self) -> int:
        return 8 // self.bits

    def emit(self, vector: Value, quad: int) -> Value:
        """The bits of quad `quad` of a part's vector (i32), moved to where they are in values."""
        return moved_bits(vector, quad * self.bits, self.bits, self.shift)


def moved_bits(vector: Value, begin: int, bits: int, shift: int) -> Value:
    """`bits` bits of every byte of a vector (i32), moved from bit `begin` to bit `shift`."""
    if bits == 8:
        return vector
    distance = begin - shift
    moved = vector
    if distance:
        moved = vector >> distance if distance > 0 else vector << -distance
    return moved & (((1 << bits) - 1) << shift) * 0x01010101


def bit_parts(bits: int) -> tuple[BitPart, ...]:
    """A width as parts of 8, 4, 2 and 1 bits, the lowest first."""
    parts, shift = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            parts.append(BitPart(width, shift))
            shift += width
    return tuple(parts)
