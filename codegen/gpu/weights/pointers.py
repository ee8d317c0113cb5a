"""Addresses and loads of a packed weight inside of a kernel (see layout.py)."""

from __future__ import annotations

import copy
from typing import Self

from abqc.codegen.builder import Value, vec

from ..builder import GpuBuilder
from .layout import TILE_COLUMNS, WARP_LOAD_BYTES, WORDS_PER_LOAD, WeightLayout
from .scales import Load, load_constant, load_scales


class PackedWeight:
    """A packed weight of `n` columns (i32) at a global pointer. Nothing writes it.

    Columns may be any below `padded n`; groups are i32 values or numbers.
    """

    def __init__(self, b: GpuBuilder, layout: WeightLayout, base: Value, n: Value) -> None:
        self.b = b
        self.layout = layout
        self.base = base
        self.tiles = b.ceil_div(n, TILE_COLUMNS)
        self._padded_n = b.wide(self.tiles) * TILE_COLUMNS
        groups = layout.grouped.groups
        self._scales = b.at(base, b.wide(self.tiles) * layout.tile_bytes)
        self._sums = b.at(self._scales, self._padded_n * (groups * layout.scale_bytes))
        sums_bytes = layout.sum_bytes * groups if layout.has_sums else 0
        self._zeros = b.at(self._sums, self._padded_n * sums_bytes)
        zeros_bytes = groups if layout.has_zeros else 0
        self._tensor_scale = b.at(self._zeros, self._padded_n * zeros_bytes)
        self._load = load_constant(b)

    def loading(self, load: Load) -> Self:
        """The same weight whose scales, sums and zero points are loaded by `load`."""
        weight = copy.copy(self)
        weight._load = load
        return weight

    def tile(self, index: Value) -> Value:
        """The pointer to the codes of a tile; chunks and loads follow each other."""
        return self.b.at(self.base, self.b.wide(index) * self.layout.tile_bytes)

    def prefetch(self, first_tile: Value, tiles: int, begin: Value, end: Value) -> None:
        """Have bytes `begin` to `end` (i32; `end` may be too large) of the codes of some tiles
        fetched to the L2 cache, the first of them: a thread has a tile (`GpuBuilder.prefetch`)."""
        b = self.b
        with b.when((b.thread < tiles) & (begin < end)):
            tile = b.min(first_tile + b.thread, self.tiles - 1)
            left = b.min(end, b.const(self.layout.tile_bytes, "i32")) - begin
            b.prefetch(b.at(self.tile(tile), begin), left)

    def chunk_words(self, chunk: Value, offset: int = 0, *, cache: str = "nc") -> list[Value]:
        """This lane's words of the chunk at pointer `chunk` + `offset`: i32, for `decode`."""
        lane = self.b.at(chunk, self.b.lane * 16)
        words: list[Value] = []
        for load in range(self.layout.chunk_loads):
            at = offset + load * WARP_LOAD_BYTES
            loaded = self.b.load(lane, vec(WORDS_PER_LOAD, "i32"), at, cache=cache)  # type: ignore[arg-type]
            words += self.b.lanes_of(loaded)
        return words

    def scales(
        self, group: Value | int, column: Value, offset: int = 0, count: int = 1
    ) -> list[Value]:
        """Scales (f32) of `count` columns from `column` + `offset` on, a multiple of `count`: of
        what registers hold (`WeightLayout.scale_unit`)."""
        b, layout = self.b, self.layout
        size = layout.scale_bytes
        pointer = self._row(self._scales, group, column, size)
        loaded = load_scales(
            b, pointer, layout.scale, offset * size, count, self._tensor_scale, self._load
        )
        if layout.scale_unit == 1.0:
            return loaded
        return [scale * layout.scale_unit for scale in loaded]

    def sums(
        self, group: Value | int, column: Value, offset: int = 0, count: int = 1
    ) -> list[Value]:
        """Sums of the codes (i32), as `scales`; where the layout has them."""
        b, size = self.b, self.layout.sum_bytes
        pointer = self._row(self._sums, group, column, size)
        loaded = self._load(pointer, vec(count, f"i{8 * size}"), offset * size)
        return b.lanes_of(b.sext(loaded, "i32"))

    def zeros(
        self, group: Value | int, column: Value, offset: int = 0, count: int = 1
    ) -> list[Value]:
        """Zero points (i32), as `scales`; of asymmetric formats."""
        pointer = self._row(self._zeros, group, column, 1)
        loaded = self._load(pointer, vec(count, "i8"), offset)
        return self.b.lanes_of(self.b.zext(loaded, "i32"))

    def _row(self, base: Value, group: Value | int, column: Value, size: int) -> Value:
        """The address of (group, column) in a table [groups][padded n]."""
        if isinstance(group, int):
            row = base if group == 0 else self.b.at(base, self._padded_n * (group * size))
        else:
            row = self.b.at(base, self._padded_n * self.b.wide(group) * size)
        return self.b.at(row, column * size)
