"""The bytes that the integer strategies work on: weights in panels, activations in rows.

Weights. A panel holds 16 output channels; it is one contiguous piece of the blob:

    codes    by segment and unit, as the strategy packs them, 64-byte aligned
    scales   [groups][16]    f16, f32, e8m0 or e4m3
    sums     [segments][16]  i16 or i32: sum of the stored values over the segment; not of short
                             segments, where kernels add the values up
    zeros    [groups][16]    u8, asymmetric formats only
    tensor   f32             what e4m3 scales are multiplied with

Where there are several groups, they come in blocks of 1, 2 or 4, whose scales, sums and zeros
fill whole vectors and stand before their codes: a panel is then read in one stream, whatever its
length. (A row of 4096x4096 in w4 takes 0.7 of the time on Zen 4.) If the last block would be
mostly padding, those of all groups stand behind the codes.

The stored value v of a code q is unsigned where it can be; q - z = mul * v - offset - z. Codes of
indexed formats are stored as they are, and kernels look their integers or values up.

Activations. A row is

    scale f32, zero i32, sums i32[segments] of the stored codes, then at `codes_offset` the codes

with codes u = q + shift, which are unsigned, and zero including the shift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TypeVar

import numpy as np
from abqc.codegen.align import align
from abqc.codegen.builder import Value
from abqc.codegen.codes.bit_parts import StoredValue
from abqc.codegen.codes.stored_values import tensor_scale_bytes
from abqc.codegen.codes.ternary_digits import DIGITS
from abqc.dialects.formats import QuantizedTensor
from abqc.dialects.scale_types import SCALE_BYTES, StoredScale, stored_scales

from .reduction import Reduction

PANEL = 16  # output channels of a panel
VECTOR_BYTES = 64
CHUNK_CODES = 1 << 20  # packed at once
SUMMED_TERMS = 128  # of a segment whose sums are stored

MAX_PADDING = 0.02  # of a panel, for whole blocks of groups

Index = TypeVar("Index", int, Value)
PackCodes = Callable[["WeightLayout", np.ndarray], np.ndarray]


@dataclass(frozen=True)
class WeightLayout:
    """Where the parts of a panel are, in bytes from its begin."""

    value: StoredValue
    symmetric: bool
    scale: StoredScale
    reduction: Reduction

    def _code_bytes(self, k: int) -> int:
        """Of the codes of `k` elements, whole units, of 16 channels."""
        if self.value.in_digits:
            return k * PANEL // DIGITS
        return k * PANEL * self.value.bits // 8

    @property
    def unit_bytes(self) -> int:
        return self._code_bytes(self.reduction.unit)

    @cached_property
    def block_groups(self) -> int:
        """Groups whose scales, sums and zeros stand before their codes: as few as fill vectors; 0
        where those of all groups stand behind all codes."""
        reduction, parts = self.reduction, self._group_bytes
        if reduction.n_groups == 1 or reduction.segments_per_group > 1:
            return 0
        groups = VECTOR_BYTES // gcd(VECTOR_BYTES, parts)
        lacking = -reduction.n_groups % groups * parts
        panel = self._code_bytes(reduction.padded_k) + reduction.n_groups * parts
        return groups if lacking <= MAX_PADDING * panel else 0

    @property
    def _group_bytes(self) -> int:
        """Of a group's scales, sums and zeros."""
        return self.scale_bytes + self.sum_bytes + (0 if self.symmetric else PANEL)

    @property
    def segment_bytes(self) -> int:
        """Of the codes of a segment."""
        return self._code_bytes(self.reduction.segment_pitch)

    def _at(self, i: Index, first: int, size: int, behind: int) -> Index:
        """Where the piece of group or segment `i` is, of `size` bytes: in its block from byte
        `first` on; or, without blocks, behind so many bytes of the panel."""
        groups = self.block_groups
        if not groups:
            return i * size + behind
        block = groups * (self._group_bytes + self.segment_bytes)
        if groups == 1:
            return i * block + first
        return i // groups * block + (i % groups * size + first)

    def codes_at(self, segment: Index) -> Index:
        """The first byte of a segment's codes."""
        return self._at(segment, self.block_groups * self._group_bytes, self.segment_bytes, 0)

    def scales_at(self, group: Index) -> Index:
        return self._at(group, 0, self.scale_bytes, self._code_bytes(self.reduction.padded_k))

    def sums_at(self, segment: Index) -> Index:
        reduction = self.reduction
        behind = self._code_bytes(reduction.padded_k) + reduction.n_groups * self.scale_bytes
        return self._at(segment, self.block_groups * self.scale_bytes, self.sum_bytes, behind)

    def zeros_at(self, group: Index) -> Index:
        reduction, first = self.reduction, self.block_groups * (self.scale_bytes + self.sum_bytes)
        behind = self._code_bytes(reduction.padded_k) + reduction.n_groups * self.scale_bytes
        return self._at(group, first, PANEL, behind + reduction.n_segments * self.sum_bytes)

    @property
    def scale_bytes(self) -> int:
        """Of one group."""
        return PANEL * SCALE_BYTES[self.scale]

    @property
    def has_sums(self) -> bool:
        """Whether sums are stored: those of short segments would be many."""
        return self.reduction.segment_size >= SUMMED_TERMS and self.value.highest > 0

    @property
    def sum_bits(self) -> int:
        return 16 if self.reduction.segment_size * self.value.highest < 1 << 15 else 32

    @property
    def sum_bytes(self) -> int:
        """Of one segment."""
        return PANEL * self.sum_bits // 8 if self.has_sums else 0

    @property
    def tensor_scale_offset(self) -> int:
        """Behind all else."""
        reduction = self.reduction
        codes = self._code_bytes(reduction.padded_k)
        if self.block_groups:
            return codes + align(reduction.n_groups, self.block_groups) * self._group_bytes
        return self.zeros_at(reduction.n_groups if not self.symmetric else 0)

    @property
    def panel_bytes(self) -> int:
        return align(self.tensor_scale_offset + tensor_scale_bytes(self.scale), VECTOR_BYTES)


@dataclass(frozen=True)
class RowLayout:
    """Where the parts of a packed activation row of `code_bits`-bit codes are, in bytes."""

    reduction: Reduction
    code_bits: int

    scale_offset = 0
    zero_offset = 4
    sums_offset = 8

    @property
    def codes_offset(self) -> int:
        return align(self.sums_offset + 4 * self.reduction.n_segments, VECTOR_BYTES)

    @property
    def segment_bytes(self) -> int:
        """From one segment's codes to the next one's."""
        return self.reduction.segment_pitch * self.code_bits // 8

    @property
    def row_bytes(self) -> int:
        codes = self.reduction.padded_k * self.code_bits // 8
        return align(self.codes_offset + codes, VECTOR_BYTES)


def pack_weight(layout: WeightLayout, weight: QuantizedTensor, pack_codes: PackCodes) -> np.ndarray:
    """All panels of a weight, one after another: uint8 of panels * panel_bytes.

    `pack_codes(layout, values)` gives the bytes of the stored values of some panels, which are
    uint8 [panels, 16, padded K]: an array of as many pieces.
    """
    n, _ = weight.codes.shape
    panels = -(-n // PANEL)
    blob = np.zeros((panels, layout.panel_bytes), np.uint8)
    at_once = max(1, CHUNK_CODES // (PANEL * layout.reduction.padded_k))
    for first in range(0, panels, at_once):
        chunk = blob[first : first + at_once]
        rows = slice(first * PANEL, min((first + len(chunk)) * PANEL, n))
        _pack_panels(layout, weight, rows, pack_codes, chunk)
    return blob.reshape(-1)


def _pack_panels(
    layout: WeightLayout,
    weight: QuantizedTensor,
    rows: slice,
    pack_codes: PackCodes,
    out: np.ndarray,
) -> None:
    """The panels of some rows, of which the last may lack some."""
    reduction = layout.reduction
    count = len(out)
    values = layout.value.encode(weight.codes[rows])
    numbers = layout.value.numbers(values)
    padded = np.zeros((count * PANEL, reduction.padded_k), np.uint8)
    sums = np.zeros((count * PANEL, reduction.n_segments), np.int32)
    for s, (begin, end) in enumerate(reduction.bounds()):
        at = s * reduction.segment_pitch
        padded[: len(values), at : at + end - begin] = values[:, begin:end]
        sums[: len(values), s] = numbers[:, begin:end].sum(axis=1, dtype=np.int32)

    def by_panel(array: np.ndarray, dtype: str) -> np.ndarray:
        """What each row has, [rows, ...], as [panels, ..., 16] of `dtype`."""
        whole = np.zeros((count * PANEL, array.shape[1]), dtype)
        whole[: len(array)] = array
        return whole.reshape(count, PANEL, -1).transpose(0, 2, 1)

    codes = _as_bytes(pack_codes(layout, padded.reshape(count, PANEL, -1)))
    scales = stored_scales(weight.scale[rows], layout.scale, weight.tensor_scale)
    head = [by_panel(scales, scales.dtype.str)]
    if layout.has_sums:
        head.append(by_panel(sums, f"i{layout.sum_bits // 8}"))
    if weight.zero is not None:
        head.append(by_panel(weight.zero[rows], "u1"))
    pieces = _in_blocks(layout, codes, head) if layout.block_groups else [codes, *head]
    if tensor_scale_bytes(layout.scale):
        pieces.append(np.full((count, 1), weight.tensor_scale, np.float32))
    whole = np.concatenate([_as_bytes(piece) for piece in pieces], axis=1)
    out[:, : whole.shape[1]] = whole


def _in_blocks(layout: WeightLayout, codes: np.ndarray, head: list[np.ndarray]) -> list[np.ndarray]:
    """Codes [panels, bytes] and what is by group, [panels, groups, ..], in order."""
    pieces, groups, size = [], layout.block_groups, layout.segment_bytes
    for begin in range(0, layout.reduction.n_groups, groups):
        end = begin + groups
        for part in head:
            some = part[:, begin:end]
            pieces.append(np.pad(some, ((0, 0), (0, groups - some.shape[1]), (0, 0))))
        pieces.append(codes[:, begin * size : end * size])
    return pieces


def _as_bytes(piece: np.ndarray) -> np.ndarray:
    """[panels, bytes]"""
    return np.ascontiguousarray(piece).reshape(len(piece), -1).view(np.uint8)
