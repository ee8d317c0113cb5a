"""What gathers share: one block writes one row of f32, or NaN where the index is outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from abqc.codegen.builder import Value

from ..arch import GpuArch
from ..builder import POINTER, GpuBuilder, kernel

THREADS = 128
QUAD = 4  # columns that a thread writes at once, where rows are aligned


@dataclass(frozen=True)
class RowOutput:
    """A row of `columns` values at pointer `pointer`, written by the threads of the block."""

    b: GpuBuilder
    pointer: Value
    columns: int

    def quads(self, values: Callable[[Value], list[Value]]) -> None:
        """Write all columns: `values(column)` are four, of which those behind the row are left."""
        b = self.b
        with b.loop(b.thread * QUAD, self.columns, THREADS * QUAD) as loop:
            self.write(loop.i, values(loop.i))

    def write(self, column: Value, values: list[Value], end: Value | None = None) -> None:
        """Write `values` from `column` on, those below `end` (none: all columns).

        Rows of whole quads take one vector store, of 8 bytes a pair or 16 a quad.
        """
        b = self.b
        if end is None and self.columns % len(values) == 0:
            b.store(b.vector(values), self.pointer, column * 4)
            return
        limit = b.index(self.columns) if end is None else end
        for j, value in enumerate(values):
            with b.when(column + j < limit):
                b.store(value, self.pointer, (column + j) * 4)


@dataclass(frozen=True)
class TableRow:
    """The row (i64) that a block shall decode, of a table of `rows` rows (i32)."""

    table: Value
    row: Value
    rows: Value


Decode = Callable[[GpuBuilder, TableRow, RowOutput], None]


def emit_gather(
    module: Any, arch: GpuArch, name: str, columns: int, index_bits: int, decode: Decode
) -> None:
    """The kernel of docs/gpu.md ("gather"); a block writes one row."""
    arguments = [POINTER, POINTER, POINTER, "i32", "i32", POINTER, "i32"]
    with kernel(module, arch, name, arguments, threads=THREADS) as opened:
        b, block, table, indices, y, _count, rows, flag, number = opened
        at = b.wide(block) * (index_bits // 8)
        row = b.sext(b.load(indices, f"i{index_bits}", at, cache="nc"), "i64")
        out = RowOutput(b, b.at(y, b.wide(block) * (4 * columns)), columns)
        inside = (row >= 0) & (row < b.wide(rows))
        with b.when(inside):
            decode(b, TableRow(table, row, rows), out)
        with b.when(inside ^ 1):
            nan = b.const(float("nan"), "f32")
            out.quads(lambda column: [nan] * QUAD)
            with b.when(b.thread == 0):
                b.atomic("umin", flag, number)
