"""Products of strategy `trellis`: codes decoded to the bytes of strategy `int8`.

With one row, four panels are decoded in registers as they are multiplied: they read the same lines
of the streams. With more rows a panel is decoded to the stack, for all of K, and shared by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Value, vec
from abqc.codegen.isa import Isa

from ..int8.dot import Products
from ..int8.kernels import Int8Body, Int8Kernel, Quads
from ..int8.layout import QUAD
from ..int8.schedules import ROWS, Space
from ..panels.layout import PANEL
from ..panels.matmul import PanelBody
from ..schedule import COLUMNS, CpuSchedule, RowRange, block_columns, distinct
from .decode import Decoder, table_on_stack
from .layout import StreamPlace, TrellisLayout

MAX_K = 1 << 16  # a megabyte of decoded bytes on the stack


@dataclass(frozen=True)
class TrellisKernel(Int8Kernel):
    """See the module."""

    def body(self, isa: Isa) -> type[PanelBody]:
        return OneRowBody if self.schedule.block[0] == 1 else RowsBody


def schedules(
    weight: TrellisLayout, a_highest: int, n: int, rows: RowRange, isa: Isa
) -> tuple[CpuSchedule, ...]:
    """Those for `n` channels and activation codes up to `a_highest`, the default first."""
    if rows.one:
        most = 4 if isa.registers >= 32 else 1
        tiles = [panels for panels in (4, 2, 1) if panels <= most]
        return distinct(
            CpuSchedule(1, panels * PANEL, 1, 1, block_columns(n, panels * PANEL, wanted))
            for panels in tiles
            for wanted in (COLUMNS, 128)
        )
    most = 8 if isa.registers >= 32 else 4
    heights = [height for height in (8, 6, 4, 3, 2) if height <= most]
    space = Space(weight, n, isa, Products.of(isa, a_highest, weight.value.highest))
    heights = [height for height in heights if space.fits(height, 1, 1)] or [1]
    return distinct(
        CpuSchedule(height, PANEL, 1, block_m, columns, decode_once=True)
        for height in heights
        for block_m, columns in ((ROWS, COLUMNS), (2 * ROWS, COLUMNS), (ROWS, 2 * PANEL))
    )


class TrellisBody(Int8Body):
    """What both have in common. `w` holds heads where `int8` has panels."""

    def decoder(self, panel: Value, table: Value | None) -> Decoder:
        layout = self.weight
        assert isinstance(layout, TrellisLayout)
        place = StreamPlace.of(self.b, layout, panel, self.n)
        return Decoder(self.b, layout, self.w, place, table)

    def bounds(self, segment: Value) -> tuple[Value, Value | None]:
        """Where a segment begins in K, and where it ends; None where it is of whole units."""
        reduction, per_group = self.reduction, self.reduction.segments_per_group
        group, part = segment // per_group, segment % per_group
        begin = group * reduction.group_size + part * reduction.segment_size
        if reduction.divides(reduction.unit):
            return begin, None
        return begin, begin + reduction.emit_terms(self.b, group, part)


class OneRowBody(TrellisBody):
    def emit(self, i: Value) -> None:
        self._table = table_on_stack(self.b)
        super().emit(i)

    def _tile(self, row: Value, panel: Value, w_at: Sequence[Value]) -> None:
        last = (self.n + (PANEL - 1)) // PANEL - 1
        panels = [self.b.min(panel + c, last) for c in range(self.tile.panels)]
        self._decoders = [self.decoder(panel, self._table) for panel in panels]
        super()._tile(row, panel, w_at)

    def quads(self, w_at: Sequence[Value], segment: Value, unit: Value) -> Quads:
        begin, end = self.bounds(segment)
        first = begin + unit * self.reduction.unit
        return lambda panel, quad: self._decoders[panel].quad(first + quad * QUAD, end)


class RowsBody(TrellisBody):
    def emit(self, i: Value) -> None:
        b, layout = self.b, self.weight
        assert isinstance(layout, TrellisLayout)
        self._decoded = b.alloca(layout.decoded_bytes, "i8")
        table = table_on_stack(b)
        first_row, first, last, _ = self.block(i)
        with b.loop(first, last) as panels:
            self._decode(self.decoder(panels.i, table))
            with b.loop(first_row, self.last_row, self.tile.rows) as rows:
                self._tile(rows.i, panels.i, [panels.i * layout.panel_bytes])

    def _decode(self, decoder: Decoder) -> None:
        """All columns, and zeros up to whole units."""
        b, unit = self.b, self.reduction.unit
        with b.loop(0, self.reduction.n_segments) as segments:
            begin, end = self.bounds(segments.i)
            terms = b.index(self.reduction.segment_size) if end is None else end - begin
            target = self.weight.codes_at(segments.i)
            with b.loop(0, (terms + (unit - 1)) // unit * unit, QUAD) as loop:
                values = decoder.quad(begin + loop.i, end)
                b.store_as(values, self._decoded, target + loop.i * PANEL)

    def quads(self, w_at: Sequence[Value], segment: Value, unit: Value) -> Quads:
        at = self.weight.codes_at(segment) + unit * self.weight.unit_bytes
        return lambda _, quad: self.b.load_as(
            self._decoded, at + quad * QUAD * PANEL, vec(PANEL, "i32")
        )
