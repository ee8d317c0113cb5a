"""Products of packed weights and a few activation rows on CUDA cores, and what is made of the sums.

    Int8Products   dp4a on bytes; sums are exact
    HalfProducts   f32 multiply-adds on exact 16-bit weights: f16 sums would overflow where an
                   activation of some hundreds meets an 8-bit weight

A lane has columns c, c + 8, c + 16, c + 24 of a tile, c = lane / 4, and of each unit the terms of
its quarter, lane % 4 (weights.py). `LaneSums.transpose` adds quarters, such that afterwards a lane
has the whole sum of one column, `8 * (lane % 4) + c`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..builder import Value, vec
from ..strategy import MatmulSpec
from .builder import GpuBuilder
from .decode import byte_type, half_register, s8_factor, s8_register, s8_shift
from .rows_layout import FloatElement, FloatRows, Int8Rows
from .weight_pointers import PackedWeight
from .weights import BLOCK_COLUMNS, BLOCKS, TILE_COLUMNS, WeightLayout

QUARTERS = 4  # lanes that share a column


class RowProducts(Protocol):
    """What differs between quantized and float activations. `rows` are pointers to packed rows."""

    layout: WeightLayout
    accumulator: str  # type of sums
    row_bytes: int
    unit_bytes: int  # of a unit in a row
    name: str

    def load(self, b: GpuBuilder, row: Value, offset: Value, at: int) -> list[Value]:
        """The lane's words of the unit that begins at byte `offset` + `at` of a row."""
        ...

    def group_values(self, weight: PackedWeight, group: Value | int, tile: Value) -> list[Value]:
        """What a lane needs to know of a group."""
        ...

    def multiply(
        self,
        b: GpuBuilder,
        words: Sequence[Value],
        place: int,
        x: Sequence[Sequence[Value]],
        sums: Sequence[Value],
        group: Sequence[Value],
    ) -> list[Value]:
        """Sums of rows after block `place % 4` of unit `place // 4` of a chunk."""
        ...

    def scaled(
        self, b: GpuBuilder, sums: Sequence[Value], group: Sequence[Value], totals: Sequence[Value],
        rows: Sequence[Value], number: Value,
    ) -> list[Value]:  # fmt: skip
        """Totals (f32) after the whole sums of a group."""
        ...

    def finish(
        self, b: GpuBuilder, total: Value, row: Value, weight: PackedWeight, column: Value,
        bias: Value,
    ) -> Value:  # fmt: skip
        """y of a sum over all of K: the one group's sum, or the total of several."""
        ...


def lane_columns(b: GpuBuilder, tile: Value) -> list[Value]:
    """The four columns of a lane before sums are transposed."""
    first = tile * TILE_COLUMNS + b.lane // QUARTERS
    return [first + block * BLOCK_COLUMNS for block in range(BLOCKS)]


def lane_column(b: GpuBuilder) -> Value:
    """The lane's column in the tile after sums are transposed."""
    return b.lane % QUARTERS * BLOCK_COLUMNS + b.lane // QUARTERS


def transpose_sums(b: GpuBuilder, sums: Sequence[Value]) -> Value:
    """Of a lane's sums of four blocks, added over quarters, that of block `lane % 4`."""
    upper, odd = (b.lane & 2) != 0, (b.lane & 1) != 0
    kept = []
    for low, high in ((0, 2), (1, 3)):
        mine = b.select(upper, sums[high], sums[low])
        other = b.select(upper, sums[low], sums[high])
        kept.append(mine + b.exchange(other, "bfly", 2))
    mine = b.select(odd, kept[1], kept[0])
    other = b.select(odd, kept[0], kept[1])
    return mine + b.exchange(other, "bfly", 1)


class Int8Products:
    """Activations of up to 8 bits: acc of docs/numerics.md, times `s8_factor`, exact."""

    accumulator = "i32"

    def __init__(self, spec: MatmulSpec) -> None:
        assert spec.weight is not None and spec.activation is not None
        self.format = spec.weight.format
        self.rows = Int8Rows.of(spec)
        self.layout = WeightLayout.of(spec)
        self.row_bytes = self.rows.row_bytes
        self.unit_bytes = self.layout.grouped.unit
        signs = "u" if self.rows.unsigned else "s"
        self.signs = signs + byte_type(self.format)[0]
        sums = "_za" if self.layout.has_sums else ""
        self.name = f"int8{signs}{sums}"

    def load(self, b: GpuBuilder, row: Value, offset: Value, at: int) -> list[Value]:
        pointer = b.at(row, offset + b.lane % QUARTERS * 4)
        return [b.load(pointer, "i32", at + 16 * half, cache="nc") for half in range(2)]

    def group_values(self, weight: PackedWeight, group: Value | int, tile: Value) -> list[Value]:
        column = tile * TILE_COLUMNS + lane_column(weight.b)
        values = weight.scales(group, column)
        if self.layout.has_sums:
            values += weight.sums(group, column)
        return values + (weight.zeros(group, column) if self.layout.has_zeros else [])

    def multiply(
        self,
        b: GpuBuilder,
        words: Sequence[Value],
        place: int,
        x: Sequence[Sequence[Value]],
        sums: Sequence[Value],
        group: Sequence[Value],
    ) -> list[Value]:
        count = self.layout.registers_per_block
        result = list(sums)
        for half in range(count):
            weights = s8_register(b, self.layout, words, place * count + half)
            result = [
                b.dot4(values[half], weights, total, signs=self.signs)
                for values, total in zip(x, result, strict=True)
            ]
        return result

    def scaled(
        self,
        b: GpuBuilder,
        sums: Sequence[Value],
        group: Sequence[Value],
        totals: Sequence[Value],
        rows: Sequence[Value],
        number: Value,
    ) -> list[Value]:
        scale = group[0] * (1.0 / s8_factor(self.format))
        return [
            b.fma(b.to_float(self._centred(b, total, group, row, number)), scale, sum_before)
            for total, row, sum_before in zip(sums, rows, totals, strict=True)
        ]

    def _centred(
        self, b: GpuBuilder, total: Value, group: Sequence[Value], row: Value, number: Value | int
    ) -> Value:
        """factor * acc of the whole sum of a group: zero points taken into account."""
        rest = list(group[1:])
        if self.layout.has_sums:
            zero = b.load(row, "i32", self.rows.zero_offset, cache="nc")
            total = total - zero * (rest.pop(0) << s8_shift(self.format))
        if self.layout.has_zeros:
            at = b.index(number) * 4 + self.rows.sums_offset
            total = total - b.load(row, "i32", at, cache="nc") * rest.pop(0)
        return total

    def finish(
        self,
        b: GpuBuilder,
        total: Value,
        row: Value,
        weight: PackedWeight,
        column: Value,
        bias: Value,
    ) -> Value:
        row_scale = b.load(row, "f32", self.rows.scale_offset, cache="nc")
        if self.layout.grouped.groups > 1:
            return b.fma(row_scale, total, bias)
        group = weight.scales(0, column)
        if self.layout.has_sums:
            group += weight.sums(0, column)
        if self.layout.has_zeros:
            group += weight.zeros(0, column)
        acc = self._centred(b, total, group, row, 0)
        shift = s8_shift(self.format)
        acc = acc.sar(shift) if shift else acc
        return b.fma(row_scale * group[0], b.to_float(acc), bias)


class HalfProducts:
    """Activations of f16 or bf16: f32 sums of x * (q - zero)."""

    accumulator = "f32"

    def __init__(self, spec: MatmulSpec, element: FloatElement = "f16") -> None:
        assert spec.weight is not None and spec.activation is None
        self.element = element
        self.layout = WeightLayout.of(spec)
        self.row_bytes = FloatRows.of(spec, element).row_bytes
        self.unit_bytes = 2 * self.layout.grouped.unit
        self.name = element

    def load(self, b: GpuBuilder, row: Value, offset: Value, at: int) -> list[Value]:
        """f32: a pair of every register."""
        pointer = b.at(row, offset + b.lane % QUARTERS * 4)
        values: list[Value] = []
        for register in range(self.layout.registers_per_block):
            pair = b.load(pointer, vec(2, self.element), at + 16 * register, cache="nc")
            values += b.lanes_of(b.extend(pair))
        return values

    def group_values(self, weight: PackedWeight, group: Value | int, tile: Value) -> list[Value]:
        """The scale of the lane's one column, and the zero points of its four."""
        values = weight.scales(group, tile * TILE_COLUMNS + lane_column(weight.b))
        if self.layout.has_zeros:
            for column in lane_columns(weight.b, tile):
                values += weight.zeros(group, column)
        return values

    def multiply(
        self,
        b: GpuBuilder,
        words: Sequence[Value],
        place: int,
        x: Sequence[Sequence[Value]],
        sums: Sequence[Value],
        group: Sequence[Value],
    ) -> list[Value]:
        minus_zero = None
        if self.layout.has_zeros:
            zero = b.to_float(0 - group[1 + place % BLOCKS])
            minus_zero = b.splat(b.narrow(zero, self.element), 2)
        count = self.layout.registers_per_block
        result = list(sums)
        for register in range(count):
            pair = half_register(
                b, self.layout, words, place * count + register, self.element, minus_zero
            )
            for i, weight in enumerate(b.lanes_of(b.extend(pair))):
                result = [
                    b.fma(values[2 * register + i], weight, total)
                    for values, total in zip(x, result, strict=True)
                ]
        return result

    def scaled(
        self,
        b: GpuBuilder,
        sums: Sequence[Value],
        group: Sequence[Value],
        totals: Sequence[Value],
        rows: Sequence[Value],
        number: Value,
    ) -> list[Value]:
        return [b.fma(total, group[0], before) for total, before in zip(sums, totals, strict=True)]

    def finish(
        self,
        b: GpuBuilder,
        total: Value,
        row: Value,
        weight: PackedWeight,
        column: Value,
        bias: Value,
    ) -> Value:
        if self.layout.grouped.groups > 1:
            return total + bias
        (scale,) = weight.scales(0, column)
        return b.fma(total, scale, bias)
