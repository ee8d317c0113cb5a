"""Rows of a constant table, dequantized.

    kernel (i, table: memref<?xi8>, indices: memref<?xi64>, y: memref<?xf32>, count, rows,
            flag: memref<?xi32>, number)

Row r of y (count x columns) is row `indices[r]` of the table. An index outside 0 .. rows - 1 makes
a row of NaN, reads nothing, and is check `number` of the run's error flag failed
(passes/kernels/checks.py).

Rows have the bytes that `codegen/codes/table_rows.py` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.dialects.formats import Scheme
from abqc.dialects.scale_types import SCALE_BYTES

from ..builder import INDEX, Builder, Value, buffer, function, vec
from ..codes.table_rows import LANES, TableRows, quantized
from ..isa import Isa
from ..strategy import Kernel
from .panels.look_up import indexed_values
from .panels.scales import load_scales

ROWS = 8  # of one grid index


@dataclass(frozen=True)
class TableLayout(TableRows):
    """Rows of a table, and the kernel that gathers them."""

    @property
    def kernel(self) -> Kernel:
        """The grid is ceil(count / block[0])."""
        name = self.kernel_name
        return Kernel(name, (ROWS,), partial(_emit, self, name))


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


def _emit(layout: TableLayout, name: str, module: Any, isa: Isa) -> None:
    index = buffer(f"i{layout.index_bits}")
    arguments = [buffer("i8"), index, buffer("f32"), INDEX, INDEX, buffer("i32"), INDEX]
    with function(module, isa, name, arguments) as opened:
        b, i, table, indices, y, count, rows, flag, number = opened
        first = i * ROWS
        with b.loop(first, b.min(first + ROWS, count)) as loop:
            row = b.to_index(b.load(indices, loop.i))
            target = loop.i * layout.columns
            inside = (row >= 0) & (row < rows)
            with b.when(inside):
                _Row(b, layout, table, row * layout.row_bytes, y, target).emit()
            with b.when(inside ^ 1):
                b.note_error(flag, number)
                with b.loop(0, layout.columns) as columns:
                    b.store(b.const(float("nan"), "f32"), y, target + columns.i)


@dataclass(frozen=True)
class _Row:
    """Decodes the row at byte `base` of the table to `y` from element `target` on."""

    b: Builder
    layout: TableLayout
    table: Value
    base: Value
    y: Value
    target: Value

    def emit(self) -> None:
        unit = LANES if self.layout.scheme is None else self.layout.unit
        whole, rest = divmod(self.layout.columns, unit)
        if whole:
            with self.b.loop(0, whole) as units:
                self._unit(units.i, unit)
        if rest:
            self._unit(self.b.index(whole), rest)

    def _unit(self, unit: Value, count: int) -> None:
        """The first `count` values of a unit."""
        b, layout = self.b, self.layout
        size = LANES if layout.scheme is None else layout.unit
        for run in range(-(-count // LANES)):
            column = unit * size + run * LANES
            left = count - run * LANES
            mask = None if left >= LANES else b.mask(LANES, b.index(left))
            if layout.scheme is None:
                values = self._floats(column, min(left, LANES))
            else:
                values = self._decoded(unit, run, column)
            b.store(values, self.y, self.target + column, mask)

    def _floats(self, column: Value, count: int) -> Value:
        """16 floats of a float table, zeros from `count` on: nothing behind the row is read."""
        b = self.b
        bytes_ = b.load(
            self.table,
            self.base + column * 4,
            4 * LANES,
            None if count == LANES else b.mask(4 * LANES, b.index(4 * count)),
        )
        return b.bitcast(bytes_, vec(LANES, "f32"))

    def _decoded(self, unit: Value, run: int, column: Value) -> Value:
        """scale * (mul * stored - offset - zero) of run `run` of a unit."""
        b, layout = self.b, self.layout
        value = layout.value
        stored = self._stored(self.base + unit * layout.unit_bytes, run)
        if value.indexed is not None:
            values = indexed_values(b, stored, value.indexed)
            return values * self._per_group(column, self._scale)
        steps = stored * value.mul - value.offset if value.offset else stored
        if not quantized(layout.scheme).symmetric:
            steps = steps - self._per_group(column, self._zero)
        return b.to_float(steps) * self._per_group(column, self._scale)

    def _stored(self, at: Value, run: int) -> Value:
        """The stored values of a run, i32, from the bit parts at byte `at`."""
        b, offset, total = self.b, 0, self.b.const(0, vec(LANES, "i32"))
        for part in self.layout.parts:
            runs = 8 // part.bits
            byte = at + (offset + run // runs * LANES)
            raw = b.load(self.table, byte, LANES)
            bits = (b.zext(raw, "i32") >> (run % runs * part.bits)) & ((1 << part.bits) - 1)
            total = total | (bits << part.shift)
            offset += self.layout.unit * part.bits // 8
        return total

    def _per_group(self, column: Value, entry: Any) -> Value:
        """`entry(group)` for each of the 16 columns from `column` on."""
        b, layout = self.b, self.layout
        if layout.groups == 1:
            return b.splat(entry(b.index(0)), LANES)
        if layout.group_size % LANES == 0:
            return b.splat(entry(column // layout.group_size), LANES)
        last = layout.columns - 1
        lanes = [entry(b.min(column + j, last) // layout.group_size) for j in range(LANES)]
        return b.join(*(b.splat(lane, 1) for lane in lanes))

    def _scale(self, group: Value) -> Value:
        layout = self.layout
        at = self.base + layout.scales_offset + group * SCALE_BYTES[layout.scale]
        whole = self.base + layout.tensor_scale_offset
        return load_scales(self.b, self.table, at, layout.scale, 0, whole)

    def _zero(self, group: Value) -> Value:
        at = self.base + self.layout.zeros_offset + group
        return self.b.zext(self.b.load(self.table, at), "i32")
