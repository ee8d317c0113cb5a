"""How strategy `int8` stores weight codes: any width at its width, unpacked by shifts and masks.

A *quad* is 4 consecutive k of 16 channels: 64 values, one VPDPBUSD. A unit is 4 or 8 quads. Widths
below 8 are stored as sums of parts of 4, 2 and 1 bits, each part dense: a 64-byte vector of a part
of `p` bits holds the same 64 positions of 8/p quads, quad j at bit j * p of every byte. So any
width unpacks into whole vectors. Values are unsigned below 8 bits, and signed bytes at 8; codes of
indexed formats stand there as they are. Ternary values may be digits of base 3: a vector then holds
five quads, which are a unit.
"""

from __future__ import annotations

import numpy as np
from abqc.codegen.codes.bit_parts import BitPart, StoredValue, bit_parts
from abqc.codegen.codes.ternary_digits import DIGITS, pack_digits
from abqc.dialects.formats import NumberFormat

from ..panels.layout import PANEL, WeightLayout

QUAD = 4  # consecutive k that VPDPBUSD sums
QUAD_CODES = PANEL * QUAD


def stored_value(format: NumberFormat) -> StoredValue:
    if format.bits == 8 and not format.indexed:
        return StoredValue.signed_byte(format)
    return StoredValue.unsigned(format)


def unit_quads(bits: int) -> int:
    """Quads of a unit: all that share a vector of the smallest part, and at least 4."""
    return max(4, *(part.quads for part in bit_parts(bits)))


def value_parts(value: StoredValue) -> tuple[BitPart, ...]:
    """The parts that stored values are kept in."""
    return (BitPart(value.bits, 0, True),) if value.in_digits else bit_parts(value.bits)


def value_quads(value: StoredValue) -> int:
    """Quads of a unit of stored values."""
    return DIGITS if value.in_digits else unit_quads(value.bits)


def pack_codes(layout: WeightLayout, values: np.ndarray) -> np.ndarray:
    """Values [panels, 16, padded K] as units of bit parts, by panel."""
    panels = len(values)
    quads = values.reshape(panels, PANEL, -1, QUAD).transpose(0, 2, 1, 3)
    units = quads.reshape(-1, value_quads(layout.value), QUAD_CODES)
    if layout.value.in_digits:
        return pack_digits(units.transpose(0, 2, 1)).reshape(panels, -1)
    vectors = []
    for part in bit_parts(layout.value.bits):
        bits = (units >> part.shift) & ((1 << part.bits) - 1)
        shared = bits.reshape(len(units), -1, part.quads, QUAD_CODES)
        shifts = (np.arange(part.quads) * part.bits).astype(np.uint8)[:, None]
        vectors.append(np.bitwise_or.reduce(shared << shifts, axis=2).astype(np.uint8))
    return np.concatenate(vectors, axis=1).reshape(panels, -1)
