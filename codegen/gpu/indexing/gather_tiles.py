"""Rows of a table that is a matmul's packed weight as well: a head tied to the embedding.

    kernel (w, indices i64, y f32, count i32, rows i32, flag, number i32)      grid = count

The contract is that of `gather`; `w` is the weight as strategy `float`, `int8` or `dequantize`
packs it, so that the table is stored once. Row n is column n of the weight: of its tile, the four
lanes of a warp that hold the column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.codes.stored_values import indexed_value
from abqc.codegen.strategy import Kernel, MatmulSpec

from ..arch import GpuArch
from ..builder import GpuBuilder
from ..float_products.layout import FloatRows
from ..packing.layout import K_UNIT
from ..weights.layout import (
    BLOCK_COLUMNS,
    BLOCKS,
    LOAD_BYTES,
    TILE_COLUMNS,
    WARP_LOAD_BYTES,
    WORD_BITS,
    WORDS_PER_LOAD,
    BitPart,
    WeightLayout,
)
from ..weights.pointers import PackedWeight
from .row_output import QUAD, THREADS, RowOutput, TableRow, emit_gather

QUAD_LANES = 4  # of a warp, that hold one column


def panel_gather_kernel(strategy: str, spec: MatmulSpec) -> Kernel | None:
    """Gathers rows of `spec`'s weight as `strategy` packs it; None for other layouts."""
    if strategy == "float":
        rows = FloatRows.of(spec)
        name = f"gather_float_rows_{rows.name}"
        return Kernel(name, (1,), partial(_emit_float, name, rows))
    if strategy not in ("int8", "dequantize"):
        return None
    assert spec.weight is not None
    if spec.weight.format.in_digits:
        return None
    layout = WeightLayout.of(spec)
    name = (
        f"gather_{spec.weight.format.name}_tiles{layout.lane_bits}_g{layout.grouped.group_size}"
        f"_{spec.scale_name}{'_sums' if layout.has_sums else ''}_k{spec.k}"
    )
    return Kernel(name, (1,), partial(_emit_quantized, name, layout))


def _emit_float(name: str, rows: FloatRows, module: Any, arch: GpuArch) -> None:
    def decode(b: GpuBuilder, source: TableRow, out: RowOutput) -> None:
        base = b.at(source.table, source.row * rows.row_bytes)
        out.quads(lambda column: rows.load(b, base, column, QUAD, "nc"))

    emit_gather(module, arch, name, rows.k, 64, decode)


def _emit_quantized(name: str, layout: WeightLayout, module: Any, arch: GpuArch) -> None:
    def decode(b: GpuBuilder, source: TableRow, out: RowOutput) -> None:
        weight = PackedWeight(b, layout, source.table, source.rows)
        _Column(b, layout, weight, b.trunc(source.row, "i32"), out).emit()

    emit_gather(module, arch, name, layout.grouped.k, 64, decode)


@dataclass(frozen=True)
class _Column:
    """Decodes a column of the weight: of each unit, four threads take the codes of four lanes."""

    b: GpuBuilder
    layout: WeightLayout
    weight: PackedWeight
    column: Value
    out: RowOutput

    def emit(self) -> None:
        b, layout, grouped = self.b, self.layout, self.layout.grouped
        tile = self.weight.tile(self.column // TILE_COLUMNS)
        with b.loop(b.thread, grouped.units * QUAD_LANES, THREADS) as loop:
            unit, quarter = loop.i // QUAD_LANES, loop.i % QUAD_LANES
            group, inner = unit // grouped.group_units, unit % grouped.group_units
            begin = group * grouped.group_size
            (scale,) = self.weight.scales(group, self.column)
            (zero,) = (
                self.weight.zeros(group, self.column) if layout.has_zeros else [b.const(0, "i32")]
            )
            for register in range(layout.registers_per_block):
                stored = self._stored(tile, unit, quarter, register)
                values = [value * scale for value in self._values(stored, zero)]
                offset = inner * K_UNIT + quarter * len(values) + register * 4 * len(values)
                self.out.write(begin + offset, values, self._end(begin, len(values)))

    def _end(self, begin: Value, width: int) -> Value | None:
        """Where the group ends; None where all its registers are whole."""
        grouped = self.layout.grouped
        if grouped.group_size % K_UNIT == 0 and grouped.k % K_UNIT == 0:
            return None
        return self.b.min(begin + grouped.group_size, self.b.index(grouped.k))

    def _stored(self, tile: Value, unit: Value, quarter: Value, register: int) -> Value:
        """A register's stored codes, one in each of its 8- or 16-bit lanes."""
        b, layout = self.b, self.layout
        block = self.column % TILE_COLUMNS // BLOCK_COLUMNS
        lane = self.column % BLOCK_COLUMNS * QUAD_LANES + quarter
        chunk = b.at(tile, unit // layout.chunk_units * layout.chunk_bytes)
        place = (unit % layout.chunk_units * BLOCKS + block) * layout.registers_per_block + register
        total = b.const(0, "i32")
        for part in layout.parts:
            fields = layout.lane_bits // part.bits
            word = place // fields + part.first_word
            at = word // WORDS_PER_LOAD * WARP_LOAD_BYTES + lane * LOAD_BYTES
            bits = b.load(chunk, "i32", at + word % WORDS_PER_LOAD * 4, cache="nc")
            shifted = bits >> (place % fields * part.bits)
            total = total | ((shifted & self._mask(part)) << part.shift)
        return total

    def _mask(self, part: BitPart) -> int:
        """The bits of a part, in every lane of a register."""
        lanes = range(0, WORD_BITS, self.layout.lane_bits)
        return sum(((1 << part.bits) - 1) << lane for lane in lanes)

    def _values(self, stored: Value, zero: Value) -> list[Value]:
        """What the codes of a register mean, in units of what `PackedWeight.scales` gives."""
        b, layout = self.b, self.layout
        if not layout.format.indexed:
            return [b.to_float(q - zero) for q in self._codes(stored)]
        mask = (1 << layout.bits) - 1
        codes = [(stored >> shift) & mask for shift in range(0, WORD_BITS, layout.lane_bits)]
        unit = layout.scale_unit
        return [indexed_value(b, code, layout.format) * (1 / unit) for code in codes]

    def _codes(self, stored: Value) -> list[Value]:
        """The codes q of a register, i32."""
        format = self.layout.format
        mask, sign = (1 << format.bits) - 1, 1 << (format.bits - 1)
        codes = []
        for shift in range(0, WORD_BITS, self.layout.lane_bits):
            bits = (stored >> shift) & mask
            if format.kind == "binary":
                codes.append(bits * 2 - 1)
            else:
                codes.append((bits ^ sign) - sign if format.symmetric else bits)
        return codes
