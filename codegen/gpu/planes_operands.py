"""The operands of a kernel of the strategy `planes` in global memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..builder import Value
from .builder import GpuBuilder
from .planes_layout import TILE_COLUMNS
from .planes_plan import PlanesPlan


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

    def scale(self, group: Value, column: Value) -> Value:
        """f32, of a weight's group and column (one that `column` gave)."""
        b, bits = self.b, self.plan.weight.scale_bits
        pointer = self._at(self._tables[0], group, column, bits // 8)
        loaded = b.load(pointer, f"f{bits}", cache="nc")
        return loaded if bits == 32 else b.extend(loaded)

    def corrected(self, total: Value, row: Value, group: Value, column: Value) -> Value:
        """sum of (q_a - z_a) * (q_w - z_w), i32, of a group and the sum of its planes' products.

        With q = u - offset: total - (z_a + offset_a) sum v - (z_w + offset_w) sum (q_a - z_a).
        """
        b, plan = self.b, self.plan
        if plan.weight.has_sums:
            pointer = self._at(self._tables[1], group, column, 4)
            sums = b.load(pointer, "i32", cache="nc")
            if plan.row_offset:
                total = total - sums * plan.row_offset
            else:
                total = total - sums * b.load(row, "i32", plan.rows.zero_offset, cache="nc")
        if plan.rows.has_sums:
            sums = b.load(row, "i32", group * 4 + plan.rows.sums_offset, cache="nc")
            if plan.weight_offset:
                total = total - sums * plan.weight_offset
            else:
                pointer = self._at(self._tables[2], group, column, 1)
                total = total - sums * b.zext(b.load(pointer, "i8", cache="nc"), "i32")
        return total

    def scaled(self, value: Value, row: Value, column: Value) -> Value:
        """The result y, of the corrected sum (one group, i32) or the sum over groups (f32)."""
        b = self.b
        scale = b.load(row, "f32", self.plan.rows.scale_offset, cache="nc")
        bias = b.load(self.bias, "f32", b.min(column, self.n - 1) * 4, cache="nc")
        if not self.plan.one_group:
            return b.fma(scale, value, bias)
        group = b.const(0, "i32")
        scale = scale * self.scale(group, column)
        return b.fma(scale, b.to_float(self.corrected(value, row, group, column)), bias)

    def _at(self, table: Value, group: Value, column: Value, size: int) -> Value:
        """The address of (group, column) in a table [groups][padded n]."""
        b = self.b
        if self.plan.one_group:
            return b.at(table, column * size)
        place = self._padded_n * b.wide(group) + b.wide(column)
        return b.at(table, place * size)
