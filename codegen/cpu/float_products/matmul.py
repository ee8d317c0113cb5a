"""Strategy `float`: f32 activations times weights that stay float: f32, f16 or bf16.

Weights lie in panels of 16 output channels, `[ceil(N / 16)][K][16]`, the last one filled up with
zeros, in the type that the model has; 16 bits become f32 on the way to a register. Activations are
read as they are, row-major. One vector of a panel times one activation, broadcast, adds 16
products; a register tile of several rows and panels uses each loaded vector for all of its rows
(Goto, van de Geijn: "Anatomy of high-performance matrix multiplication", 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, MatmulSpec, Variant
from abqc.dialects.formats import FLOAT_BYTES, Float, QuantizedTensor

from ..grid_block import grid_block
from ..schedule import CpuSchedule, KernelSchedule, RangeSchedule, RowRange, default_schedules
from .schedules import PREFETCH_BYTES, FloatSchedules, row_variants
from .tile import (
    PANEL,
    Product,
    broadcast,
    load_columns,
    load_floats,
    multiply_add,
    store_columns,
    sum_pairwise,
)

ONE_ROW_UNROLL = 8  # independent sums: FMA latency times FMAs a cycle
SCHEDULES = FloatSchedules(
    chains=ONE_ROW_UNROLL,
    decodes=False,
    prefetches=(2, 0, 1, 4),
    row_blocks=(64, 32, 128, 256),
    depths=(1536, 768, 384),
)


def pack_panels(weight: np.ndarray) -> np.ndarray:
    """`[N, K]` to `[ceil(N / 16), K, 16]`, filled up with zeros."""
    n, k = weight.shape
    padded = np.zeros((-(-n // PANEL) * PANEL, k), weight.dtype)
    padded[:n] = weight
    return np.ascontiguousarray(padded.reshape(-1, PANEL, k).transpose(0, 2, 1))


class FloatMatmul:
    """The MatmulStrategy for floats times floats."""

    name = "float"

    def unsupported(self, spec: MatmulSpec) -> str | None:
        if spec.weight is not None:
            return "strategy 'float' takes float weights only"
        if spec.activation is not None:
            return "strategy 'float' takes float activations only"
        if spec.in_bf16:
            return "strategy 'float' does not round activations to bf16"
        if spec.hadamard_block:
            return "strategy 'float' does not rotate activations"
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, np.ndarray) and weight.shape == (spec.n, spec.k)
        return pack_panels(weight).reshape(-1).view(np.uint8)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return 0

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        return None

    def schedules(self, spec: MatmulSpec, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
        return SCHEDULES(spec, rows, isa)

    def matmul_kernels(
        self, spec: MatmulSpec, schedules: Sequence[RangeSchedule] | None = None
    ) -> tuple[Variant, ...]:
        panels = Panels(spec.k, spec.weight_float)
        name = f"float_matmul_{panels.name}"
        schedules = schedules or default_schedules(spec, self.schedules)
        return row_variants(name, schedules, _emit_one_row, _emit_many_rows, panels)


@dataclass(frozen=True)
class Panels:
    """The packed weight: panels of `k` rows of 16 elements."""

    k: int
    element: Float

    @property
    def name(self) -> str:
        return f"k{self.k}" if self.element == "f32" else f"{self.element}_k{self.k}"

    @property
    def row_bytes(self) -> int:
        return PANEL * FLOAT_BYTES[self.element]

    @property
    def panel_bytes(self) -> int:
        return self.k * self.row_bytes

    def row(self, b: Builder, w: Value, panel: Value, at: Value | int) -> Value:
        """Row `at` of a panel, as f32."""
        return load_floats(b, w, self._byte(panel, at), self.element)

    def prefetch(self, b: Builder, w: Value, panel: Value, at: Value, steps: int) -> None:
        """What a loop that is at row `at` needs soon."""
        if steps:
            b.prefetch(w, self._byte(panel, at) + steps * PREFETCH_BYTES)

    def _byte(self, panel: Value, at: Value | int) -> Value:
        return (panel * self.k + at) * self.row_bytes


ARGUMENTS = [buffer("f32"), buffer("i8"), buffer("f32"), buffer("f32"), INDEX, INDEX]


def _emit_one_row(
    name: str, schedule: KernelSchedule, panels: Panels, module: Any, isa: Isa
) -> None:
    """One row: every weight is read once and in order, so that memory is the only limit."""
    with function(module, isa, name, ARGUMENTS) as (b, i, x, w, bias, y, m, n):
        _, span = grid_block(b, schedule, i, m, n)
        with b.loop(*span, PANEL) as columns:
            panel = columns.i // PANEL
            sums = _one_row_sums(b, x, w, panel, panels, schedule.on(isa).prefetch)
            total = sum_pairwise(sums) + load_columns(b, bias, 0, columns.i, n)
            store_columns(b, total, y, 0, columns.i, n)


def _one_row_sums(
    b: Builder, x: Value, w: Value, panel: Value, panels: Panels, prefetch: int
) -> list[Value]:
    """Eight partial sums: number j has the terms k = j modulo 8."""
    zero, k = b.const(0.0, f"vector<{PANEL}xf32>"), panels.k
    sums = [zero] * ONE_ROW_UNROLL
    whole = k // ONE_ROW_UNROLL * ONE_ROW_UNROLL
    if whole:
        with b.loop(0, whole, ONE_ROW_UNROLL, sums) as loop:
            terms = []
            for j, total in enumerate(loop.args):
                at = loop.i + j
                panels.prefetch(b, w, panel, at, prefetch)
                vector = panels.row(b, w, panel, at)
                terms.append(multiply_add(b, broadcast(b, x, at), vector, total))
            loop.carry(*terms)
        sums = loop.results
    for j in range(k - whole):
        vector = panels.row(b, w, panel, whole + j)
        sums[j] = multiply_add(b, broadcast(b, x, whole + j), vector, sums[j])
    return sums


def _emit_many_rows(
    name: str, schedule: KernelSchedule, panels: Panels, module: Any, isa: Isa
) -> None:
    """Blocks of rows and 48 columns: what a piece of K needs of both stays in the cache."""
    k = panels.k
    with function(module, isa, name, ARGUMENTS) as (b, i, x, w, bias, y, m, n):
        rows, columns = grid_block(b, schedule, i, m, n)
        product = Product(b, x, y, n, k)
        size = piece_size(k, schedule.on(isa).block_k)
        if size == k:

            def panel(at: Value, block_column: Value) -> Value:
                return panels.row(b, w, (columns[0] + block_column) // PANEL, at)

            product.add(rows, columns, (0, k), panel, bias=bias)
            return
        product.begin(rows, columns, bias)
        with b.loop(0, k, size) as pieces:
            terms = b.index(size) if k % size == 0 else b.min(k - pieces.i, b.index(size))

            def weights(at: Value, block_column: Value) -> Value:
                panel = (columns[0] + block_column) // PANEL
                return panels.row(b, w, panel, pieces.i + at)

            product.add(rows, columns, (pieces.i, terms), weights)


def piece_size(k: int, most: int) -> int:
    """K in equal pieces of at most `most` terms, but for the last one."""
    return -(-k // -(-k // most))
