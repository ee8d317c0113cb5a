"""Packed weights of the GPU strategies `int8` and `dequantize` and of their kernels for few rows.

The blob is

    codes     [tiles][chunks][loads][lanes 32][16 bytes]
    scales    [groups][padded n]    f16, f32, e8m0 or e4m3
    sums      [groups][padded n]    i16 or i32, sums of the integers, for asymmetric activations
    zeros     [groups][padded n]    u8, where the weight is asymmetric
    tensor    f32                   what e4m3 scales are multiplied with

A *tile* is 32 columns (n) and all of K; a *unit* is 32 codes of K (packing/layout.py: GroupedK,
whose groups are padded to whole units); a *chunk* is as many units, 1, 2 or 4, as fill whole
16-byte loads. So a warp that reads a load takes 512 contiguous bytes, one that streams a tile reads
it from end to end, and a block's slab of K is, for each of its tiles, contiguous.

Inside of a unit and of 8 columns (a *block* of columns, four to a tile), a lane holds 8 codes:
those of the B fragment of an MMA (`unit_fragment`): with q = lane % 4, column lane / 4,

    lane_bits  8 (s8 MMA, dp4a)    k =  4 q + i + 16 h              i < 4, register h < 2
    lane_bits 16 (f16, bf16 MMA)   k =  2 q + i +  8 h              i < 2, register h < 4

where *register* h is one of decoded codes: 4 of 8 bits, or 2 of 16 bits. The registers of a chunk
are numbered

    r = (unit in chunk * 4 + block) * registers per unit and block + h

A code of b bits (`NumberFormat.to_bits`: two's complement, binary, or an index) is stored as parts
of 8, 4, 2 and 1 bits, the lowest bits first: 7 bits are 4 + 2 + 1. Each part is dense: its 32-bit
words hold, with J = lane_bits / p fields in each 8- or 16-bit lane of a word,

    register r: word r // J, element i at bit lane_bits * i + p * (r % J)

so that all elements of a register come out with one shift and one mask. Ternary codes that are
digits (ternary_digits.py) are no parts: with J = 5 lane_bits / 8,

    register r: word r // J, element i in lane i, digit r % 5 of its byte r % J // 5

The words of a lane in a
chunk, four to a load, are those of the first part, then those of the next.

Padding (K beyond a group, units beyond the last, columns beyond n) is stored as zero bits. It needs
activations of 0 there: a zero bit is a code, not always the value 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from abqc.codegen.codes.ternary_digits import DIGITS, pack_words, unpack_words
from abqc.codegen.gpu.layout import ThreadValue
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import NumberFormat, QuantizedTensor, Scheme
from abqc.dialects.scale_types import SCALE_BYTES, StoredScale, stored_scales

from ..arch import WARP
from ..atoms import MmaAtom
from ..packing.layout import K_UNIT, GroupedK

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
    scale: StoredScale
    has_sums: bool

    @staticmethod
    @lru_cache(maxsize=256)
    def of(spec: MatmulSpec) -> WeightLayout:
        """For 8-bit MMA where products are integers, else for 16-bit floats."""
        assert spec.weight is not None
        activation = spec.activation if spec.integer_products else None
        return WeightLayout(
            format=spec.weight.format,
            lane_bits=8 if activation is not None else 16,
            grouped=GroupedK.of(spec.weight, spec.k),
            scale=spec.scale,
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

    @cached_property
    def chunk_units(self) -> int:
        """Units of a chunk: so many that the narrowest part fills 16 bytes a lane."""
        if self.format.in_digits:
            return DIGITS
        codes_per_unit = LANE_CODES * BLOCKS
        narrowest = part_widths(self.bits)[-1]
        return max(1, LOAD_BYTES * 8 // (narrowest * codes_per_unit))

    @cached_property
    def chunk_registers(self) -> int:
        return self.chunk_units * BLOCKS * self.registers_per_block

    @cached_property
    def parts(self) -> tuple[BitPart, ...]:
        """Those of codes that are stored by bits."""
        parts, shift, word = [], 0, 0
        for bits in part_widths(self.bits):
            parts.append(BitPart(bits, shift, word))
            shift += bits
            word += self.chunk_registers * bits // self.lane_bits
        return tuple(parts)

    @cached_property
    def chunk_words(self) -> int:
        """32-bit words of a lane in a chunk."""
        if self.format.in_digits:
            return self.chunk_registers // self.word_digits
        return self.chunk_registers * self.bits // self.lane_bits

    @property
    def word_digits(self) -> int:
        """Registers that share a word, of codes that are digits."""
        return DIGITS * self.lane_bits // 8

    @cached_property
    def chunk_loads(self) -> int:
        """16-byte loads of a lane in a chunk."""
        return self.chunk_words // WORDS_PER_LOAD

    @cached_property
    def chunk_bytes(self) -> int:
        """Of all lanes."""
        return self.chunk_loads * WARP_LOAD_BYTES

    @cached_property
    def chunks(self) -> int:
        return -(-self.grouped.units // self.chunk_units)

    @property
    def tile_bytes(self) -> int:
        """From one tile's codes to the next one's."""
        return self.chunks * self.chunk_bytes

    # Scales, sums and zero points

    @property
    def sum_bytes(self) -> int:
        """Of one sum: 2 where a group's cannot exceed i16."""
        reach = max(-self.format.qmin, self.format.qmax) * self.grouped.group_size
        return 2 if reach < 1 << 15 else 4

    @property
    def scale_bytes(self) -> int:
        return SCALE_BYTES[self.scale]

    @property
    def scale_unit(self) -> float:
        """What scales are multiplied with: registers hold integers (8 bits) or values (16)."""
        return self.format.unit if self.lane_bits == 8 else 1.0

    def tiles(self, n: int) -> int:
        return -(-n // TILE_COLUMNS)

    def padded_n(self, n: int) -> int:
        return self.tiles(n) * TILE_COLUMNS

    def scales_offset(self, n: int) -> int:
        return self.tiles(n) * self.tile_bytes

    def sums_offset(self, n: int) -> int:
        return self.scales_offset(n) + self.scale_bytes * self.grouped.groups * self.padded_n(n)

    def zeros_offset(self, n: int) -> int:
        sums = self.sum_bytes * self.grouped.groups * self.padded_n(n) if self.has_sums else 0
        return self.sums_offset(n) + sums

    def tensor_scale_offset(self, n: int) -> int:
        zeros = self.grouped.groups * self.padded_n(n) if self.has_zeros else 0
        return self.zeros_offset(n) + zeros

    def nbytes(self, n: int) -> int:
        return self.tensor_scale_offset(n) + (4 if self.scale == "e4m3" else 0)


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
            sums[rows] = layout.grouped.sums(layout.format.integers(codes))
    scales = stored_scales(weight.scale, layout.scale, weight.tensor_scale)
    _put_columns(blob, layout.scales_offset(n), scales)
    if sums is not None:
        _put_columns(blob, layout.sums_offset(n), sums.astype(f"i{layout.sum_bytes}"))
    if weight.zero is not None:
        _put_columns(blob, layout.zeros_offset(n), weight.zero)
    if layout.scale == "e4m3":
        whole = np.array([weight.tensor_scale], np.float32)
        blob[layout.tensor_scale_offset(n) :] = whole.view(np.uint8)
    return blob


def unpack(layout: WeightLayout, blob: np.ndarray, n: int, scheme: Scheme) -> QuantizedTensor:
    """The inverse of `pack`, of scales of f16 and f32."""
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


def _register_shape(layout: WeightLayout) -> tuple[int, ...]:
    """[block, column, chunk, unit, register, lane % 4] of a tile: as codes are in rows of K."""
    quads = WARP // BLOCK_COLUMNS
    return (
        BLOCKS,
        BLOCK_COLUMNS,
        layout.chunks,
        layout.chunk_units,
        layout.registers_per_block,
        quads,
    )


# From there to [chunk, column, lane % 4, unit, block, register]: to lanes and their registers.
_BY_LANE = (2, 1, 5, 3, 0, 4)


def _pack_codes(layout: WeightLayout, stored: np.ndarray) -> np.ndarray:
    """Stored codes, uint8 [columns, k], as the bytes of their tiles."""
    tiles = layout.tiles(len(stored))
    whole = np.zeros((tiles * TILE_COLUMNS, layout.chunks * layout.chunk_units * K_UNIT), np.uint8)
    whole[: len(stored), : layout.grouped.padded_k] = layout.grouped.pad(stored)
    by_row = _to_registers(layout, whole).reshape(tiles, *_register_shape(layout))
    by_lane = by_row.transpose(0, *(1 + axis for axis in _BY_LANE))
    registers = by_lane.reshape(tiles, layout.chunks, WARP, layout.chunk_registers)
    if layout.format.in_digits:
        words = pack_words(registers, layout.lane_bits)
    else:
        parts = [_pack_part(layout, part, registers) for part in layout.parts]
        words = np.concatenate(parts, axis=3)
    loads = words.reshape(tiles, layout.chunks, WARP, layout.chunk_loads, WORDS_PER_LOAD)
    return np.ascontiguousarray(loads.transpose(0, 1, 3, 2, 4)).reshape(-1).view(np.uint8)


def _to_registers(layout: WeightLayout, codes: np.ndarray) -> np.ndarray:
    """Neighbouring codes as uint32 that have one in each of their lanes of 8 or 16 bits."""
    if layout.lane_bits == 8:
        return codes.view(np.uint32)
    pairs = codes.view(np.uint16).astype(np.uint32)
    return (pairs & 0xFF) | (pairs >> 8 << 16)


def _from_registers(layout: WeightLayout, registers: np.ndarray) -> np.ndarray:
    """The inverse of `_to_registers`."""
    if layout.lane_bits == 8:
        return registers.view(np.uint8)
    return ((registers & 0xFF) | (registers >> 8)).astype(np.uint16).view(np.uint8)


def _part_mask(layout: WeightLayout, part: BitPart) -> np.uint32:
    """The bits of a part at the bottom of every lane of a register."""
    lanes = range(0, WORD_BITS, layout.lane_bits)
    return np.uint32(sum(((1 << part.bits) - 1) << at for at in lanes))


def _pack_part(layout: WeightLayout, part: BitPart, registers: np.ndarray) -> np.ndarray:
    """Registers [..., chunk registers] as the words [..., words] of one part."""
    fields = layout.lane_bits // part.bits
    bits = (registers >> np.uint32(part.shift)) & _part_mask(layout, part)
    shared = bits.reshape(*bits.shape[:-1], -1, fields)
    words = shared[..., 0].copy()
    for field in range(1, fields):
        words |= shared[..., field] << np.uint32(field * part.bits)
    return words


def _unpack_codes(layout: WeightLayout, packed: np.ndarray) -> np.ndarray:
    """The inverse of `_pack_codes`: [columns of whole tiles, k]."""
    loads = packed.view(np.uint32).reshape(
        -1, layout.chunks, layout.chunk_loads, WARP, WORDS_PER_LOAD
    )
    tiles = len(loads)
    words = loads.transpose(0, 1, 3, 2, 4).reshape(tiles, layout.chunks, WARP, layout.chunk_words)
    if layout.format.in_digits:
        joined = unpack_words(words, layout.lane_bits)
    else:
        joined = np.bitwise_or.reduce([_unpack_part(layout, p, words) for p in layout.parts])
    shape = _register_shape(layout)
    registers = joined.reshape(tiles, *(shape[axis] for axis in _BY_LANE))
    by_row = registers.transpose(0, *(1 + int(axis) for axis in np.argsort(_BY_LANE)))
    flat = np.ascontiguousarray(by_row).reshape(tiles * TILE_COLUMNS, -1)
    return layout.grouped.unpad(_from_registers(layout, flat))


def _unpack_part(layout: WeightLayout, part: BitPart, words: np.ndarray) -> np.ndarray:
    """The registers [..., chunk registers] that words [..., chunk words] hold, this part's bits."""
    count = layout.chunk_registers * part.bits // layout.lane_bits
    own = words[..., part.first_word : part.first_word + count, None]
    bits = (own >> np.arange(0, layout.lane_bits, part.bits, dtype=np.uint32)) & _part_mask(
        layout, part
    )
    return bits.reshape(*words.shape[:-1], -1) << np.uint32(part.shift)


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
