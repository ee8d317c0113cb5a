"""The operands of a kernel of the strategy `planes` in global memory, and what settles its sums."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from abqc.codegen.builder import Value, vec

from ..builder import GpuBuilder
from ..magic import MAGIC
from .layout import HALVES, TILE_COLUMNS
from .plan import PlanesPlan


@dataclass(frozen=True)
class Factors:
    """Of one group and some columns: scales (f32), sums of codes and zero points (i32); what a
    layout does not have is empty."""

    scales: list[Value]
    sums: list[Value]
    zeros: list[Value]


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
    def _records(self) -> Value:
        b = self.b
        return b.at(self.weight, b.wide(self.tiles) * self.plan.weight.tile_bytes)

    def prepare(self) -> None:
        """Compute addresses here, outside of loops and conditions."""
        _ = self._records

    def row(self, token: Value) -> Value:
        """The packed row of a token."""
        last = self.b.min(token, self.m - 1)
        return self.b.at(self.rows, self.b.wide(last) * self.plan.rows.row_bytes)

    def tile(self, tile: Value) -> Value:
        """The codes of 16 columns."""
        return self.b.at(self.weight, self._known(tile) * self.plan.weight.tile_bytes)

    def records(self, tile: Value) -> Value:
        """The records of 16 columns, one for each group."""
        layout = self.plan.weight
        pitch = layout.grouped.groups * layout.record_bytes
        return self.b.at(self._records, self._known(tile) * pitch)

    def _known(self, tile: Value) -> Value:
        """The tile, or the last one, i64."""
        return self.b.wide(self.b.min(tile, self.tiles - 1))

    def prefetch_bias(self, column: Value) -> None:
        """Start to bring a column's bias to L2."""
        b = self.b
        b.prefetch_line(b.at(self.bias, b.wide(b.min(column, self.n - 1)) * 4))

    # Sums and factors

    def row_sum(self, token: Value, group: Value | int) -> Value:
        """Sum of q - zero of a row's group, where packed rows have it."""
        at = self.b.index(group) * 4 + self.plan.rows.sums_offset
        return self.b.load(self.row(token), "i32", at, cache="nc")

    def factors(self, record: Value, column: Value, count: int = 1) -> Factors:
        """From the record at `record`, in global or shared memory: of a tile's column, or of
        `count` = 2 columns from `column` (below 8) on, 8 apart."""
        b, layout = self.b, self.plan.weight
        place = (column % 8) * HALVES + column // 8

        def load(element: str, size: int, offset: int) -> Value:
            return b.load(b.at(record, place * size), vec(count, element), offset)

        sums, zeros = [], []
        if layout.has_sums:
            sums = b.lanes_of(load("i32", 4, layout.record_sums))
        if layout.has_zeros:
            zeros = b.lanes_of(b.zext(load("i8", 1, layout.record_zeros), "i32"))
        scales = load(f"f{layout.scale_bits}", layout.scale_bytes, 0)
        return Factors(
            b.lanes_of(b.extend(scales) if layout.scale_bits < 32 else scales), sums, zeros
        )

    def row_zero(self, token: Value) -> Value | int:
        """z_a + offset_a of a row."""
        fixed = self.plan.row_offset
        return fixed or self.b.load(self.row(token), "i32", self.plan.rows.zero_offset, cache="nc")

    def minus_zero(self, token: Value) -> Value | int:
        """-(z_a + offset_a), a float."""
        zero = self.row_zero(token)
        return -zero if isinstance(zero, int) else self.b.to_float(0 - zero)

    def _column_zero(self, factors: Factors, j: int) -> Value | int:
        """z_w + offset_w."""
        return self.plan.weight_offset or factors.zeros[j]

    def corrected(
        self, total: Value, zero: Value | int, row_sum: Value | None, factors: Factors, j: int
    ) -> Value:
        """sum of (q_a - z_a) * (q_w - z_w), i32, of the sum of planes' products of a row, whose
        `row_zero` is `zero`, and the j-th column of `factors`.

        With q = u - offset: total - (z_a + offset_a) sum v - (z_w + offset_w) sum (q_a - z_a).
        """
        if self.plan.weight.has_sums:
            total = total - factors.sums[j] * zero
        return total if row_sum is None else total - row_sum * self._column_zero(factors, j)

    def corrected_float(
        self, total: Value, minus_zero: Value | int, row_sum: Value | None, factors: Factors, j: int
    ) -> Value:
        """As `corrected`, f32, of a total that began at MAGIC_BITS: all is exact, and nothing is
        done for every sum that is slow (conversions, multiplications of integers)."""
        b = self.b
        if row_sum is not None:
            total = total - row_sum * self._column_zero(factors, j)
        value = b.from_bits(total, "f32") - MAGIC
        if not self.plan.weight.has_sums:
            return value
        sums = b.to_float(factors.sums[j])
        if isinstance(minus_zero, int):
            return value + sums * float(minus_zero)
        return b.fma(sums, minus_zero, value)

    def scaled(self, value: Value, token: Value, column: Value) -> Value:
        """y, of the sum of planes' products (one group, i32), or of scaled groups (f32)."""
        b = self.b
        scale = b.load(self.row(token), "f32", self.plan.rows.scale_offset, cache="nc")
        bias = b.load(self.bias, "f32", b.min(column, self.n - 1) * 4, cache="nc")
        if not self.plan.one_group:
            return b.fma(scale, value, bias)
        factors = self.factors(self.records(column // TILE_COLUMNS), column % TILE_COLUMNS)
        row_sum = self.row_sum(token, 0) if self.plan.rows.has_sums else None
        acc = self.corrected(value, self.row_zero(token), row_sum, factors, 0)
        return b.fma(scale * factors.scales[0], b.to_float(acc), bias)
