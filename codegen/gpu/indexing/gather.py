"""Rows of a constant table, dequantized on the GPU.

    kernel (table, indices i64 or i32, y f32, count i32, rows i32, flag, number i32)    grid = count

Row r of y (count x columns) is row `indices[r]` of the table. An index outside 0 .. rows - 1 makes
a row of NaN, reads nothing, and is check `number` of the run's error flag failed
(passes/kernels/checks.py).

A row has the bytes that `codegen/codes/table_rows.py` says, filled up to a multiple of 16: units of
bit parts, in which 4 neighbouring codes are the 4 bytes of an aligned word. A thread decodes such a
quad from a word of each part and stores 16 bytes; a warp reads and writes contiguous memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from abqc.codegen.align import align
from abqc.codegen.builder import Value, vec
from abqc.codegen.codes.stored_values import indexed_value
from abqc.codegen.codes.table_rows import LANES, TableRows
from abqc.codegen.strategy import Kernel
from abqc.dialects.formats import QuantizedTensor, Scheme
from abqc.dialects.scale_types import SCALE_BYTES

from ..arch import GpuArch
from ..builder import GpuBuilder
from ..packing.layout import ROW_ALIGNMENT
from ..weights.scales import load_scales
from .gather_tiles import panel_gather_kernel
from .row_output import QUAD, RowOutput, TableRow, emit_gather

CHUNK_ROWS = 4096  # packed at a time, to bound the memory of a compile

__all__ = ["TableLayout", "panel_gather_kernel", "table_layout"]


@dataclass(frozen=True)
class TableLayout:
    """A table of `columns` columns; `scheme` is None for f32. `scale_bits` is 16 or 32."""

    columns: int
    scheme: Scheme | None
    scale_bits: int = 16
    index_bits: int = 64

    @property
    def dense(self) -> TableRows:
        """A row without what fills it up."""
        return TableRows(self.columns, self.scheme, self.scale_bits, self.index_bits)

    @property
    def row_bytes(self) -> int:
        return align(self.dense.row_bytes, ROW_ALIGNMENT)

    def pack(self, table: QuantizedTensor | np.ndarray) -> np.ndarray:
        """The table, [rows, columns] of codes or f32, as uint8 of rows * row_bytes."""
        rows = len(table) if isinstance(table, np.ndarray) else len(table.codes)
        blob = np.zeros((rows, self.row_bytes), np.uint8)
        for begin in range(0, rows, CHUNK_ROWS):
            part = slice(begin, begin + CHUNK_ROWS)
            dense = self.dense.pack(_rows(table, part)).reshape(-1, self.dense.row_bytes)
            blob[part, : self.dense.row_bytes] = dense
        return blob.reshape(-1)

    @property
    def kernel(self) -> Kernel:
        """The grid is ceil(count / block[0])."""
        return Kernel(self.dense.kernel_name, (1,), partial(_emit, self))


def table_layout(
    columns: int,
    scheme: Scheme | None,
    *,
    node: str = "",
    scale_bits: int = 16,
    index_bits: int = 64,
) -> TableLayout:
    """The layout and kernel of a gather; every weight scheme is supported, `node` is not needed."""
    return TableLayout(columns, scheme, scale_bits, index_bits)


def _rows(table: QuantizedTensor | np.ndarray, part: slice) -> QuantizedTensor | np.ndarray:
    if isinstance(table, np.ndarray):
        return table[part]
    zero = None if table.zero is None else table.zero[part]
    return replace(table, codes=table.codes[part], scale=table.scale[part], zero=zero)


def _emit(layout: TableLayout, module: Any, arch: GpuArch) -> None:
    def decode(b: GpuBuilder, source: TableRow, out: RowOutput) -> None:
        base = b.at(source.table, source.row * layout.row_bytes)
        if layout.scheme is None:
            out.quads(lambda column: _floats(b, base, column, layout.columns))
        else:
            out.quads(_Row(b, layout.dense, layout.scheme, base).quad)

    emit_gather(module, arch, layout.kernel.name, layout.columns, layout.index_bits, decode)


def _floats(b: GpuBuilder, base: Value, column: Value, columns: int) -> list[Value]:
    """Four floats of a float table's row; rows are filled up to whole quads."""
    return b.lanes_of(b.load(base, vec(QUAD, "f32"), column * 4, cache="nc"))


@dataclass(frozen=True)
class _Row:
    """Decodes quads of the row at pointer `base`."""

    b: GpuBuilder
    layout: TableRows
    scheme: Scheme
    base: Value

    def quad(self, column: Value) -> list[Value]:
        """scale * (mul * stored - offset - zero) of four columns from `column` on."""
        b, value = self.b, self.layout.value
        stored = self._stored(column)
        values = []
        for j in range(QUAD):
            code, group = (stored >> (8 * j)) & 0xFF, self._group(column, j)
            if value.indexed is not None:
                values.append(indexed_value(b, code, value.indexed) * self._scale(group))
                continue
            steps = code * value.mul - value.offset
            if not self.scheme.symmetric:
                zero = b.load(self.base, "i8", group + self.layout.zeros_offset, cache="nc")
                steps = steps - b.zext(zero, "i32")
            values.append(b.to_float(steps) * self._scale(group))
        return values

    def _stored(self, column: Value) -> Value:
        """The stored values of a quad, a byte each, from a word of every bit part."""
        b, layout = self.b, self.layout
        unit, run, place = column // layout.unit, column % layout.unit // LANES, column % LANES
        total, offset = b.const(0, "i32"), 0
        for part in layout.parts:
            runs = 8 // part.bits
            at = unit * layout.unit_bytes + (run // runs * LANES + place + offset)
            word = b.load(self.base, "i32", at, cache="nc")
            mask = ((1 << part.bits) - 1) * 0x01010101
            total = total | (((word >> (run % runs * part.bits)) & mask) << part.shift)
            offset += layout.unit * part.bits // 8
        return total

    def _group(self, column: Value, j: int) -> Value:
        """The group of column `column` + j; the last one for columns behind the row."""
        b, layout = self.b, self.layout
        if layout.groups == 1:
            return b.const(0, "i32")
        if layout.group_size % QUAD == 0:
            return column // layout.group_size
        return b.min(column + j, layout.columns - 1) // layout.group_size

    def _scale(self, group: Value) -> Value:
        b, layout = self.b, self.layout
        at = group * SCALE_BYTES[layout.scale] + layout.scales_offset
        whole = b.at(self.base, layout.tensor_scale_offset)
        (scale,) = load_scales(b, self.base, layout.scale, at, 1, whole)
        return scale
