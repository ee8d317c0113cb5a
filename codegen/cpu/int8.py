"""Strategy `int8`: weights unpack to bytes in registers, products by VPDPBUSD or its like.

Exact for every weight and activation format up to 8 bits, every group size and ragged M, N and K.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...dialects.formats import QuantizedTensor, Scheme
from ..builder import Builder, Value, vec
from ..strategy import Kernel, MatmulSpec, Variant
from .int8_kernels import MatmulKernel
from .int8_layout import RowLayout, WeightLayout, pack_weight
from .pack_activations import ROWS, PackKernel, ScaledPackKernel
from .quantize_row import LANES, RowCodes, RowScale, sweep

MAX_ROTATED_K = 1 << 16
COLUMNS = 64  # output channels of a grid index
# Largest M, rows of a grid index and rows of a register tile of each variant.
ROW_VARIANTS = ((1, 1, 1), (4, 4, 4), (None, 48, 6))


@dataclass(frozen=True)
class Int8Rows:
    """Writes packed rows in `RowLayout`."""

    layout: RowLayout

    @property
    def row_bytes(self) -> int:
        return self.layout.row_bytes

    def write_row(self, b: Builder, codes: RowCodes, row: RowScale, q: Value, at: Value) -> None:
        layout, reduction = self.layout, self.layout.reduction
        b.store_as(row.scale, q, at + layout.scale_offset)
        b.store_as(row.zero, q, at + layout.zero_offset)

        def segment(segment: Value, begin: Value, terms: Value) -> None:
            target = at + (segment * reduction.segment_pitch + layout.codes_offset)

            def copy(i: Value, mask: Value | None, total: Value) -> list[Value]:
                u = codes.vector(begin + i, row, mask)
                b.store(b.trunc(u, "i8"), q, target + i, mask)
                return [total + u]

            start = [b.const(0, vec(LANES, "i32"))]
            (total,) = sweep(b, terms, reduction.divides(LANES), copy, start)
            sums_at = at + (segment * 4 + layout.sums_offset)
            b.store_as(b.reduce(total, "add"), q, sums_at)
            self._pad(b, q, target, terms)

        reduction.emit_segments(b, segment)

    def _pad(self, b: Builder, q: Value, target: Value, terms: Value) -> None:
        """Zeros up to the next unit; weights are zero there too."""
        unit = self.layout.reduction.unit
        if not self.layout.reduction.divides(unit):
            with b.loop(terms, (terms + (unit - 1)) // unit * unit) as loop:
                b.store(b.const(0, "i8"), q, target + loop.i)


class Int8Strategy:
    """See the module."""

    name = "int8"

    def unsupported(self, spec: MatmulSpec) -> str | None:
        if spec.weight is None or spec.activation is None:
            return "strategy 'int8' needs quantized weights and activations"
        if spec.hadamard_block and spec.k > MAX_ROTATED_K:
            return f"rotating rows of more than {MAX_ROTATED_K} elements needs too much stack"
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, QuantizedTensor), "strategy 'int8' packs quantized weights"
        return pack_weight(_weight_layout(spec), weight)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return _row_layout(spec).row_bytes

    def pack_kernel(self, spec: MatmulSpec) -> Kernel:
        layout = _row_layout(spec)
        format = _activation(spec).format
        kernel = PackKernel(format, spec.k, spec.hadamard_block, Int8Rows(layout))
        name = f"int8_pack_{_row_name(spec, layout)}_h{spec.hadamard_block}"
        return Kernel(name, (ROWS,), partial(_emit, kernel, name))

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        """Packs by scales that `pack_activations.measure_kernel` found: per image, per tensor."""
        layout = _row_layout(spec)
        kernel = ScaledPackKernel(_activation(spec).format, spec.k, Int8Rows(layout))
        name = f"int8_scaled_pack_{_row_name(spec, layout)}"
        return Kernel(name, (ROWS,), partial(_emit, kernel, name))

    def matmul_kernels(self, spec: MatmulSpec) -> tuple[Variant, ...]:
        return self._variants(spec, accumulators=False)

    def accumulator_kernels(self, spec: MatmulSpec) -> tuple[Variant, ...]:
        """For tests: like `matmul_kernels`, but y is memref<?xi32> and gets acc [groups, m, n]."""
        return self._variants(spec, accumulators=True)

    def _variants(self, spec: MatmulSpec, accumulators: bool) -> tuple[Variant, ...]:
        layout = _weight_layout(spec)
        a_highest = _activation(spec).format.qmax - _activation(spec).format.qmin
        prefix = (
            f"int8_{_weight(spec).format.name}_g{layout.reduction.group_size}_s{spec.scale_bits}"
            f"_k{spec.k}_a{a_highest}"
        )
        variants, first = [], 1
        for last, rows, tile_rows in ROW_VARIANTS:
            kernel = MatmulKernel(layout, a_highest, (rows, COLUMNS), tile_rows, accumulators)
            name = f"{prefix}_m{first}{'_acc' if accumulators else ''}"
            variants.append(
                Variant(Kernel(name, kernel.block, partial(_emit, kernel, name)), first, last)
            )
            first = (last or 0) + 1
        return tuple(variants)


def _row_name(spec: MatmulSpec, layout: RowLayout) -> str:
    reduction = layout.reduction
    format = _activation(spec).format
    return f"{format.name}_k{spec.k}_g{reduction.group_size}_u{reduction.unit}"


def _emit(
    kernel: PackKernel | ScaledPackKernel | MatmulKernel, name: str, module: Any, isa: Any
) -> None:
    kernel.emit(module, isa, name)


def _weight(spec: MatmulSpec) -> Scheme:
    assert spec.weight is not None
    return spec.weight


def _activation(spec: MatmulSpec) -> Scheme:
    assert spec.activation is not None
    return spec.activation


def _weight_layout(spec: MatmulSpec) -> WeightLayout:
    return WeightLayout.of(spec.k, _weight(spec), spec.scale_bits)


def _row_layout(spec: MatmulSpec) -> RowLayout:
    return RowLayout(_weight_layout(spec).reduction)
