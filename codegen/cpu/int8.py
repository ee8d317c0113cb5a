"""Strategy `int8`: weights unpack to bytes in registers, products by VPDPBUSD or its like.

Exact for every weight and activation format up to 8 bits, every group size and ragged M, N and K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...dialects.formats import NumberFormat, Scheme
from ..builder import Builder, Value, vec
from ..strategy import MatmulSpec
from .int8_kernels import Int8Kernel
from .int8_layout import QUAD, pack_codes, stored_value, value_quads
from .panel_layout import RowLayout, StoredValue, WeightLayout
from .panel_matmul import PanelKernel
from .panel_strategy import COLUMNS, PanelRows, PanelStrategy, activation_of
from .quantize_row import LANES, RowCodes, RowScale, sweep

# Largest M and rows of a grid index of each variant.
ROW_VARIANTS = ((1, 1), (None, 48))


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
        reduction = self.layout.reduction

        def copy(i: Value, mask: Value | None, total: Value) -> list[Value]:
            u = codes.vector(begin + i, row, mask)
            b.store(b.trunc(u, "i8"), q, target + i, mask)
            return [total + u]

        start = [b.const(0, vec(LANES, "i32"))]
        (total,) = sweep(b, terms, reduction.divides(LANES), copy, start)
        unit = reduction.unit
        if not reduction.divides(unit):  # zeros up to the next unit; weights are zero there too
            with b.loop(terms, (terms + (unit - 1)) // unit * unit) as loop:
                b.store(b.const(0, "i8"), q, target + loop.i)
        return b.reduce(total, "add")


class Int8Strategy(PanelStrategy):
    """See the module."""

    name = "int8"
    kernel: type[Int8Kernel] = Int8Kernel

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

    def kernels(
        self, spec: MatmulSpec, weight: WeightLayout, row: RowLayout, accumulators: bool
    ) -> Sequence[tuple[int | None, PanelKernel]]:
        format = activation_of(spec).format
        highest = format.qmax - format.qmin
        return [
            (last, self.kernel(weight, row, (rows, COLUMNS), accumulators, highest))
            for last, rows in ROW_VARIANTS
        ]
