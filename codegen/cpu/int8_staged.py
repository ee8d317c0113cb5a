"""Strategy `int8` for many rows: weights are unpacked once for all row tiles of a block.

A chunk of K is unpacked to bytes on the stack, where it stays in the first-level cache while every
row tile multiplies by it. Accumulators of a group that has several chunks, and totals over several
groups, wait on the stack as well.

    for each group:
        for each chunk: unpack; for each row tile: acc += products
        for each row tile: take out zero points; total += s_w * acc, or store
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..builder import Value, vec
from .int8_kernels import Int8Body, Int8Kernel
from .panel_layout import PANEL

CHUNK = 256  # elements of K unpacked at a time: 16 KiB for 4 panels
QUAD_BYTES = 64


def worth_staging(kernel: Int8Kernel) -> bool:
    """Whether a block has several row tiles, and either unpacking or totals to keep.

    Segments of more than int32 holds are summed by the plain body.
    """
    reduction = kernel.weight.reduction
    if kernel.rows >= kernel.block[0] or reduction.segments_per_group > 1:
        return False
    return kernel.weight.value.bits < 8 or reduction.n_groups > 1


class StagedBody(Int8Body):
    """See the module."""

    def emit(self, i: Value) -> None:
        b, columns = self.b, self.tile.panels * PANEL
        self._chunk = min(CHUNK, self.reduction.segment_pitch)
        self._chunks = -(-self.reduction.segment_pitch // self._chunk)
        tiles = -(-self.kernel.block[0] // self.tile.rows)
        cells = tiles * self.tile.rows * columns
        self._bytes = b.alloca(self._chunk * columns, "i8")
        self._acc = b.alloca(cells, "i32") if self._chunks > 1 else None
        keeps_totals = self.reduction.n_groups > 1 and not self.kernel.accumulators
        self._totals = b.alloca(cells, "f32") if keeps_totals else None
        super().emit(i)

    def panels(self, first_row: Value, panel: Value, w_at: Sequence[Value]) -> None:
        self._first_row = first_row
        if self._totals is not None:
            self._clear(self._totals, "f32")
        with self.b.loop(0, self.reduction.n_groups) as groups:
            self._group_of_rows(panel, w_at, groups.i)
        if self._totals is not None:
            totals = self._totals
            self._each_tile(
                lambda row, q_at: self.store_totals(self._load(totals, row), row, panel, q_at)
            )

    def _group_of_rows(self, panel: Value, w_at: Sequence[Value], group: Value) -> None:
        b, unit = self.b, self.reduction.unit
        terms = self.reduction.emit_terms(b, group, b.index(0))
        units = (terms + (unit - 1)) // unit

        def finish(products: list[list[Value]], row: Value, q_at: Sequence[Value]) -> None:
            acc = self.centre(products, q_at, w_at, group, group, terms)
            self._finish(acc, row, panel, q_at, w_at, group)

        if self._acc is None:
            self._unpack_chunk(w_at, group, b.index(0), units)

            def only(row: Value, q_at: Sequence[Value]) -> None:
                finish(self._multiply_chunk(None, q_at, group, b.index(0), units), row, q_at)

            self._each_tile(only)
            return
        kept, chunk_units = self._acc, self._chunk // unit
        self._clear(kept, "i32")
        with b.loop(0, units, chunk_units) as chunks:
            count = b.min(units - chunks.i, b.index(chunk_units))
            self._unpack_chunk(w_at, group, chunks.i, count)

            def add(row: Value, q_at: Sequence[Value]) -> None:
                acc = self._load(kept, row)
                self._keep(kept, row, self._multiply_chunk(acc, q_at, group, chunks.i, count))

            self._each_tile(add)
        self._each_tile(lambda row, q_at: finish(self._load(kept, row), row, q_at))

    def _finish(
        self,
        acc: list[list[Value]],
        row: Value,
        panel: Value,
        q_at: Sequence[Value],
        w_at: Sequence[Value],
        group: Value,
    ) -> None:
        if self.kernel.accumulators:
            self.store_accumulators(acc, row, panel, group)
        elif self._totals is None:
            self.store_one_group(acc, row, panel, q_at, w_at)
        else:
            before = self._load(self._totals, row)
            self._keep(self._totals, row, self.add_group(before, acc, w_at, group))

    def _unpack_chunk(
        self, w_at: Sequence[Value], group: Value, first_unit: Value, units: Value
    ) -> None:
        """Units from `first_unit` on to bytes, [panel][quad]."""
        b, unit_bytes = self.b, self.weight.unit_bytes
        begin = group * self.weight.segment_bytes + first_unit * unit_bytes
        with b.loop(0, units) as loop:
            for c, at in enumerate(w_at):
                quads = self.unpack(self.w, at + (begin + loop.i * unit_bytes))
                target = loop.i * (self.reduction.unit * PANEL) + c * self._chunk * PANEL
                for number, quad in enumerate(quads):
                    b.store_as(quad, self._bytes, target + number * QUAD_BYTES)

    def _multiply_chunk(
        self,
        start: list[list[Value]] | None,
        q_at: Sequence[Value],
        group: Value,
        first_unit: Value,
        units: Value,
    ) -> list[list[Value]]:
        """`start` plus the products of an unpacked chunk, [row][panel]."""
        b, dot, unit = self.b, self.dot, self.reduction.unit
        codes_at = group * self.row.segment_bytes + first_unit * unit + self.row.codes_offset

        def quads(u: Value) -> list[list[Value]]:
            at = u * (unit * PANEL)
            return [
                [
                    b.load_as(
                        self._bytes,
                        at + (c * self._chunk * PANEL + quad * QUAD_BYTES),
                        vec(PANEL, "i32"),
                    )
                    for quad in range(unit // 4)
                ]
                for c in range(self.tile.panels)
            ]

        cells = self.tile.rows * self.tile.panels
        if start is None:
            acc = [dot.zero() for _ in range(cells)]
        else:
            acc = [dot.split(x) for line in start for x in line]
        acc = self.multiply(acc, units, [at + codes_at for at in q_at], quads)
        sums = [dot.join(x) for x in acc]
        return [sums[i : i + self.tile.panels] for i in range(0, cells, self.tile.panels)]

    # Values of all tiles, kept on the stack as [row][panel][16]

    def _each_tile(self, body: Callable[[Value, list[Value]], None]) -> None:
        with self.b.loop(self._first_row, self.last_row, self.tile.rows) as rows:
            body(rows.i, self.rows_at(rows.i))

    def _cell(self, row: Value, r: int, c: int) -> Value:
        return ((row - self._first_row + r) * self.tile.panels + c) * PANEL

    def _load(self, kept: Value, row: Value) -> list[list[Value]]:
        return [
            [self.b.load(kept, self._cell(row, r, c), PANEL) for c in range(self.tile.panels)]
            for r in range(self.tile.rows)
        ]

    def _keep(self, kept: Value, row: Value, values: list[list[Value]]) -> None:
        for r, line in enumerate(values):
            for c, value in enumerate(line):
                self.b.store(value, kept, self._cell(row, r, c))

    def _clear(self, kept: Value, element: str) -> None:
        zero = self.b.const(0, vec(PANEL, element))
        self._each_tile(
            lambda row, _: self._keep(kept, row, [[zero] * self.tile.panels] * self.tile.rows)
        )
