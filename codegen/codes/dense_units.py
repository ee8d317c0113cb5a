"""How a unit of codes fills whole vectors: as many whole codes to a byte as fit, the bits that are
left shared by further codes.

A unit of 3 bits is 8 quads in 3 vectors: two whole codes in each byte, and of the three times 2
bits that are left two codes more. Whole codes take a shift and a mask, the others one for each
piece and what joins them. A code that is shared comes as soon as its last vector, so that few
vectors are in use at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ..builder import Value
from .bit_parts import StoredValue, bit_parts, moved_bits
from .ternary_digits import DIGITS, digit_of_bytes

BYTE = 8


@dataclass(frozen=True)
class Piece:
    """`bits` bits of a code, from its bit `shift` on: bits from `begin` on of every byte of vector
    `vector` of a unit. `in_digits`: digit `begin` of every byte (ternary_digits.py)."""

    vector: int
    begin: int
    bits: int
    shift: int
    in_digits: bool = False

    def emit(self, vector: Value) -> Value:
        """The bits of every byte of the piece's vector (i32), moved to where they are in codes."""
        if self.in_digits:
            return digit_of_bytes(vector, self.begin)
        return moved_bits(vector, self.begin, self.bits, self.shift)


def unit_quads(bits: int) -> int:
    """Quads of a unit, the fewest that fill whole vectors, and at least 4."""
    return max(4, *(part.quads for part in bit_parts(bits)))


@cache
def quad_pieces(bits: int) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of each quad of a unit of codes of `bits` bits."""
    quads: list[tuple[Piece, ...]] = []
    shared: list[Piece] = []  # of a code that lacks bits
    for vector in range(unit_quads(bits) * bits // BYTE):
        begins = range(0, BYTE - bits + 1, bits)
        quads += [(Piece(vector, begin, bits, 0),) for begin in begins]
        begin = len(begins) * bits
        while begin < BYTE:
            shift = sum(piece.bits for piece in shared)
            count = min(BYTE - begin, bits - shift)
            shared.append(Piece(vector, begin, count, shift))
            begin += count
            if shift + count == bits:
                quads.append(tuple(shared))
                shared = []
    return tuple(quads)


def value_pieces(value: StoredValue) -> tuple[tuple[Piece, ...], ...]:
    """Likewise, of stored values."""
    if value.in_digits:
        return tuple((Piece(0, digit, value.bits, 0, True),) for digit in range(DIGITS))
    return quad_pieces(value.bits)
