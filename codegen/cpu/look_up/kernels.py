"""Products of strategy `look-up`: VPSHUFB in tables of sums, which are added up in bytes.

Before a byte could overflow, the sums of a channel are added to 32 bits by a product with ones, or
with 2^split for the upper part. Instruction sets without VPSHUFB multiply as strategy `int8`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.isa import Isa

from ..int8.dot import Dot
from ..int8.kernels import ONES, Int8Kernel
from ..int8.layout import QUAD_CODES
from ..panels.look_up import SHUFFLE_BYTES
from ..panels.matmul import PanelBody, split
from .tables import (
    BYTE_MAX,
    HALVES,
    TABLE_BYTES,
    TERMS,
    TableRowLayout,
    Tables,
    by_channel,
    by_place,
    nibbles,
    ones,
)

MAX_SPAN = 4  # units whose sums are added in bytes, at most

Sums = list[Value | None]  # of a row of a panel, by part


@dataclass(frozen=True)
class LookUpKernel(Int8Kernel):
    """`row` has the tables."""

    row: TableRowLayout

    def body(self, isa: Isa) -> type[PanelBody]:
        return LookUpBody if isa.vector_bits in SHUFFLE_BYTES else super().body(isa)


class LookUpBody(PanelBody):
    """See the module."""

    kernel: LookUpKernel

    @property
    def tables(self) -> Tables:
        return self.kernel.row.tables

    @property
    def dot(self) -> Dot:
        return Dot(self.b, BYTE_MAX, 1 << self.tables.split, False)

    @property
    def span(self) -> int:
        """Units whose sums are added in bytes."""
        return min(MAX_SPAN, self.tables.lookups // HALVES)

    def products(
        self, q_at: Sequence[Value], w_at: Sequence[Value], segment: Value, terms: Value
    ) -> list[list[Value]]:
        """sum of u * v over a segment, [row][panel]."""
        b, dot, row, span = self.b, self.dot, self.kernel.row, self.span
        tables_at = segment * row.segment_table_bytes + row.tables_offset
        q_at = [at + tables_at for at in q_at]
        w_at = [at + self.weight.codes_at(segment) for at in w_at]
        units = (terms + (TERMS - 1)) // TERMS
        registers = len(dot.zero())
        carry = [x for _ in range(self.product_rows * self.tile.panels) for x in dot.zero()]
        whole = units - units % span
        for begin, end, step in ((b.index(0), whole, span), (whole, units, 1))[: min(span, 2)]:
            with b.loop(begin, end, step, carry=carry) as loop:
                acc = split(loop.args, registers)
                self._span(acc, q_at, w_at, loop.i, step)
                loop.carry(*(x for sums in acc for x in sums))
            carry = loop.results
        joined = [dot.join(sums) for sums in split(carry, registers)]
        return split(joined, self.tile.panels)

    def _span(
        self,
        acc: list[list[Value]],
        q_at: Sequence[Value],
        w_at: Sequence[Value],
        first: Value,
        units: int,
    ) -> None:
        """Add the products of some units to `acc`, [row, panel][register]."""
        b, panels = self.b, self.tile.panels
        sums: list[Sums] = [[None] * self.tables.parts for _ in acc]
        for u in range(units):
            at = (first + u) * self.weight.unit_bytes
            indices = [self._indices(panel_at + at) for panel_at in w_at]
            for r in range(self.product_rows):
                for half in range(HALVES):
                    for part, table in enumerate(self._row_tables(q_at, r, first + u, half)):
                        for c in range(panels):
                            _add(sums[r * panels + c], part, look_up(b, table, indices[c][half]))
        for x, by_part in enumerate(sums):
            acc[x] = self._widen(acc[x], by_part)

    def _indices(self, at: Value) -> Sequence[Value]:
        """The nibbles of a unit of a panel, by place."""
        b = self.b
        codes = b.load_as(self.w, at, vec(QUAD_CODES, "i8"))
        self.prefetch_next(at)
        return nibbles(by_place(b, codes))

    def _row_tables(self, q_at: Sequence[Value], r: int, unit: Value, half: int) -> list[Value]:
        """The parts of the tables of a row; the row behind the last one is of ones."""
        b, tables = self.b, self.tables
        if r == len(q_at):
            return [ones(b)]
        at = q_at[r] + unit * tables.unit_bytes
        return [
            b.load_as(self.q, at + tables.offset(half, part), vec(TABLE_BYTES, "i8"))
            for part in range(tables.parts)
        ]

    def _widen(self, acc: list[Value], sums: Sums) -> list[Value]:
        """acc + the sums of bytes over the places of every channel."""
        b, dot = self.b, self.dot
        for part, total in enumerate(sums):
            if total is None:
                continue
            lanes = b.bitcast(by_channel(b, total), vec(QUAD_CODES // 4, "i32"))
            factor = dot.weight(b.const(ONES << part * self.tables.split, "i32"))
            acc = [
                dot.add_products(x, dot.pixels(register), factor)
                for x, register in zip(acc, dot.split(lanes), strict=True)
            ]
        return acc


def _add(sums: Sums, part: int, looked_up: Value) -> None:
    total = sums[part]
    sums[part] = looked_up if total is None else total + looked_up


def look_up(b: Builder, table: Value, indices: Value) -> Value:
    """In each 16 bytes, those of `table` by the indices 0 to 15 there."""
    size = b.isa.vector_bits // 8
    intrinsic = SHUFFLE_BYTES[b.isa.vector_bits]
    parts = []
    for first in range(0, table.lanes, size):
        operands = [b.slice(x, first, size) for x in (table, indices)]
        parts.append(b.intrinsic(intrinsic, operands[0].type, *operands))
    return b.join(*parts)
