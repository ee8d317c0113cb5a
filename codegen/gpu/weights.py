"""Packed weights of the GPU strategies `int8` and `dequantize` and of their kernels for few rows.

The blob is

    codes     [tiles][chunks][loads][lanes 32][16 bytes]
    scales    [groups][padded n]    f16 or f32
    sums      [groups][padded n]    i32, sum of the codes q, where activations are asymmetric
    zeros     [groups][padded n]    u8, where the weight is asymmetric

A *tile* is 32 columns (n) and all of K; a *unit* is 32 codes of K (rows_layout.GroupedK, whose
groups are padded to whole units); a *chunk* is as many units, 1, 2 or 4, as fill whole 16-byte
loads. So a warp that reads a load takes 512 contiguous bytes, one that streams a tile reads it from
end to end, and a block's slab of K is, for each of its tiles, contiguous.

Inside of a unit and of 8 columns (a *block* of columns, four to a tile), a lane holds 8 codes:
those of the B fragment of an MMA (`unit_fragment`): with q = lane % 4, column lane / 4,

    lane_bits  8 (s8 MMA, dp4a)    k =  4 q + i + 16 h              i < 4, register h < 2
    lane_bits 16 (f16, bf16 MMA)   k =  2 q + i +  8 h              i < 2, register h < 4

where *register* h is one of decoded codes: 4 of 8 bits, or 2 of 16 bits. The registers of a chunk
are numbered

    r = (unit in chunk * 4 + block) * registers per unit and block + h

A code of b bits (`NumberFormat.to_bits`: two's complement, or binary) is stored as parts of 8, 4, 2
and 1 bits, the lowest bits first: 7 bits are 4 + 2 + 1. Each part is dense: its 32-bit words hold,
with J = lane_bits / p fields in each 8- or 16-bit lane of a word,

    register r: word r // J, element i at bit lane_bits * i + p * (r % J)

so that all elements of a register come out with one shift and one mask. The words of a lane in a
chunk, four to a load, are those of the first part, then those of the next.

Padding (K beyond a group, units beyond the last, columns beyond n) is stored as zero bits. It needs
activations of 0 there: a zero bit is a code, not always the value 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ...dialects.formats import NumberFormat, QuantizedTensor, Scheme
from ..layout import ThreadValue
from ..strategy import MatmulSpec
from .arch import WARP
from .atoms import MmaAtom
from .rows_layout import K_UNIT, GroupedK

LaneBits = Literal[8, 16]

TILE_COLUMNS = 32
BLOCK_COLUMNS = 8  # of one MMA
BLOCKS = TILE_COLUMNS // BLOCK_COLUMNS
LOAD_BYTES = 16  # of a lane
WARP_LOAD_BYTES = WARP * LOAD_BYTES
WORD_BITS = 32
WORDS_PER_LOAD = LOAD_BYTES * 8 // WORD_BITS
LANE_CODES = K_UNIT * BLOCK_COLUMNS // WARP  # codes of a lane in a unit of one block

_PACK_BYTES = 1 << 23  # codes that are packed at a time


@dataclass(frozen=True)
class BitPart:
    """`bits` bits of every code, from bit `shift` on; in a chunk, from word `first_word` on."""

    bits: int
    shift: int
    first_word: int


def part_widths(bits: int) -> list[int]:
    """A width as a sum of 8, 4, 2 and 1."""
    return [width for width in (8, 4, 2, 1) if bits & width]


def unit_fragment(lane_bits: LaneBits) -> ThreadValue:
    """(lane, code) -> (k, column) of a unit of one block of columns."""
    return MmaAtom("s8" if lane_bits == 8 else "f16", 16, BLOCK_COLUMNS, K_UNIT).b


@dataclass(frozen=True)
class WeightLayout:
    """Where the bytes of a packed weight are. `n` is an argument: kernels are made for any."""

    format: NumberFormat
    lane_bits: LaneBits
    grouped: GroupedK
    scale_bits: int
    has_sums: bool

    @staticmethod
    def of(spec: MatmulSpec) -> WeightLayout:
        """For 8-bit MMA where activations are quantized, for 16-bit floats where they are not."""
        assert spec.weight is not None
        activation = spec.activation
        return WeightLayout(
            format=spec.weight.format,
            lane_bits=8 if activation is not None else 16,
            grouped=GroupedK.of(spec.weight, spec.k),
            scale_bits=spec.scale_bits,
            has_sums=activation is not None and not activation.symmetric,
        )

    @property
    def bits(self) -> int:
        return self.format.bits

    @property
    def has_zeros(self) -> bool:
        return not self.format.symmetric

    # Codes

    @property
    def registers_per_block(self) -> int:
        """Decoded registers of a unit and a block of columns: 2 of s8, 4 of f16."""
        return LANE_CODES * self.lane_bits // WORD_BITS

    @property
    def chunk_units(self) -> int:
        """Units of a chunk: so many that the narrowest part fills 16 bytes a lane."""
        codes_per_unit = LANE_CODES * BLOCKS
        narrowest = part_widths(self.bits)[-1]
        return max(1, LOAD_BYTES * 8 // (narrowest * codes_per_unit))

    @property
    def chunk_registers(self) -> int:
        return self.chunk_units * BLOCKS * self.registers_per_block

    @cached_property
    def parts(self) -> tuple[BitPart, ...]:
        parts, shift, word = [], 0, 0
        for bits in part_widths(self.bits):
            parts.append(BitPart(bits, shift, word))
            shift += bits
            word += self.chunk_registers * bits // self.lane_bits
        return tuple(parts)

    @property
    def chunk_words(self) -> int:
        """32-bit words of a lane in a chunk."""
        return self.chunk_registers * self.bits // self.lane_bits

    @property
    def chunk_loads(self) -> int:
        """16-byte loads of a lane in a chunk."""
        return self.chunk_words // WORDS_PER_LOAD

    @property
    def chunk_bytes(self) -> int:
        """Of all lanes."""
        return self.chunk_loads * WARP_LOAD_BYTES

    @property
    def chunks(self) -> int:
        return -(-self.grouped.units // self.chunk_units)

    @property
    def tile_bytes(self) -> int:
        """From one tile's codes to the next one's."""
        return self.chunks * self.chunk_bytes

    # Scales, sums and zero points

    @property
    def scale_bytes(self) -> int:
        return self.scale_bits // 8

    def tiles(self, n: int) -> int:
        return -(-n // TILE_COLUMNS)

    def padded_n(self, n: int) -> int:
        return self.tiles(n) * TILE_COLUMNS

    def scales_offset(self, n: int) -> int:
        return self.tiles(n) * self.tile_bytes

    def sums_offset(self, n: int) -> int:
        return self.scales_offset(n) + self.scale_bytes * self.grouped.groups * self.padded_n(n)

    def zeros_offset(self, n: int) -> int:
        sums = 4 * self.grouped.groups * self.padded_n(n) if self.has_sums else 0
        return self.sums_offset(n) + sums

    def nbytes(self, n: int) -> int:
        zeros = self.grouped.groups * self.padded_n(n) if self.has_zeros else 0
        return self.zeros_offset(n) + zeros


def pack(layout: WeightLayout, weight: QuantizedTensor) -> np.ndarray:
    """The blob, uint8, of a weight [n, k]; a part of its columns at a time."""
    n, k = weight.codes.shape
    blob = np.zeros(layout.nbytes(n), np.uint8)
    sums = np.zeros((n, layout.grouped.groups), np.int32) if layout.has_sums else None
    for rows in _column_ranges(n, k):
        codes = weight.codes[rows]
        packed = _pack_codes(layout, layout.format.to_bits(codes))
        at = rows.start // TILE_COLUMNS * layout.tile_bytes
        blob[at : at + packed.size] = packed
        if sums is not None:
            sums[rows] = layout.grouped.sums(codes)
    _put_columns(blob, layout.scales_offset(n), weight.scale.astype(f"f{layout.scale_bytes}"))
    if sums is not None:
        _put_columns(blob, layout.sums_offset(n), sums)
    if weight.zero is not None:
        _put_columns(blob, layout.zeros_offset(n), weight.zero)
    return blob


def unpack(layout: WeightLayout, blob: np.ndarray, n: int, scheme: Scheme) -> QuantizedTensor:
    """The inverse of `pack`."""
    k, groups = layout.grouped.k, layout.grouped.groups
    codes = np.empty((n, k), layout.format.dtype)
    for rows in _column_ranges(n, k):
        begin = rows.start // TILE_COLUMNS * layout.tile_bytes
        end = -(-rows.stop // TILE_COLUMNS) * layout.tile_bytes
        stored = _unpack_codes(layout, blob[begin:end])[: rows.stop - rows.start]
        codes[rows] = layout.format.from_bits(stored)
    scale = _get_columns(
        blob, layout.scales_offset(n), np.dtype(f"f{layout.scale_bytes}"), groups, n
    )
    zero = None
    if layout.has_zeros:
        zero = _get_columns(blob, layout.zeros_offset(n), np.dtype(np.uint8), groups, n)
    return QuantizedTensor(codes, scale, zero, scheme)


def _column_ranges(n: int, k: int) -> Iterator[slice]:
    """Columns in pieces of whole tiles."""
    step = max(1, _PACK_BYTES // (k * TILE_COLUMNS)) * TILE_COLUMNS
    return (slice(begin, min(begin + step, n)) for begin in range(0, n, step))


def _lane_order(layout: WeightLayout) -> np.ndarray:
    """[lane, code]: index into the codes [column 8, k 32] of a unit of one block."""
    fragment = unit_fragment(layout.lane_bits)
    order = [
        [fragment.layout(lane, code) for code in range(LANE_CODES)] for lane in range(WARP)
    ]  # the tile's k runs fastest, as in memory
    return np.array(order)


def _pack_codes(layout: WeightLayout, stored: np.ndarray) -> np.ndarray:
    """Stored codes, uint8 [columns, k], as the bytes of their tiles."""
    padded = layout.grouped.pad(stored)
    shape = (layout.tiles(len(stored)), layout.chunks, layout.chunk_units)
    whole = np.zeros((shape[0] * TILE_COLUMNS, shape[1] * shape[2] * K_UNIT), np.uint8)
    whole[: len(stored), : layout.grouped.padded_k] = padded
    # tile, block, column, chunk, unit, k -> tile, chunk, unit, block, (column, k)
    split = whole.reshape(shape[0], BLOCKS, BLOCK_COLUMNS, *shape[1:], K_UNIT)
    units = split.transpose(0, 3, 4, 1, 2, 5).reshape(*shape, BLOCKS, BLOCK_COLUMNS * K_UNIT)
    lanes = units[..., _lane_order(layout)]
    # tile, chunk, unit, block, lane, code -> tile, chunk, lane, register, element
    ordered = np.moveaxis(lanes, 4, 2)
    elements = WORD_BITS // layout.lane_bits
    registers = ordered.reshape(*shape[:2], WARP, layout.chunk_registers, elements)
    words = [_pack_part(layout, part, registers) for part in layout.parts]
    loads = np.concatenate(words, axis=3).reshape(*shape[:2], WARP, layout.chunk_loads, LOAD_BYTES)
    return np.ascontiguousarray(loads.transpose(0, 1, 3, 2, 4)).reshape(-1)


def _pack_part(layout: WeightLayout, part: BitPart, registers: np.ndarray) -> np.ndarray:
    """[tile, chunk, lane, register, element] -> bytes [tile, chunk, lane, words * 4]."""
    fields = layout.lane_bits // part.bits
    bits = ((registers >> part.shift) & ((1 << part.bits) - 1)).astype(f"u{layout.lane_bits // 8}")
    shared = bits.reshape(*bits.shape[:3], -1, fields, bits.shape[4])
    words = shared[..., 0, :].copy()
    for field in range(1, fields):
        words |= shared[..., field, :] << (field * part.bits)
    return words.reshape(*words.shape[:3], -1).view(np.uint8)


def _unpack_codes(layout: WeightLayout, packed: np.ndarray) -> np.ndarray:
    """The inverse of `_pack_codes`: [columns of whole tiles, k]."""
    shape = (-1, layout.chunks)
    loads = packed.reshape(*shape, layout.chunk_loads, WARP, LOAD_BYTES).transpose(0, 1, 3, 2, 4)
    lanes = np.ascontiguousarray(loads).reshape(*loads.shape[:3], -1)
    parts = [_unpack_part(layout, part, lanes) for part in layout.parts]
    codes = np.bitwise_or.reduce(parts)
    tiles = len(codes)
    units = codes.reshape(
        tiles, layout.chunks, WARP, layout.chunk_units, BLOCKS, LANE_CODES
    ).transpose(0, 1, 3, 4, 2, 5)
    order = _lane_order(layout).reshape(-1)
    block = np.empty((*units.shape[:4], BLOCK_COLUMNS * K_UNIT), np.uint8)
    block[..., order] = units.reshape(*units.shape[:4], -1)
    split = block.reshape(*units.shape[:4], BLOCK_COLUMNS, K_UNIT).transpose(0, 3, 4, 1, 2, 5)
    whole = split.reshape(tiles * TILE_COLUMNS, -1)
    return layout.grouped.unpad(whole)


def _unpack_part(layout: WeightLayout, part: BitPart, lanes: np.ndarray) -> np.ndarray:
    """[tile, chunk, lane, register, element], this part's bits in place, of bytes of lanes."""
    count = layout.chunk_registers * part.bits // layout.lane_bits
    begin = part.first_word * 4
    raw = np.ascontiguousarray(lanes[..., begin : begin + count * 4])
    words = raw.view(f"u{layout.lane_bits // 8}").reshape(*lanes.shape[:3], count, 1, -1)
    shifts = np.arange(0, layout.lane_bits, part.bits).reshape(-1, 1).astype(words.dtype)
    bits = (words >> shifts) & ((1 << part.bits) - 1)
    registers = bits.reshape(*lanes.shape[:3], layout.chunk_registers, -1)
    return (registers << part.shift).astype(np.uint8)


def _put_columns(blob: np.ndarray, offset: int, values: np.ndarray) -> None:
    """[n, groups] as [groups][padded n] from byte `offset` on."""
    n, groups = values.shape
    padded = np.zeros((groups, -(-n // TILE_COLUMNS) * TILE_COLUMNS), values.dtype)
    padded[:, :n] = values.T
    flat = padded.view(np.uint8).reshape(-1)
    blob[offset : offset + flat.size] = flat


def _get_columns(blob: np.ndarray, offset: int, dtype: np.dtype, groups: int, n: int) -> np.ndarray:
    padded = -(-n // TILE_COLUMNS) * TILE_COLUMNS
    flat = blob[offset : offset + groups * padded * dtype.itemsize]
    return np.ascontiguousarray(flat.view(dtype).reshape(groups, padded)[:, :n].T)
