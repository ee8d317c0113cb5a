"""Rows of a constant table, dequantized.

    kernel (i, table: memref<?xi8>, indices: memref<?xi64>, y: memref<?xf32>, count, rows,
            flag: memref<?xi32>, number)

Row r of y (count x columns) is row `indices[r]` of the table. An index outside 0 .. rows - 1 makes
a row of NaN, reads nothing, and is check `number` of the run's error flag failed
(passes/kernel_checks.py).

A row of a quantized table is one contiguous piece of bytes:

    codes    in units of 16, 32, 64 or 128 codes, the last one filled up with zeros
    scales   [groups]  f16, f32, e8m0 or e4m3
    zeros    [groups]  u8, asymmetric formats only
    tensor   f32       what e4m3 scales are multiplied with

A unit holds the bit parts of its codes (`int8_layout.bit_parts`), the lowest first. In a part of
`p` bits, 16 bytes hold 8 / p runs of 16 codes, run j at bit j * p of each byte. A row of a float
table is its f32 values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...dialects.formats import QuantizedTensor, Scheme
from ...dialects.scale_types import SCALE_BYTES, StoredScale, scale_label, stored_scales
from ..align import align
from ..builder import INDEX, Builder, Value, buffer, function, vec
from ..isa import Isa
from ..strategy import Kernel
from .int8_layout import BitPart, bit_parts
from .look_up import indexed_values
from .panel_layout import StoredValue
from .scales import load_scales, tensor_scale_bytes

LANES = 16
ROWS = 8  # of one grid index
CHUNK_ROWS = 4096  # packed at a time, to bound the memory of a compile


@dataclass(frozen=True)
class TableLayout:
    """A table of `columns` columns; `scheme` is None for f32. `scale_bits` is 16 or 32."""

    columns: int
    scheme: Scheme | None
    scale_bits: int = 16
    index_bits: int = 64

    @property
    def value(self) -> StoredValue:
        return StoredValue.unsigned(_quantized(self.scheme).format)

    @property
    def parts(self) -> tuple[BitPart, ...]:
        return bit_parts(self.value.bits)

    @property
    def unit(self) -> int:
        """Codes that share the vectors of the narrowest part."""
        return LANES * max(8 // part.bits for part in self.parts)

    @property
    def unit_bytes(self) -> int:
        return self.unit * self.value.bits // 8

    @property
    def scale(self) -> StoredScale:
        return "f32" if self.scale_bits == 32 else _quantized(self.scheme).scale

    @property
    def groups(self) -> int:
        return _quantized(self.scheme).n_groups(self.columns)

    @property
    def group_size(self) -> int:
        return _quantized(self.scheme).group_size or self.columns

    @property
    def scales_offset(self) -> int:
        return -(-self.columns // self.unit) * self.unit_bytes

    @property
    def zeros_offset(self) -> int:
        return self.scales_offset + self.groups * SCALE_BYTES[self.scale]

    @property
    def tensor_scale_offset(self) -> int:
        """A multiple of 4 where there is one, else the end of a row."""
        end = self.zeros_offset + (0 if _quantized(self.scheme).symmetric else self.groups)
        return align(end, tensor_scale_bytes(self.scale) or 1)

    @property
    def row_bytes(self) -> int:
        if self.scheme is None:
            return 4 * self.columns
        return self.tensor_scale_offset + tensor_scale_bytes(self.scale)

    def pack(self, table: QuantizedTensor | np.ndarray) -> np.ndarray:
        """The table, [rows, columns] of codes or f32, as uint8 of rows * row_bytes."""
        if isinstance(table, np.ndarray):
            return np.ascontiguousarray(table, np.float32).reshape(-1).view(np.uint8)
        blob = np.zeros((len(table.codes), self.row_bytes), np.uint8)
        for begin in range(0, len(blob), CHUNK_ROWS):
            part = slice(begin, begin + CHUNK_ROWS)
            blob[part, : self.scales_offset] = self._pack_codes(table.codes[part])
        scales = stored_scales(table.scale, self.scale, table.tensor_scale)
        scales = np.ascontiguousarray(scales).view(np.uint8)
        blob[:, self.scales_offset : self.zeros_offset] = scales
        if table.zero is not None:
            blob[:, self.zeros_offset : self.zeros_offset + self.groups] = table.zero
        if tensor_scale_bytes(self.scale):
            whole = np.array([table.tensor_scale], np.float32).view(np.uint8)
            blob[:, self.tensor_scale_offset :] = whole
        return blob.reshape(-1)

    def _pack_codes(self, codes: np.ndarray) -> np.ndarray:
        rows, columns = codes.shape
        units = -(-columns // self.unit)
        stored = np.zeros((rows, units * self.unit), np.uint8)
        stored[:, :columns] = self.value.encode(codes)
        pieces = []
        for part in self.parts:
            runs = 8 // part.bits
            bits = (stored >> part.shift) & ((1 << part.bits) - 1)
            shared = bits.reshape(rows, units, -1, runs, LANES)
            shifts = (np.arange(runs) * part.bits).astype(np.uint8)[:, None]
            packed = np.bitwise_or.reduce(shared << shifts, axis=3)
            pieces.append(packed.reshape(rows, units, -1))
        return np.concatenate(pieces, axis=2).reshape(rows, -1)

    @property
    def scale_name(self) -> str:
        return scale_label(self.scale)

    @property
    def kernel(self) -> Kernel:
        """The grid is ceil(count / block[0])."""
        if self.scheme is None:
            name = f"gather_f32_k{self.columns}"
        else:
            name = (
                f"gather_{self.scheme.format.name}_g{self.group_size}_{self.scale_name}"
                f"_k{self.columns}"
            )
        if self.index_bits != 64:
            name += f"_i{self.index_bits}"
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


def _quantized(scheme: Scheme | None) -> Scheme:
    assert scheme is not None, "a float table has no codes"
    return scheme


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
        if not _quantized(layout.scheme).symmetric:
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
