"""The bytes that strategy `int8` works on: weights in panels, activations in rows.

Weights. A panel holds 16 output channels; it is one contiguous piece of the blob:

    codes    by segment, unit and bit part (below), 64-byte aligned
    scales   [groups][16]    f16 or f32
    sums     [segments][16]  i16 or i32: sum of the stored values over the segment
    zeros    [groups][16]    u8, asymmetric formats only

A *quad* is 4 consecutive k of 16 channels: 64 values, one VPDPBUSD. A unit is 4 or 8 quads. Widths
below 8 are stored as sums of parts of 4, 2 and 1 bits, each part dense: a 64-byte vector of a part
of `p` bits holds the same 64 positions of 8/p quads, quad j at bit j * p of every byte. So any
width unpacks with shifts and masks, into whole vectors.

The stored value v of a code q is unsigned below 8 bits and signed at 8;
q - z = mul * v - offset - z.

Activations. A row is

    scale f32, zero i32, sums i32[segments] of the stored codes, then at `codes_offset` the codes

with codes as u8: u = q + shift, and zero including the shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...dialects.formats import NumberFormat, QuantizedTensor, Scheme
from .layout import Reduction, align

PANEL = 16  # output channels of a panel
QUAD = 4  # consecutive k that VPDPBUSD sums
QUAD_CODES = PANEL * QUAD
VECTOR_BYTES = 64


@dataclass(frozen=True)
class StoredValue:
    """q - z = mul * v - offset - z, for the stored value v of `bits` bits."""

    bits: int
    mul: int
    offset: int
    signed: bool

    @staticmethod
    def of(format: NumberFormat) -> StoredValue:
        bits = format.bits
        if format.kind == "binary":
            return StoredValue(1, 2, 1, False)
        if bits == 8:
            return StoredValue(8, 1, 0 if format.symmetric else -128, True)
        return StoredValue(bits, 1, -format.qmin, False)

    @property
    def highest(self) -> int:
        """The largest magnitude of v."""
        return 128 if self.signed else (1 << self.bits) - 1

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """v as the low bits of uint8."""
        return ((codes.astype(np.int16) + self.offset) // self.mul).astype(np.uint8)


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


def activation_shift(format: NumberFormat) -> int:
    """What is added to a code to make it unsigned."""
    return -format.qmin


@dataclass(frozen=True)
class WeightLayout:
    """Where the parts of a panel are, in bytes from its begin."""

    value: StoredValue
    symmetric: bool
    scale_bits: int
    reduction: Reduction

    @staticmethod
    def of(k: int, weight: Scheme, scale_bits: int) -> WeightLayout:
        value = StoredValue.of(weight.format)
        reduction = Reduction.of(k, weight, QUAD * unit_quads(value.bits))
        return WeightLayout(value, weight.symmetric, scale_bits, reduction)

    @property
    def parts(self) -> tuple[BitPart, ...]:
        return bit_parts(self.value.bits)

    @property
    def unit_bytes(self) -> int:
        return self.reduction.unit * PANEL * self.value.bits // 8

    @property
    def segment_bytes(self) -> int:
        """From one segment's codes to the next one's."""
        return self.reduction.segment_pitch * PANEL * self.value.bits // 8

    @property
    def scales_offset(self) -> int:
        return self.reduction.padded_k * PANEL * self.value.bits // 8

    @property
    def scale_bytes(self) -> int:
        """Of one group."""
        return PANEL * self.scale_bits // 8

    @property
    def sums_offset(self) -> int:
        return self.scales_offset + self.reduction.n_groups * self.scale_bytes

    @property
    def sum_bits(self) -> int:
        return 16 if self.reduction.segment_size * self.value.highest < 1 << 15 else 32

    @property
    def sum_bytes(self) -> int:
        """Of one segment."""
        return PANEL * self.sum_bits // 8

    @property
    def zeros_offset(self) -> int:
        return self.sums_offset + self.reduction.n_segments * self.sum_bytes

    @property
    def panel_bytes(self) -> int:
        zeros = 0 if self.symmetric else self.reduction.n_groups * PANEL
        return align(self.zeros_offset + zeros, VECTOR_BYTES)


def unit_quads(bits: int) -> int:
    """Quads of a unit: all that share a vector of the smallest part, and at least 4."""
    return max(4, *(part.quads for part in bit_parts(bits)))


@dataclass(frozen=True)
class RowLayout:
    """Where the parts of a packed activation row are, in bytes from its begin."""

    reduction: Reduction

    scale_offset = 0
    zero_offset = 4
    sums_offset = 8

    @property
    def codes_offset(self) -> int:
        return align(self.sums_offset + 4 * self.reduction.n_segments, VECTOR_BYTES)

    @property
    def row_bytes(self) -> int:
        return align(self.codes_offset + self.reduction.padded_k, VECTOR_BYTES)


def pack_weight(layout: WeightLayout, weight: QuantizedTensor) -> np.ndarray:
    """All panels of a weight, one after another: uint8 of panels * panel_bytes."""
    n, _ = weight.codes.shape
    panels = -(-n // PANEL)
    blob = np.zeros((panels, layout.panel_bytes), np.uint8)
    for panel in range(panels):
        _pack_panel(layout, weight, slice(panel * PANEL, min((panel + 1) * PANEL, n)), blob[panel])
    return blob.reshape(-1)


def _pack_panel(
    layout: WeightLayout, weight: QuantizedTensor, rows: slice, out: np.ndarray
) -> None:
    reduction = layout.reduction
    values = layout.value.encode(weight.codes[rows])
    numbers = values.astype(np.int8) if layout.value.signed else values
    padded = np.zeros((PANEL, reduction.padded_k), np.uint8)
    sums = np.zeros((reduction.n_segments, PANEL), np.int32)
    for s, (begin, end) in enumerate(reduction.bounds()):
        at = s * reduction.segment_pitch
        padded[: len(values), at : at + end - begin] = values[:, begin:end]
        sums[s, : len(values)] = numbers[:, begin:end].sum(axis=1, dtype=np.int32)
    scales = np.zeros((reduction.n_groups, PANEL), f"f{layout.scale_bits // 8}")
    scales[:, : len(values)] = weight.scale[rows].T
    pieces = [_pack_codes(layout, padded), scales, sums.astype(f"i{layout.sum_bits // 8}")]
    if weight.zero is not None:
        zeros = np.zeros((reduction.n_groups, PANEL), np.uint8)
        zeros[:, : len(values)] = weight.zero[rows].T
        pieces.append(zeros)
    flat = np.concatenate([piece.reshape(-1).view(np.uint8) for piece in pieces])
    out[: flat.size] = flat


def _pack_codes(layout: WeightLayout, values: np.ndarray) -> np.ndarray:
    """Values [16, padded K] as units of bit parts."""
    quads = values.reshape(PANEL, -1, QUAD).transpose(1, 0, 2).reshape(-1, QUAD_CODES)
    units = quads.reshape(-1, unit_quads(layout.value.bits), QUAD_CODES)
    vectors = []
    for part in layout.parts:
        bits = (units >> part.shift) & ((1 << part.bits) - 1)
        shared = bits.reshape(len(units), -1, part.quads, QUAD_CODES)
        shifts = (np.arange(part.quads) * part.bits).astype(np.uint8)[:, None]
        vectors.append(np.bitwise_or.reduce(shared << shifts, axis=2).astype(np.uint8))
    return np.concatenate(vectors, axis=1)
