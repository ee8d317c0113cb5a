"""Strategy `look-up`: sums of a few activations are looked up by the weights' bits.

For weights of one bit, which are stored as strategy `int8` does. Rows are packed with their tables
(`tables.py`). Exact for every activation format up to 8 bits, every group size and ragged M, N and
K. More bits are no gain where there are dot products of bytes (measured, Zen 4: two bits reach 0.55
of the rate of `int8` with activations of 8 bits, 0.95 with 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import NumberFormat

from ..int8.schedules import ROWS
from ..int8.strategy import Int8Rows, Int8Strategy
from ..packing.quantize_row import RowCodes, RowScale
from ..panels.layout import PANEL, RowLayout, WeightLayout
from ..panels.look_up import SHUFFLE_BYTES
from ..panels.matmul import PanelKernel
from ..panels.strategy import PanelRows, activation_of, weight_of
from ..schedule import COLUMNS, CpuSchedule, KernelSchedule, RowRange, distinct
from .kernels import LookUpKernel
from .tables import HALF_TERMS, HALVES, TERMS, TableRowLayout, Tables


@dataclass(frozen=True)
class TableRows(Int8Rows):
    """A code is a byte; behind the codes are the tables."""

    layout: TableRowLayout

    def write_row(self, b: Builder, codes: RowCodes, row: RowScale, q: Value, at: Value) -> None:
        super().write_row(b, codes, row, q, at)
        layout, tables = self.layout, self.layout.tables
        with b.loop(0, layout.reduction.padded_k // TERMS) as units:
            source = at + (units.i * TERMS + layout.codes_offset)
            target = at + (units.i * tables.unit_bytes + layout.tables_offset)
            for half in range(HALVES):
                u = b.load_as(q, source + half * HALF_TERMS, vec(HALF_TERMS, "i8"))
                for part, table in enumerate(tables.of_codes(b, u)):
                    b.store_as(table, q, target + tables.offset(half, part))


class LookUpStrategy(Int8Strategy):
    """See the module."""

    name = "look-up"

    def unsupported(self, spec: MatmulSpec) -> str | None:
        refusal = super().unsupported(spec)
        if refusal is not None:
            return refusal
        if self.stored_value(weight_of(spec).format).bits > 1:
            return f"strategy 'look-up' takes weights of one bit, not {spec.weight}"
        return None

    def row_layout(self, spec: MatmulSpec) -> TableRowLayout:
        codes, format = super().row_layout(spec), activation_of(spec).format
        tables = Tables(format.qmax - format.qmin)
        return TableRowLayout(codes.reduction, codes.code_bits, tables)

    def rows(self, layout: RowLayout, activation: NumberFormat) -> PanelRows:
        assert isinstance(layout, TableRowLayout)
        return TableRows(layout)

    def schedules(self, spec: MatmulSpec, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
        """A row of a panel takes a sum of 32 bits and one of each part, beside indices, tables."""
        if isa.vector_bits not in SHUFFLE_BYTES:
            return super().schedules(spec, rows, isa)
        if isa.vector_bits < 512:
            tiles = [(1, 1)]
        else:
            tiles = [(1, 4), (1, 2)] if rows.one else [(4, 2), (2, 4), (2, 2)]
        block_m = 1 if rows.one else ROWS
        return distinct(
            CpuSchedule(tile_m, panels * PANEL, 1, block_m, COLUMNS, prefetch)
            for prefetch in (1, 0)
            for tile_m, panels in tiles
        )

    def kernel(
        self,
        spec: MatmulSpec,
        weight: WeightLayout,
        row: RowLayout,
        schedule: KernelSchedule,
        accumulators: bool,
    ) -> PanelKernel:
        assert isinstance(row, TableRowLayout)
        return LookUpKernel(weight, row, schedule, accumulators, row.tables.highest)
