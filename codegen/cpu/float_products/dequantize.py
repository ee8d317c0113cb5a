"""Strategy `dequantize`: quantized weights, f32 activations; weights become floats in registers.

Weights lie as strategy `int8` packs them (`panels/layout.py`, `int8/layout.py`). Lane n of a quad's
vector holds four consecutive codes of channel n, one a byte, so that every byte becomes a vector of
16 floats by a shift, a mask and an exact trick: the bits of 2^23 + u are those of 2^23, or'ed with
u. Codes of indexed formats are looked up (`indexed_values`). With one row they are multiplied at
once, and every group's sum by its scale; with more, a piece of K x 48 weights is decoded to the
stack and shared by all rows of a block.

Quantized activations meet weights without integers here, and activations in blocks all weights:
their rows are packed as the floats that their codes stand for (`rounded_rows`, `block_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.codes.dense_units import value_pieces
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, MatmulSpec, Variant
from abqc.dialects.formats import QuantizedTensor, Scheme

from ..grid_block import grid_block
from ..int8.layout import QUAD, pack_codes, stored_value, value_quads
from ..packing.block_rows import block_pack_kernel
from ..packing.rounded_rows import RoundedRows, rounded_pack_kernel, rounded_scaled_pack_kernel
from ..panels.layout import WeightLayout, pack_weight
from ..panels.look_up import indexed_values
from ..panels.reduction import Reduction
from ..panels.scales import load_scales
from ..panels.strategy import MAX_ROTATED_K
from ..schedule import CpuSchedule, KernelSchedule, RangeSchedule, RowRange, default_schedules
from .schedules import PREFETCH_BYTES, FloatSchedules, row_variants
from .tile import (
    COLUMN_BLOCK,
    PANEL,
    Product,
    broadcast,
    ceil_div,
    load_columns,
    multiply_add,
    stack_block,
    store_columns,
    sum_pairwise,
)

SCHEDULES = FloatSchedules(
    chains=QUAD,
    decodes=True,
    prefetches=(1, 0, 2),
    row_blocks=(128, 64, 256),
    depths=(256, 128, 512),
)
TWO_23, TWO_23_BITS = 2.0**23, 0x4B000000
SIGN_BITS = 0x80808080  # turns signed bytes into unsigned ones that are 128 larger

ARGUMENTS = [buffer("i8"), buffer("f32"), buffer("f32"), INDEX, INDEX]  # behind the rows


class Dequantize:
    """The MatmulStrategy for quantized weights and float activations."""

    name = "dequantize"

    def unsupported(self, spec: MatmulSpec) -> str | None:
        if spec.weight is None:
            return "strategy 'dequantize' needs quantized weights"
        if spec.integer_products:
            return "strategy 'dequantize' takes quantized activations only where weights are floats"
        if spec.in_bf16:
            return "strategy 'dequantize' does not round activations to bf16"
        if spec.hadamard_block and spec.activation is None:
            return "strategy 'dequantize' does not rotate activations that stay float"
        if spec.hadamard_block and spec.k > MAX_ROTATED_K:
            return f"rotating rows of more than {MAX_ROTATED_K} elements needs too much stack"
        if spec.trellis:
            return "strategy 'dequantize' takes no trellis codes"
        if spec.stored_codes or spec.accumulators:
            return "strategy 'dequantize' multiplies floats: it takes and returns no integers"
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, QuantizedTensor), "strategy 'dequantize' packs quantized weights"
        return pack_weight(weight_layout(spec), weight, pack_codes)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return 0 if spec.activation is None else RoundedRows(spec.k).row_bytes

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        if spec.blocks:
            return block_pack_kernel(spec)
        return None if spec.activation is None else rounded_pack_kernel(spec)

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        """Packs by scales that `activations.measure_kernel` found: per image, per tensor."""
        return rounded_scaled_pack_kernel(spec)

    def schedules(self, spec: MatmulSpec, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
        return SCHEDULES(spec, rows, isa)

    def matmul_kernels(
        self, spec: MatmulSpec, schedules: Sequence[RangeSchedule] | None = None
    ) -> tuple[Variant, ...]:
        layout = weight_layout(spec)
        name = (
            f"dequantize_{_weight(spec).format.name}_g{layout.reduction.group_size}"
            f"_{spec.scale_name}_k{spec.k}"
        )
        packed = spec.activation is not None
        if packed:
            name = f"{name}_packed"
        schedules = schedules or default_schedules(spec, self.schedules)
        return row_variants(name, schedules, _emit_one_row, _emit_many_rows, layout, packed)


def _weight(spec: MatmulSpec) -> Scheme:
    assert spec.weight is not None
    return spec.weight


def weight_layout(spec: MatmulSpec) -> WeightLayout:
    """The layout of strategies `int8` and `dequantize`."""
    weight = _weight(spec)
    value = stored_value(weight.format)
    reduction = Reduction.of(spec.k, weight, QUAD * value_quads(value))
    return WeightLayout(value, weight.symmetric, spec.scale, reduction)


# Element k of a row, in all lanes.
Factor = Callable[[Value], Value]


@dataclass(frozen=True)
class CodePanel:
    """Decodes the panel that begins at byte `base` of `w`."""

    b: Builder
    layout: WeightLayout
    w: Value
    base: Value

    def scale(self, group: Value) -> Value:
        """The scales of a group, f32."""
        layout = self.layout
        at = self.base + layout.scales_at(group)
        whole = self.base + layout.tensor_scale_offset
        return load_scales(self.b, self.w, at, layout.scale, PANEL, whole)

    def zero(self, group: Value) -> Value:
        """What to subtract from 2^23 + u, u = mul * v unsigned, to get q - z."""
        b, layout = self.b, self.layout
        offset = layout.value.offset + (128 if layout.value.signed else 0)
        constant = b.const(TWO_23 + offset, vec(PANEL, "f32"))
        if layout.symmetric:
            return constant
        at = self.base + layout.zeros_at(group)
        return constant + b.to_float(b.zext(b.load_as(self.w, at, vec(PANEL, "i8")), "i32"))

    def unit(self, segment: Value, unit: Value, zero: Value, prefetch: int = 0) -> list[Value]:
        """q - z of all k of a unit, f32 vectors over the channels."""
        b, layout = self.b, self.layout
        at = self.base + (layout.codes_at(segment) + unit * layout.unit_bytes)
        if prefetch:
            for line in range(0, layout.unit_bytes, 64):
                b.prefetch(self.w, at + (line + prefetch * PREFETCH_BYTES))
        values = []
        for quad in range(value_quads(layout.value)):
            packed = self._quad(at, quad)
            values += [self._float(packed, byte, zero) for byte in range(QUAD)]
        return values

    def _quad(self, at: Value, quad: int) -> Value:
        """u of a quad, a byte each, vector<16xi32>."""
        b, layout = self.b, self.layout
        flipped = layout.value.signed and layout.value.indexed is None
        values = b.const(SIGN_BITS if flipped else 0, vec(PANEL, "i32"))
        for piece in value_pieces(layout.value)[quad]:
            vector = b.load_as(self.w, at + piece.vector * 64, vec(PANEL, "i32"))
            values = values ^ piece.emit(vector)
        return values + values if layout.value.mul == 2 else values

    def _float(self, packed: Value, byte: int, zero: Value) -> Value:
        b, indexed = self.b, self.layout.value.indexed
        code = (packed >> (8 * byte)) & 0xFF
        if indexed is not None:
            return indexed_values(b, code, indexed)
        return b.bitcast(code | TWO_23_BITS, vec(PANEL, "f32")) - zero


def _arguments(packed: bool) -> list[Any]:
    return [buffer("i8") if packed else buffer("f32"), *ARGUMENTS]


def _emit_one_row(
    name: str, schedule: KernelSchedule, layout: WeightLayout, packed: bool, module: Any, isa: Isa
) -> None:
    """One row: all weights are read once and in order."""
    with function(module, isa, name, _arguments(packed)) as (b, i, x, w, bias, y, m, n):
        x = b.view(x, "f32", m * layout.reduction.k) if packed else x
        _, span = grid_block(b, schedule, i, m, n)
        with b.loop(*span, PANEL) as columns:
            panel = CodePanel(b, layout, w, columns.i // PANEL * layout.panel_bytes)
            total = load_columns(b, bias, 0, columns.i, n)
            prefetch = schedule.on(isa).prefetch
            total = one_row_of_codes(panel, partial(broadcast, b, x), total, prefetch)
            store_columns(b, total, y, 0, columns.i, n)


def one_row_of_codes(
    panel: CodePanel,
    x: Factor,
    bias: Value,
    prefetch: int,
    place: Callable[[Value], Value] = lambda k: k,
) -> Value:
    """bias + sum over groups of scale * sum over k of x * (q - z), for one panel.

    `place(k)` is what x wants instead of the k that a segment begins with.
    """
    b, reduction = panel.b, panel.layout.reduction
    per_group = reduction.segments_per_group
    with b.loop(0, reduction.n_segments, carry=[bias]) as segments:
        group = segments.i // per_group
        part = segments.i % per_group
        begin = group * reduction.group_size + part * reduction.segment_size
        terms = reduction.emit_terms(b, group, part)
        zero = panel.zero(group)
        total = _one_row_segment(panel, x, segments.i, place(begin), terms, zero, prefetch)
        segments.carry(multiply_add(b, panel.scale(group), total, segments.args[0]))
    return segments.results[0]


def _one_row_segment(
    panel: CodePanel,
    x: Factor,
    segment: Value,
    begin: Value,
    terms: Value,
    zero: Value,
    prefetch: int,
) -> Value:
    """Sum of x * (q - z) over a segment: four partial sums over whole units, then the rest."""
    b, unit = panel.b, panel.layout.reduction.unit

    def add(sums: list[Value], index: Value, ragged: bool) -> list[Value]:
        sums = list(sums)
        ahead = 0 if ragged else prefetch
        for j, weights in enumerate(panel.unit(segment, index, zero, ahead)):
            k = index * unit + j
            if ragged:
                factor = b.select(k < terms, x(begin + b.min(k, terms - 1)), 0.0)
            else:
                factor = x(begin + k)
            sums[j % QUAD] = multiply_add(b, factor, weights, sums[j % QUAD])
        return sums

    whole = terms // unit
    with b.loop(0, whole, carry=[b.const(0.0, vec(PANEL, "f32"))] * QUAD) as loop:
        loop.carry(*add(loop.args, loop.i, ragged=False))
    if panel.layout.reduction.divides(unit):
        return sum_pairwise(loop.results)
    with b.loop(whole, ceil_div(terms, unit), carry=loop.results) as rest:
        rest.carry(*add(rest.args, rest.i, ragged=True))
    return sum_pairwise(rest.results)


def _emit_many_rows(
    name: str, schedule: KernelSchedule, layout: WeightLayout, packed: bool, module: Any, isa: Isa
) -> None:
    """Blocks of rows and 48 columns; y begins as the bias, and pieces of K add to it."""
    k, unit, depth_block = layout.reduction.k, layout.reduction.unit, schedule.on(isa).block_k
    piece = depth_block - depth_block % unit  # whole units
    with function(module, isa, name, _arguments(packed)) as (b, i, x, w, bias, y, m, n):
        x = b.view(x, "f32", m * k) if packed else x
        decoded = b.alloca(depth_block * COLUMN_BLOCK, "f32")
        rows, columns = grid_block(b, schedule, i, m, n)
        product = Product(b, x, y, n, k)
        product.begin(rows, columns, bias)

        def segment(segment: Value, begin: Value, terms: Value) -> None:
            with b.loop(0, terms, piece) as depth:
                count = b.min(terms - depth.i, piece)
                with b.loop(*columns, PANEL) as panels:
                    panel = CodePanel(b, layout, w, panels.i // PANEL * layout.panel_bytes)
                    target = panels.i - columns[0]
                    _decode(panel, segment, (depth.i, count), decoded, target)
                product.add(rows, columns, (begin + depth.i, count), stack_block(b, decoded))

        layout.reduction.emit_segments(b, segment)


def _decode(
    panel: CodePanel, segment: Value, depth: tuple[Value, Value], block: Value, column: Value
) -> None:
    """Scaled weights of a piece of a segment to columns of `[block_k][48]`."""
    b, reduction = panel.b, panel.layout.reduction
    group = segment // reduction.segments_per_group
    zero, scale = panel.zero(group), panel.scale(group)
    first, count = depth
    with b.loop(0, count, reduction.unit) as loop:
        unit = (first + loop.i) // reduction.unit
        for j, weights in enumerate(panel.unit(segment, unit, zero)):
            b.store(weights * scale, block, (loop.i + j) * COLUMN_BLOCK + column)
