"""The bytes of the strategy `planes`: how K is cut, packed rows, packed weights.

A *unit* is 128 codes of K, for each plane (bit) four words of 32 bits. Position x of a unit is bit
x / 4 of word x % 4: four neighbouring codes of a lane of the packing kernel become one bit each of
four words (a 32 x 32 transposition), and any 16, 32 or 64 neighbouring codes are the same bits of
all four words.

A *step* is two units, K of `mma.sync` m16n8k256. Its fragments are those of two m16n8k128: register
pairs a0 a1 and a2 a3 of A, and registers b0 and b1 of B, belong to the first and the second unit.
Groups of up to 64 codes share a unit (kernels mask it), others begin at a unit, and those of more
than 128 codes at a step.

    rows      [units][planes][16 bytes], then f32 scale, i32 zero point, and where the weight's
              codes have an offset or zero points i32 sums [groups] of q - zero
    weights   [tiles of 16 columns][steps][planes][lanes 32][16 bytes], then records
              [tiles][groups]: 16 scales f16 or f32, where activations have zero points or an offset
              16 sums i32, where the weight has them 16 zero points u8; columns 0, 8, 1, 9, ...: a
              lane's two are neighbours

Planes are two's complement, the top one of weight -2^(bits - 1); of binary codes, q = 2 bit - 1.
Padding is zero in every plane.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import NumberFormat, QuantizedTensor, Scheme

from ..arch import WARP
from ..packing.layout import CodedRows, GroupedK, align

UNIT = 128  # codes
UNIT_BYTES = UNIT // 8  # of one plane
STEP = 2 * UNIT
TILE_COLUMNS = 16
HALVES = 2  # of a tile's columns: a lane has one of each
LANE_BYTES = 16
TILE_BYTES = WARP * LANE_BYTES  # of a step of one plane
SMALLEST_GROUP = 16  # shorter ones are padded


def grouped_by_planes(weight: Scheme, k: int) -> GroupedK:
    """K in groups that begin at a fraction of a unit, a unit or a step."""
    size = min(weight.group_size or k, k)
    quantum = SMALLEST_GROUP
    while quantum < min(size, STEP):
        quantum *= 2
    return GroupedK(k, size, quantum)


def plane_weights(format: NumberFormat) -> tuple[int, ...]:
    """What a bit of each plane adds to a code, but for `offset`."""
    if format.kind == "binary":
        return (2,)
    top = format.bits - 1
    return (*(1 << i for i in range(top)), -(1 << top) if format.symmetric else 1 << top)


def offset(format: NumberFormat) -> int:
    """q = sum of plane weights - offset."""
    return 1 if format.kind == "binary" else 0


def reach(format: NumberFormat) -> int:
    """The largest |q - zero point|."""
    if format.symmetric:
        return max(-format.qmin, format.qmax)
    return format.qmax - format.qmin


def to_units(bits: np.ndarray) -> np.ndarray:
    """[..., K] of 0 and 1, K in whole units, as words' bytes: [..., units, 4, 4] uint8."""
    shape = (*bits.shape[:-1], -1, UNIT // 4, 4)
    by_word = np.moveaxis(bits.reshape(shape), -1, -2)
    return np.packbits(by_word, axis=-1, bitorder="little")


def _planes(format: NumberFormat, codes: np.ndarray, grouped: GroupedK, padded: int) -> np.ndarray:
    """[R, K] codes as bits [R, planes, padded K]."""
    stored = np.zeros((len(codes), padded), np.uint8)
    by_group = grouped.pad(format.to_bits(codes))
    stored[:, : by_group.shape[1]] = by_group
    shifts = np.arange(format.bits, dtype=np.uint8)[None, :, None]
    return (stored[:, None, :] >> shifts) & 1


@dataclass(frozen=True)
class PlaneRows(CodedRows):
    """Packed rows of activations."""

    format: NumberFormat
    grouped: GroupedK
    has_sums: bool

    @staticmethod
    def of(spec: MatmulSpec) -> PlaneRows:
        assert spec.weight is not None and spec.activation is not None
        weight = spec.weight.format
        has_sums = not weight.symmetric or offset(weight) != 0
        grouped = grouped_by_planes(spec.weight, spec.k)
        return PlaneRows(spec.activation.format, grouped, has_sums)

    @property
    def positions(self) -> int:
        """Codes of a row with all padding, whole steps."""
        return align(self.grouped.padded_k, STEP)

    @property
    def unit_bytes(self) -> int:
        """Of all planes."""
        return self.format.bits * UNIT_BYTES

    @property
    def code_bytes(self) -> int:
        return self.positions // UNIT * self.unit_bytes

    def pack_reference(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Rows [M, row_bytes], uint8, of codes [M, k], scale f32 [M] and zero i32 [M]."""
        planes = _planes(self.format, codes, self.grouped, self.positions)
        units = np.moveaxis(to_units(planes), 1, 2)  # [M, units, planes, 4, 4]
        parts = [units, scale.astype(np.float32)[:, None], zero.astype(np.int32)[:, None]]
        if self.has_sums:
            parts.append(self.grouped.sums(codes.astype(np.int32) - zero.astype(np.int32)[:, None]))
        rows = np.zeros((len(codes), self.row_bytes), np.uint8)
        at = 0
        for part in parts:
            flat = np.ascontiguousarray(part).view(np.uint8).reshape(len(codes), -1)
            rows[:, at : at + flat.shape[1]] = flat
            at += flat.shape[1]
        return rows


@dataclass(frozen=True)
class PlaneWeights:
    """Packed weights. `n` is an argument: kernels are made for any."""

    format: NumberFormat
    grouped: GroupedK
    scale_bits: int
    has_sums: bool

    @staticmethod
    def of(spec: MatmulSpec) -> PlaneWeights:
        assert spec.weight is not None and spec.activation is not None
        activation = spec.activation.format
        has_sums = not activation.symmetric or offset(activation) != 0
        grouped = grouped_by_planes(spec.weight, spec.k)
        return PlaneWeights(spec.weight.format, grouped, spec.scale_bits, has_sums)

    @property
    def steps(self) -> int:
        return align(self.grouped.padded_k, STEP) // STEP

    @property
    def step_bytes(self) -> int:
        """Of all planes of a tile."""
        return self.format.bits * TILE_BYTES

    @property
    def tile_bytes(self) -> int:
        """From one tile's codes to the next one's."""
        return self.steps * self.step_bytes

    @property
    def scale_bytes(self) -> int:
        return self.scale_bits // 8

    @property
    def has_zeros(self) -> bool:
        return not self.format.symmetric

    def tiles(self, n: int) -> int:
        return -(-n // TILE_COLUMNS)

    @property
    def record_sums(self) -> int:
        """Offset of the sums in a record."""
        return TILE_COLUMNS * self.scale_bytes

    @property
    def record_zeros(self) -> int:
        """Offset of the zero points."""
        return self.record_sums + (4 * TILE_COLUMNS if self.has_sums else 0)

    @property
    def record_bytes(self) -> int:
        """Of a tile's factors in one group, a multiple of 16."""
        return self.record_zeros + (TILE_COLUMNS if self.has_zeros else 0)

    def nbytes(self, n: int) -> int:
        return self.tiles(n) * (self.tile_bytes + self.grouped.groups * self.record_bytes)

    def pack(self, weight: QuantizedTensor) -> np.ndarray:
        """The blob, uint8, of a weight [n, k]; a tile's columns at a time."""
        n = len(weight.codes)
        tiles = self.tiles(n)
        codes = np.empty((tiles, self.tile_bytes), np.uint8)
        for tile in range(tiles):
            rows = weight.codes[tile * TILE_COLUMNS : (tile + 1) * TILE_COLUMNS]
            codes[tile] = self._pack_tile(rows)
        parts = [_by_tile(weight.scale.astype(f"f{self.scale_bytes}"), tiles)]
        if self.has_sums:
            parts.append(_by_tile(self._sums(weight.codes), tiles))
        if weight.zero is not None:
            parts.append(_by_tile(weight.zero, tiles))
        return np.concatenate([codes.reshape(-1), np.concatenate(parts, axis=2).reshape(-1)])

    def _sums(self, codes: np.ndarray) -> np.ndarray:
        """Sums of q + offset: what the planes hold."""
        held = codes.astype(np.int32) + offset(self.format)
        return self.grouped.sums(held)

    def _pack_tile(self, codes: np.ndarray) -> np.ndarray:
        """Up to 16 columns as bytes of lanes: A fragments of m16n8k256."""
        planes = np.zeros((TILE_COLUMNS, self.format.bits, self.steps * STEP), np.uint8)
        planes[: len(codes)] = _planes(self.format, codes, self.grouped, self.steps * STEP)
        words = to_units(planes)  # [16 columns, planes, units, 4 words, 4 bytes]
        shape = (2, 8, self.format.bits, self.steps, 2, 4, 4)  # half, g, plane, step, unit, word
        # Lane 4 g + word holds, for each unit of the step, columns g and g + 8.
        return words.reshape(shape).transpose(3, 2, 1, 5, 4, 0, 6).reshape(-1)


def _by_tile(values: np.ndarray, tiles: int) -> np.ndarray:
    """[n, groups] as bytes [tiles, groups, bytes of 16 columns], padded by zeros."""
    groups = values.shape[1]
    out = np.zeros((tiles * TILE_COLUMNS, groups), values.dtype)
    out[: len(values)] = values
    by_half = out.reshape(tiles, HALVES, TILE_COLUMNS // HALVES, groups)
    records = np.ascontiguousarray(by_half.transpose(0, 3, 2, 1))
    return records.view(np.uint8).reshape(tiles, groups, -1)
