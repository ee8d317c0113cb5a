"""Strategy `int8`: weights unpack to bytes in registers, products by VPDPBUSD or its like.

Exact for every weight and activation format up to 8 bits, every group size and ragged M, N and K.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.codes.bit_parts import StoredValue
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import NumberFormat, Scheme

from ..packing.byte_vectors import PARTS, joined_bytes
from ..packing.quantize_row import LANES, RowCodes, RowScale, sweep
from ..panels.layout import RowLayout, WeightLayout
from ..panels.matmul import PanelKernel
from ..panels.strategy import PanelRows, PanelStrategy, highest_code
from ..schedule import CpuSchedule, KernelSchedule, RowRange
from . import schedules
from .kernels import Int8Kernel
from .layout import QUAD, pack_codes, stored_value, value_quads
from .tiles import TiledKernel


@dataclass(frozen=True)
class Int8Rows(PanelRows):
    """A code is a byte."""

    def write_segment(
        self,
        b: Builder,
        codes: RowCodes,
        row: RowScale,
        q: Value,
        target: Value,
        begin: Value,
        terms: Value,
    ) -> Value:
        reduction, width = self.layout.reduction, PARTS * LANES
        whole, start = b.index(0), [b.const(0, vec(LANES, "i32"))]
        if b.isa.dot_u8i8 is not None and b.isa.lanes(8) == width:
            whole = terms - terms % width
            ones = b.const(1, vec(width, "i8"))
            with b.loop(0, whole, width, carry=start) as loop:
                parts = [codes.steps(begin + (loop.i + part * LANES), row) for part in range(PARTS)]
                u = codes.bytes(joined_bytes(b, parts))
                b.store(u, q, target + loop.i)
                total = loop.args[0]
                loop.carry(b.intrinsic(b.isa.dot_u8i8, total.type, total, u, ones))
            start = loop.results

        def copy(i: Value, mask: Value | None, total: Value) -> list[Value]:
            u = codes.vector(begin + (whole + i), row, mask)
            b.store(b.trunc(u, "i8"), q, target + (whole + i), mask)
            return [total + u]

        (total,) = sweep(b, terms - whole, reduction.divides(LANES), copy, start)
        unit = reduction.unit
        if not reduction.divides(unit):  # zeros up to the next unit; weights are zero there too
            with b.loop(terms, (terms + (unit - 1)) // unit * unit) as loop:
                b.store(b.const(0, "i8"), q, target + loop.i)
        return b.reduce(total, "add")


class Int8Strategy(PanelStrategy):
    """See the module."""

    name = "int8"
    kernel_of_rows: type[Int8Kernel] = Int8Kernel
    kernel_of_many_rows: type[Int8Kernel] = TiledKernel

    def unit(self, weight: Scheme) -> int:
        return QUAD * value_quads(stored_value(weight.format))

    def code_bits(self, activation: NumberFormat) -> int:
        return 8

    def stored_value(self, format: NumberFormat) -> StoredValue:
        return stored_value(format)

    def pack_codes(self, layout: WeightLayout, values: np.ndarray) -> np.ndarray:
        return pack_codes(layout, values)

    def rows(self, layout: RowLayout, activation: NumberFormat) -> PanelRows:
        return Int8Rows(layout)

    def schedules(self, spec: MatmulSpec, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
        weight = self.weight_layout(spec)
        return schedules.schedules(weight, highest_code(spec), spec.n, rows, isa)

    def kernel(
        self,
        spec: MatmulSpec,
        weight: WeightLayout,
        row: RowLayout,
        schedule: KernelSchedule,
        accumulators: bool,
    ) -> PanelKernel:
        tiled = schedule.block[0] > 1 and weight.reduction.segments_per_group == 1
        kind = self.kernel_of_many_rows if tiled else self.kernel_of_rows
        return kind(weight, row, schedule, accumulators, highest_code(spec))
