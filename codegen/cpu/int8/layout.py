"""How strategy `int8` stores weight codes: any width at its width, unpacked by shifts and masks.

A *quad* is 4 consecutive k of 16 channels: 64 values, one VPDPBUSD. A unit is 4 or 8 quads. Widths
below 8 fill vectors of 64 bytes densely, with whole codes and such that are shared by vectors
(codes/dense_units.py): byte i of a vector has bits of value i of its quads. So any width unpacks
into whole vectors. Values are unsigned below 8 bits, and signed bytes at 8; codes of indexed
formats stand there as they are. Ternary values may be digits of base 3: a vector then holds five
quads, which are a unit.
"""

from __future__ import annotations

import numpy as np
from abqc.codegen.codes.bit_parts import StoredValue
from abqc.codegen.codes.dense_units import quad_pieces, value_pieces
from abqc.codegen.codes.ternary_digits import pack_digits
from abqc.dialects.formats import NumberFormat

from ..panels.layout import PANEL, WeightLayout

QUAD = 4  # consecutive k that VPDPBUSD sums
QUAD_CODES = PANEL * QUAD


def stored_value(format: NumberFormat) -> StoredValue:
    if format.bits == 8 and not format.indexed:
        return StoredValue.signed_byte(format)
    return StoredValue.unsigned(format)


def value_quads(value: StoredValue) -> int:
    """Quads of a unit of stored values."""
    return len(value_pieces(value))


def pack_codes(layout: WeightLayout, values: np.ndarray) -> np.ndarray:
    """Values [panels, 16, padded K] as dense units, by panel."""
    panels = len(values)
    quads = values.reshape(panels, PANEL, -1, QUAD).transpose(0, 2, 1, 3)
    units = quads.reshape(-1, value_quads(layout.value), QUAD_CODES)
    if layout.value.in_digits:
        return pack_digits(units.transpose(0, 2, 1)).reshape(panels, -1)
    bits = layout.value.bits
    vectors = np.zeros((len(units), units.shape[1] * bits // 8, QUAD_CODES), np.uint8)
    for quad, pieces in enumerate(quad_pieces(bits)):
        for piece in pieces:
            part = (units[:, quad] >> piece.shift) & ((1 << piece.bits) - 1)
            vectors[:, piece.vector] |= (part << piece.begin).astype(np.uint8)
    return vectors.reshape(panels, -1)
