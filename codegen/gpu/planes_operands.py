"""The operands of a kernel of the strategy `planes` in global memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..builder import Value
from .builder import GpuBuilder
from .planes_layout import TILE_COLUMNS
from .planes_plan import PlanesPlan


@dataclass(frozen=True)
class Factors:
    """Of one group: scales (f32), sums of codes and zero points of some columns, sums of some rows;
    what a layout does not have is empty."""

    scales: list[Value]
    weight_sums: list[Value]
    weight_zeros: list[Value]
    row_sums: list[Value]


@dataclass
class PlaneOperands:
    """Packed rows, packed weight and bias of an m x n result. Rows and columns may be beyond the
    last one, and are then those of the last row or padding of the last tile."""

    plan: PlanesPlan
    b: GpuBuilder
    rows: Value
    weight: Value
    bias: Value
    m: Value
    n: Value

    @cached_property
    def tiles(self) -> Value:
        return self.b.ceil_div(self.n, TILE_COLUMNS)

    @cached_property
    def _padded_n(self) -> Value:
        return self.b.wide(self.tiles) * TILE_COLUMNS

    @cached_property
    def _tables(self) -> tuple[Value, Value, Value]:
        """Pointers to scales, sums and zero points."""
        b, layout = self.b, self.plan.weight
        groups = layout.grouped.groups
        scales = b.at(self.weight, b.wide(self.tiles) * layout.tile_bytes)
        sums = b.at(scales, self._padded_n * (groups * layout.scale_bytes))
        zeros = b.at(sums, self._padded_n * (4 * groups)) if layout.has_sums else sums
        return scales, sums, zeros

    def prepare(self) -> None:
        """Compute addresses here, outside of loops and conditions."""
        _ = self._tables

    def row(self, token: Value) -> Value:
        """The packed row of a token."""
        last = self.b.min(token, self.m - 1)
        return self.b.at(self.rows, self.b.wide(last) * self.plan.rows.row_bytes)

    def tile(self, tile: Value) -> Value:
        """The codes of 16 columns."""
        last = self.b.min(tile, self.tiles - 1)
        return self.b.at(self.weight, self.b.wide(last) * self.plan.weight.tile_bytes)

    def column(self, column: Value) -> Value:
        """The column, or one of the last tile."""
        return self.b.min(column, self.tiles * TILE_COLUMNS - 1)

    def factors(self, group: Value, rows: Sequence[Value], columns: Sequence[Value]) -> Factors:
        """What settles a group's sums of packed rows and of columns (ones that `column` gave)."""
        b, plan = self.b, self.plan
        weight_sums, weight_zeros, row_sums = [], [], []
        if plan.weight.has_sums:
            weight_sums = [self._table(1, "i32", group, column) for column in columns]
        if plan.weight.has_zeros:
            weight_zeros = [b.zext(self._table(2, "i8", group, c), "i32") for c in columns]
        if plan.rows.has_sums:
            at = group * 4 + plan.rows.sums_offset
            row_sums = [b.load(row, "i32", at, cache="nc") for row in rows]
        scales = [self._scale(group, column) for column in columns]
        return Factors(scales, weight_sums, weight_zeros, row_sums)

    def corrected(self, total: Value, row: Value, factors: Factors, i: int, j: int) -> Value:
        """sum of (q_a - z_a) * (q_w - z_w), i32, of the sum of planes' products of the i-th row and
        j-th column of `factors`.

        With q = u - offset: total - (z_a + offset_a) sum v - (z_w + offset_w) sum (q_a - z_a).
        """
        b, plan = self.b, self.plan
        if plan.weight.has_sums:
            zero: Value | int = plan.row_offset
            if not zero:
                zero = b.load(row, "i32", plan.rows.zero_offset, cache="nc")
            total = total - factors.weight_sums[j] * zero
        if plan.rows.has_sums:
            zero = plan.weight_offset or factors.weight_zeros[j]
            total = total - factors.row_sums[i] * zero
        return total

    def scaled(self, value: Value, row: Value, column: Value) -> Value:
        """The result y, of the corrected sum (one group, i32) or the sum over groups (f32)."""
        b = self.b
        scale = b.load(row, "f32", self.plan.rows.scale_offset, cache="nc")
        bias = b.load(self.bias, "f32", b.min(column, self.n - 1) * 4, cache="nc")
        if not self.plan.one_group:
            return b.fma(scale, value, bias)
        factors = self.factors(b.const(0, "i32"), [row], [column])
        acc = self.corrected(value, row, factors, 0, 0)
        return b.fma(scale * factors.scales[0], b.to_float(acc), bias)

    def _scale(self, group: Value, column: Value) -> Value:
        loaded = self._table(0, f"f{self.plan.weight.scale_bits}", group, column)
        return loaded if self.plan.weight.scale_bits == 32 else self.b.extend(loaded)

    def _table(self, number: int, element: str, group: Value, column: Value) -> Value:
        """An element of scales, sums or zero points."""
        size = {"i8": 1, "f16": 2}.get(element, 4)
        pointer = self._at(self._tables[number], group, column, size)
        return self.b.load(pointer, element, cache="nc")

    def _at(self, table: Value, group: Value, column: Value, size: int) -> Value:
        """The address of (group, column) in a table [groups][padded n]."""
        b = self.b
        if self.plan.one_group:
            return b.at(table, column * size)
        place = self._padded_n * b.wide(group) + b.wide(column)
        return b.at(table, place * size)
