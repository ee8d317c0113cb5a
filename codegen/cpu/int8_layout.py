"""How strategy `int8` stores weight codes: any width at its width, unpacked by shifts and masks.

A *quad* is 4 consecutive k of 16 channels: 64 values, one VPDPBUSD. A unit is 4 or 8 quads. Widths
below 8 are stored as sums of parts of 4, 2 and 1 bits, each part dense: a 64-byte vector of a part
of `p` bits holds the same 64 positions of 8/p quads, quad j at bit j * p of every byte. So any
width unpacks into whole vectors. Values are unsigned below 8 bits, and signed bytes at 8; codes of
indexed formats stand there as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...dialects.formats import NumberFormat
from .panel_layout import PANEL, StoredValue, WeightLayout

QUAD = 4  # consecutive k that VPDPBUSD sums
QUAD_CODES = PANEL * QUAD


def stored_value(format: NumberFormat) -> StoredValue:
    if format.bits == 8 and not format.indexed:
        return StoredValue.signed_byte(format)
    return StoredValue.unsigned(format)


@dataclass(frozen=True)
class BitPart:
    """`bits` bits of every value, from bit `shift` on; 8 // bits quads share a vector."""

    bits: int
    shift: int

    @property
    def quads(self) -> int:
        return 8 // self.bits


def bit_parts(bits: int) -> tuple[BitPart, ...]:
    """A width as parts of 8, 4, 2 and 1 bits, the lowest first."""
    parts, shift = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            parts.append(BitPart(width, shift))
            shift += width
    return tuple(parts)


def unit_quads(bits: int) -> int:
    """Quads of a unit: all that share a vector of the smallest part, and at least 4."""
    return max(4, *(part.quads for part in bit_parts(bits)))


def pack_codes(layout: WeightLayout, values: np.ndarray) -> np.ndarray:
    """Values [panels, 16, padded K] as units of bit parts, by panel."""
    panels = len(values)
    quads = values.reshape(panels, PANEL, -1, QUAD).transpose(0, 2, 1, 3)
    units = quads.reshape(-1, unit_quads(layout.value.bits), QUAD_CODES)
    vectors = []
    for part in bit_parts(layout.value.bits):
        bits = (units >> part.shift) & ((1 << part.bits) - 1)
        shared = bits.reshape(len(units), -1, part.quads, QUAD_CODES)
        shifts = (np.arange(part.quads) * part.bits).astype(np.uint8)[:, None]
        vectors.append(np.bitwise_or.reduce(shared << shifts, axis=2).astype(np.uint8))
    return np.concatenate(vectors, axis=1).reshape(panels, -1)
