"""Strategy `trellis-float`: trellis codes and f32 activations.

Pieces of K are decoded to bytes and floats. With one row they are multiplied at once, and
every group's sum by its scale; with more, 48 channels of a piece are shared by all rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, MatmulSpec, Variant
from abqc.dialects.formats import QuantizedTensor

from ..float_products.dequantize import Factor
from ..float_products.schedules import FloatSchedules, row_variants
from ..float_products.tile import (
    COLUMN_BLOCK,
    Product,
    broadcast,
    load_columns,
    multiply_add,
    stack_block,
    store_columns,
    sum_pairwise,
)
from ..grid_block import grid_block
from ..int8.layout import QUAD
from ..panels.layout import PANEL
from ..schedule import CpuSchedule, KernelSchedule, RangeSchedule, RowRange, default_schedules
from .decode import Decoder, table_on_stack
from .layout import StreamPlace, TrellisLayout

SCHEDULES = FloatSchedules(
    chains=QUAD,
    decodes=True,
    prefetches=(0,),
    row_blocks=(128, 256),
    depths=(256, 128),
)
ARGUMENTS = [buffer("f32"), buffer("i8"), buffer("f32"), buffer("f32"), INDEX, INDEX]


class TrellisFloatStrategy:
    """The MatmulStrategy of the module."""

    name = "trellis-float"

    def unsupported(self, spec: MatmulSpec) -> str | None:
        if not spec.trellis:
            return "strategy 'trellis-float' takes trellis codes only"
        if spec.activation is not None:
            return "strategy 'trellis-float' takes float activations only"
        if spec.in_bf16:
            return "strategy 'trellis-float' does not round activations to bf16"
        if spec.hadamard_block:
            return "strategy 'trellis-float' does not rotate activations"
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, QuantizedTensor), "trellis codes are quantized"
        return TrellisLayout.of(spec).pack(weight)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return 0

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        return None

    def schedules(self, spec: MatmulSpec, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
        return SCHEDULES(spec, rows, isa)

    def matmul_kernels(
        self, spec: MatmulSpec, schedules: Sequence[RangeSchedule] | None = None
    ) -> tuple[Variant, ...]:
        layout = TrellisLayout.of(spec)
        name = f"trellis{layout.rate}_float_g{layout.reduction.group_size}_k{spec.k}"
        schedules = schedules or default_schedules(spec, self.schedules)
        return row_variants(name, schedules, _emit_one_row, _emit_many_rows, layout)


@dataclass(frozen=True)
class TrellisPanel:
    """The 16 channels from 16 `panel` on, of `n`."""

    decoder: Decoder
    head: Value

    @staticmethod
    def of(
        b: Builder, layout: TrellisLayout, w: Value, n: Value, panel: Value, table: Value | None
    ) -> TrellisPanel:
        place = StreamPlace.of(b, layout, panel, n)
        return TrellisPanel(Decoder(b, layout, w, place, table), panel * layout.panel_bytes)

    def scale(self, group: Value) -> Value:
        """The scales of a group, f32."""
        b, layout = self.decoder.b, self.decoder.layout
        at = self.head + layout.scales_at(group)
        return b.half_to_float(b.load_as(self.decoder.w, at, vec(PANEL, "i16")))

    def values(self, first: Value) -> list[Value]:
        """q of four columns from `first` on, f32 vectors over the channels."""
        b, reduction = self.decoder.b, self.decoder.layout.reduction
        end = None if reduction.divides(QUAD) else b.index(reduction.k)
        quad = self.decoder.quad(first, end)
        return [b.to_float((quad << (24 - 8 * t)).sar(24)) for t in range(QUAD)]


def _emit_one_row(
    name: str, schedule: KernelSchedule, layout: TrellisLayout, module: Any, isa: Isa
) -> None:
    with function(module, isa, name, ARGUMENTS) as (b, i, x, w, bias, y, m, n):
        table = table_on_stack(b)
        _, span = grid_block(b, schedule, i, m, n)
        with b.loop(*span, PANEL) as columns:
            panel = TrellisPanel.of(b, layout, w, n, columns.i // PANEL, table)
            total = load_columns(b, bias, 0, columns.i, n)
            total = one_row_of_trellis(panel, partial(broadcast, b, x), total)
            store_columns(b, total, y, 0, columns.i, n)


def one_row_of_trellis(
    panel: TrellisPanel, x: Factor, bias: Value, place: Callable[[Value], Value] = lambda k: k
) -> Value:
    """bias + sum over groups of scale * sum over k of x * q, for one panel.

    `place(k)` is what x wants instead of the k that a segment begins with.
    """
    b, reduction = panel.decoder.b, panel.decoder.layout.reduction
    per_group = reduction.segments_per_group
    with b.loop(0, reduction.n_segments, carry=[bias]) as segments:
        group = segments.i // per_group
        part = segments.i % per_group
        begin = group * reduction.group_size + part * reduction.segment_size
        terms = reduction.emit_terms(b, group, part)
        total = _one_row_segment(panel, x, begin, place(begin), terms)
        segments.carry(multiply_add(b, panel.scale(group), total, segments.args[0]))
    return segments.results[0]


def _one_row_segment(
    panel: TrellisPanel, x: Factor, begin: Value, x_begin: Value, terms: Value
) -> Value:
    """Sum of x * q over a segment: a partial sum for each column of a quad."""
    b = panel.decoder.b

    def add(sums: list[Value], first: Value, ragged: bool) -> list[Value]:
        out = []
        for t, weights in enumerate(panel.values(begin + first)):
            k = first + t
            if ragged:
                factor = b.select(k < terms, x(x_begin + b.min(k, terms - 1)), 0.0)
            else:
                factor = x(x_begin + k)
            out.append(multiply_add(b, factor, weights, sums[t]))
        return out

    whole = terms // QUAD * QUAD
    zeros = [b.const(0.0, vec(PANEL, "f32"))] * QUAD
    with b.loop(0, whole, QUAD, carry=zeros) as loop:
        loop.carry(*add(loop.args, loop.i, ragged=False))
    if panel.decoder.layout.reduction.divides(QUAD):
        return sum_pairwise(loop.results)
    with b.loop(whole, terms, QUAD, carry=loop.results) as rest:
        rest.carry(*add(rest.args, rest.i, ragged=True))
    return sum_pairwise(rest.results)


def _emit_many_rows(
    name: str, schedule: KernelSchedule, layout: TrellisLayout, module: Any, isa: Isa
) -> None:
    """Blocks of rows and 48 columns; y begins as the bias, and pieces of K add to it."""
    k, depth_block = layout.reduction.k, schedule.on(isa).block_k
    with function(module, isa, name, ARGUMENTS) as (b, i, x, w, bias, y, m, n):
        decoded = b.alloca(depth_block * COLUMN_BLOCK, "f32")
        table = table_on_stack(b)
        rows, columns = grid_block(b, schedule, i, m, n)
        product = Product(b, x, y, n, k)
        product.begin(rows, columns, bias)

        def segment(segment: Value, begin: Value, terms: Value) -> None:
            group = segment // layout.reduction.segments_per_group
            with b.loop(0, terms, depth_block) as depth:
                count = b.min(terms - depth.i, depth_block)
                with b.loop(*columns, PANEL) as panels:
                    panel = TrellisPanel.of(b, layout, w, n, panels.i // PANEL, table)
                    target = panels.i - columns[0]
                    _decode(panel, group, begin + depth.i, count, decoded, target)
                product.add(rows, columns, (begin + depth.i, count), stack_block(b, decoded))

        layout.reduction.emit_segments(b, segment)


def _decode(
    panel: TrellisPanel, group: Value, first: Value, count: Value, block: Value, column: Value
) -> None:
    """Scaled weights of a piece of a group to columns of `[block_k][48]`."""
    b = panel.decoder.b
    scale = panel.scale(group)
    with b.loop(0, count, QUAD) as loop:
        for t, weights in enumerate(panel.values(first + loop.i)):
            b.store(weights * scale, block, (loop.i + t) * COLUMN_BLOCK + column)
