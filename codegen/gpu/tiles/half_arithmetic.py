"""Float accumulators of tile kernels: 16-bit activations, weights decoded to 16-bit floats.

y = sum over groups of s_w * sum over the group of x * (q_w - z_w)     products and sums in f32

Activations that are codes (of weights without integers) are x = q_a - z_a; s_a comes last.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.codegen.builder import Value
from abqc.codegen.strategy import MatmulSpec

from ..arch import GpuArch
from ..atoms import MmaStep, mma_step
from ..builder import GpuBuilder
from ..few_rows.values import product
from ..packing.layout import CentredRows, FloatElement, half_rows_of
from ..weights.decode import half_register
from ..weights.layout import WeightLayout
from .context import TileContext
from .output import load_bias, store_tile


class HalfArithmetic:
    """`Arithmetic` of float activations and quantized weights."""

    def __init__(self, spec: MatmulSpec, element: FloatElement) -> None:
        assert spec.weight is not None
        self.element = element
        self.rows = half_rows_of(spec, element)
        self.layout = WeightLayout.of(spec)
        self.grouped = self.layout.grouped.groups > 1

    def step(self, arch: GpuArch) -> MmaStep:
        step = mma_step(arch, self.element)
        assert step is not None, f"{arch.name} has no {self.element} MMA"
        return step

    def initial(self, b: GpuBuilder) -> Value:
        return b.const(0.0, "f32")

    def prepare(self, context: TileContext) -> None:
        pass

    def zeros(self, context: TileContext, group: Value | int) -> list[Value]:
        """-zero of the column that this thread decodes, twice, in each block of columns."""
        if not self.layout.has_zeros:
            return []
        b = context.b
        result = []
        for block in range(context.plan.column_blocks):
            (zero,) = context.weight.zeros(group, context.fragment_column(block))
            narrow = b.narrow(b.to_float(0 - zero), self.element)
            result.append(b.splat(narrow, 2))
        return result

    def decode(
        self, b: GpuBuilder, words: Sequence[Value], register: int, zero: Value | None
    ) -> Value:
        return b.to_bits(half_register(b, self.layout, words, register, self.element, zero))

    def flush(
        self, context: TileContext, sums: list[Value], totals: list[Value], group: Value
    ) -> list[Value]:
        b, plan = context.b, context.plan
        known = b.min(group, self.layout.grouped.groups - 1) if plan.runs_over else group
        result = list(totals)
        for block in range(plan.column_blocks):
            # Beyond the last group the accumulators are 0: x is.
            scales = context.weight.scales(known, context.stored_column(block), count=2)
            for row in range(context.row_count):
                for j in range(2):
                    at = context.accumulator(row, block, j)
                    result[at] = b.fma(sums[at], scales[j], result[at])
        return result

    def finish(self, context: TileContext, values: list[Value]) -> None:
        b, plan = context.b, context.plan
        if plan.schedule.split > 1:
            store_tile(
                context,
                context.split,
                lambda row, block, j: values[context.accumulator(row, block, j)],
            )
            return
        biases = load_bias(context)
        row_scales = self._row_scales(context)
        column_scales = [
            [] if self.grouped else context.weight.scales(0, context.stored_column(block), count=2)
            for block in range(plan.column_blocks)
        ]

        def element(row: int, block: int, j: int) -> Value:
            value = values[context.accumulator(row, block, j)]
            scales = [*column_scales[block][j : j + 1], *row_scales[row : row + 1]]
            if not scales:
                return value + biases[block][j]
            return b.fma(value, product(scales), biases[block][j])

        store_tile(context, 0, element)

    def _row_scales(self, context: TileContext) -> list[Value]:
        """Those of the thread's rows; none where activations are floats."""
        if not isinstance(self.rows, CentredRows):
            return []
        return [
            context.b.load(context.row_pointer(i), "f32", self.rows.scale_offset, cache="nc")
            for i in range(context.row_count)
        ]
