"""Kernels of weights of few bits and rows of bf16: codes decode to exact bf16, scales stay f32.

    y[m, n] = bias[n] + sum over g of s[n, g] * sum over k in g of bf16(x[m, k]) * (q - z)[n, k]

One row decodes in registers and multiplies in f32, to which the row is widened. More share a piece
of 48 columns of weights, decoded to pairs on the stack. Weights lie as strategies `dequantize` and
`trellis-float` pack them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec, Variant
from abqc.dialects.bf16 import bf16_bits
from abqc.dialects.formats import QuantizedTensor

from ..float_products.dequantize import CodePanel, one_row_of_codes, weight_layout
from ..float_products.schedules import FloatSchedules, row_variants
from ..float_products.tile import (
    COLUMN_BLOCK,
    PANEL,
    Product,
    broadcast,
    ceil_div,
    load_columns,
    stack_block,
    store_columns,
)
from ..grid_block import grid_block
from ..int8.layout import QUAD, pack_codes
from ..panels.layout import WeightLayout, pack_weight
from ..schedule import KernelSchedule, RangeSchedule
from ..trellis.decode import table_on_stack
from ..trellis.float_strategy import TrellisPanel, one_row_of_trellis
from ..trellis.layout import TrellisLayout
from .dot import PAIR, dot_steps, low_half, max_tile_rows, pairs_of
from .matmul import row_pairs
from .rows import VALUE_BYTES, Bf16Rows

MAX_WIDENED_K = 16384  # 64 KB of stack
CODE_SCHEDULES = FloatSchedules(
    chains=QUAD,
    decodes=True,
    prefetches=(1, 0, 2),
    row_blocks=(128, 64, 256),
    depths=(256, 128, 512),
)

ARGUMENTS = [buffer("i8"), buffer("i8"), buffer("f32"), buffer("f32"), INDEX, INDEX]


def code_layout(spec: MatmulSpec) -> WeightLayout:
    """The layout of the packed weight. A table is rounded to bf16, as on GPUs."""
    if spec.trellis:
        return TrellisLayout.of(spec)
    layout = weight_layout(spec)
    format = layout.value.indexed
    if format is None or format.table is None:
        return layout
    bits = bf16_bits(np.array(format.table, np.float32)).astype(np.uint32) << 16
    rounded = replace(format, table=tuple(bits.view(np.float32).tolist()))
    return replace(layout, value=replace(layout.value, indexed=rounded))


def pack_code_weight(spec: MatmulSpec, weight: QuantizedTensor) -> np.ndarray:
    """The weight as a blob, uint8."""
    layout = code_layout(spec)
    if isinstance(layout, TrellisLayout):
        return layout.pack(weight)
    return pack_weight(layout, weight, pack_codes)


def code_kernels(
    spec: MatmulSpec, rows: Bf16Rows, schedules: Sequence[RangeSchedule]
) -> tuple[Variant, ...]:
    """The kernels for weights that `pack_code_weight` packs."""
    assert spec.weight is not None
    layout = code_layout(spec)
    name = (
        f"bf16_{spec.weight.format.name}_g{layout.reduction.group_size}_{spec.scale_name}_k{spec.k}"
    )
    return row_variants(
        name,
        schedules,
        _emit_one_row,
        _emit_many_rows,
        layout,
        rows,
        uses=frozenset({"bf16"}),
    )


@dataclass(frozen=True)
class _Panels:
    """Panels of 16 channels of the blob `w`, which has `n` of them."""

    b: Builder
    layout: WeightLayout
    w: Value
    n: Value
    table: Value | None  # of trellis codes

    @staticmethod
    def of(b: Builder, layout: WeightLayout, w: Value, n: Value) -> _Panels:
        table = table_on_stack(b) if isinstance(layout, TrellisLayout) else None
        return _Panels(b, layout, w, n, table)

    def one_row(
        self,
        panel: Value,
        x: Callable[[Value], Value],
        bias: Value,
        prefetch: int,
        rows: Bf16Rows,
    ) -> Value:
        if isinstance(self.layout, TrellisLayout):
            return one_row_of_trellis(self._trellis(self.layout, panel), x, bias, rows.at)
        return one_row_of_codes(self._codes(panel), x, bias, prefetch, rows.at)

    def scale(self, panel: Value, group: Value) -> Value:
        if isinstance(self.layout, TrellisLayout):
            return self._trellis(self.layout, panel).scale(group)
        return self._codes(panel).scale(group)

    def decode(
        self,
        panel: Value,
        segment: Value,
        begin: Value,
        depth: tuple[Value, Value],
        put: Callable[[Value, list[Value]], None],
    ) -> None:
        """Call `put(term, values)` for runs of q - z, f32, of a piece of the segment that begins at
        column `begin`; `depth` are the piece's first term in it and the number of terms."""
        b, (first, count) = self.b, depth
        if isinstance(self.layout, TrellisLayout):
            trellis = self._trellis(self.layout, panel)
            with b.loop(0, count, QUAD) as loop:
                put(loop.i, trellis.values(begin + first + loop.i))
            return
        codes, reduction = self._codes(panel), self.layout.reduction
        zero = codes.zero(segment // reduction.segments_per_group)
        with b.loop(0, count, reduction.unit) as loop:
            unit = (first + loop.i) // reduction.unit
            put(loop.i, codes.unit(segment, unit, zero))

    def _codes(self, panel: Value) -> CodePanel:
        return CodePanel(self.b, self.layout, self.w, panel * self.layout.panel_bytes)

    def _trellis(self, layout: TrellisLayout, panel: Value) -> TrellisPanel:
        return TrellisPanel.of(self.b, layout, self.w, self.n, panel, self.table)


def _emit_one_row(
    name: str,
    schedule: KernelSchedule,
    layout: WeightLayout,
    rows: Bf16Rows,
    module: Any,
    isa: Isa,
) -> None:
    with function(module, isa, name, ARGUMENTS) as (b, i, q, w, bias, y, m, n):
        panels = _Panels.of(b, layout, w, n)
        factor = _factors(b, q, rows)
        _, span = grid_block(b, schedule, i, m, n)
        prefetch = schedule.on(isa).prefetch
        with b.loop(*span, PANEL) as columns:
            total = load_columns(b, bias, 0, columns.i, n)
            total = panels.one_row(columns.i // PANEL, factor, total, prefetch, rows)
            store_columns(b, total, y, 0, columns.i, n)


def _factors(b: Builder, q: Value, rows: Bf16Rows) -> Callable[[Value], Value]:
    """Gives element k of a packed row, f32 in all lanes: from the stack, where the row is widened
    once for all panels of a grid index, or, where it is too long for that, from the row."""
    if rows.padded_k > MAX_WIDENED_K:
        words = b.view(q, "i16", b.index(rows.padded_k))

        def widened(k: Value) -> Value:
            twice = b.splat(b.load(words, k), PAIR * PANEL)
            return low_half(b, b.bitcast(twice, vec(PANEL, "i32")))

        return widened
    row = b.alloca(rows.padded_k, "f32")
    with b.loop(0, rows.padded_k, PANEL) as loop:
        values = b.load_as(q, loop.i * VALUE_BYTES, vec(PANEL, "i16"))
        b.store(b.bitcast(b.zext(values, "i32") << 16, vec(PANEL, "f32")), row, loop.i)
    return partial(broadcast, b, row)


def _emit_many_rows(
    name: str,
    schedule: KernelSchedule,
    layout: WeightLayout,
    rows: Bf16Rows,
    module: Any,
    isa: Isa,
) -> None:
    """Blocks of rows and 48 columns; y begins as the bias, and pieces of K add to it."""
    reduction, depth_block = layout.reduction, schedule.on(isa).block_k
    piece = depth_block - depth_block % reduction.unit  # whole units
    with function(module, isa, name, ARGUMENTS) as (b, i, q, w, bias, y, m, n):
        decoded = b.alloca(depth_block // PAIR * COLUMN_BLOCK, "i32")
        scales = b.alloca(COLUMN_BLOCK, "f32")
        panels = _Panels.of(b, layout, w, n)
        row_span, columns = grid_block(b, schedule, i, m, n)
        column = columns[0]
        product = Product(
            b, row_pairs(b, q, rows, m), y, n, rows.row_pairs, dot_steps(isa), max_tile_rows(isa)
        )
        product.begin(row_span, columns, bias)

        def segment(segment: Value, begin: Value, terms: Value) -> None:
            group = segment // reduction.segments_per_group
            with b.loop(*columns, PANEL) as each:
                scale = panels.scale(each.i // PANEL, group)
                b.store(scale, scales, each.i - column)
            with b.loop(0, terms, piece) as depth:
                count = b.min(terms - depth.i, piece)
                with b.loop(*columns, PANEL) as each:

                    def put(term: Value, values: list[Value]) -> None:
                        for j in range(0, len(values), PAIR):
                            pair = pairs_of(b, values[j], values[j + 1])
                            at = (term + j) // PAIR * COLUMN_BLOCK + (each.i - column)
                            b.store(pair, decoded, at)

                    panels.decode(each.i // PANEL, segment, begin, (depth.i, count), put)
                first_pair = rows.at(begin + depth.i) // PAIR
                product.add(
                    row_span,
                    columns,
                    (first_pair, ceil_div(count, PAIR)),
                    stack_block(b, decoded),
                    scale=lambda at: b.load(scales, at - column, PANEL),
                )

        reduction.emit_segments(b, segment)
