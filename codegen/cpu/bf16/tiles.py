"""Products of bf16 on tile registers (AMX): 32 rows by two panels, over all of K at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value, vec

from ..float_products.tile import PANEL, Product, load_columns, store_columns
from ..grid_block import Span
from ..int8.tile_registers import HEIGHT, ROW_BYTES, A, B, C, Tiles, tiles
from .rows import Bf16Rows
from .weights import Bf16Panels

PANELS = 2
ROWS = 2 * HEIGHT
SUM_BYTES = PANELS * ROW_BYTES  # of one row


def add_tiled_products(
    product: Product,
    q: Value,
    rows: Bf16Rows,
    w: Value,
    panels: Bf16Panels,
    row_span: Span,
    columns: Span,
    m: Value,
) -> None:
    """y += packed rows of `q` times weights `w`, for a block of rows and columns."""
    b = product.b
    height = b.min(m, HEIGHT)
    unit = tiles(b, height, ROW_BYTES)
    body = _Tiled(product, q, rows, w, panels, unit, height, m, b.alloca(ROWS * SUM_BYTES, "i8"))
    (first, last), (column, column_end) = row_span, columns
    with b.loop(column, column_end, PANELS * PANEL) as loop:
        both = loop.i + PANEL < column_end
        with b.loop(first, last, ROWS) as row_loop:
            for condition, count in ((both, PANELS), (both ^ 1, 1)):
                with b.when(condition):
                    body.multiply(row_loop.i, last, loop.i, count)
    unit.release()


@dataclass(frozen=True)
class _Tiled:
    product: Product
    q: Value
    rows: Bf16Rows
    w: Value
    panels: Bf16Panels
    unit: Tiles
    height: Value
    m: Value
    sums: Value

    def multiply(self, row: Value, last: Value, column: Value, panels: int) -> None:
        """Rows row .. last, at most 32, by panels from `column` on."""
        b: Builder = self.product.b
        several = last - row > HEIGHT
        for condition, count in ((several, 2), (several ^ 1, 1)):
            with b.when(condition):
                starts = [self._start(row + t * HEIGHT) for t in range(count)]
                self._products(starts, column // PANEL, panels)
                for t, start in enumerate(starts):
                    self._add(row + t * HEIGHT, last, start, t, column, panels)

    def _start(self, row: Value) -> Value:
        """The first row of the tile that has row `row` on: it may not reach beyond the last one."""
        return self.product.b.min(row, self.m - self.height)

    def _products(self, starts: Sequence[Value], panel: Value, panels: int) -> None:
        b, unit = self.product.b, self.unit
        used = [(t, c, C[t * PANELS + c]) for t in range(len(starts)) for c in range(panels)]
        for _, _, register in used:
            unit.zero(register)
        with b.loop(0, self.rows.row_bytes, ROW_BYTES) as steps:
            for c in range(panels):
                at = (panel + c) * self.panels.panel_bytes + steps.i * PANEL
                unit.load(B[c], self.w, at, ROW_BYTES)
            for t, start in enumerate(starts):
                at = start * self.rows.row_bytes + steps.i
                unit.load(A[t], self.q, at, self.rows.row_bytes)
            for t, c, register in used:
                unit.dot_bf16(register, A[t], B[c])
        for t, c, register in used:
            unit.store(register, self.sums, self._sums_at(t, c), SUM_BYTES)

    def _sums_at(self, t: int, c: int) -> Value:
        """Where tile `t` of rows has the sums of panel `c`."""
        return self.product.b.index(t * HEIGHT * SUM_BYTES + c * ROW_BYTES)

    def _add(
        self, row: Value, last: Value, start: Value, t: int, column: Value, panels: int
    ) -> None:
        """Add the sums of a tile's rows to y."""
        b, y, n = self.product.b, self.product.y, self.product.n
        with b.loop(row, b.min(row + HEIGHT, last)) as rows:
            for c in range(panels):
                at = self._sums_at(t, c) + (rows.i - start) * SUM_BYTES
                total = b.load_as(self.sums, at, vec(PANEL, "f32"))
                y_column, y_at = column + c * PANEL, rows.i * n
                known = load_columns(b, y, y_at, y_column, n)
                store_columns(b, known + total, y, y_at, y_column, n)
