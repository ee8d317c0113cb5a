"""Float accumulators of kernels by wgmma: 16-bit activations, weights decoded to 16-bit floats.

The formulas are those of tiles/half_arithmetic.py; columns and rows change places.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.codegen.builder import Value
from abqc.codegen.strategy import MatmulSpec

from ..few_rows.values import product
from ..packing.layout import CentredRows, FloatElement, half_rows_of
from ..weights.decode import half_register
from ..weights.layout import WeightLayout
from .context import WgmmaContext
from .instructions import Wgmma
from .output import load_bias, store_block, store_sums


class HalfProducts:
    """`Arithmetic` of float activations and quantized weights."""

    def __init__(self, spec: MatmulSpec, element: FloatElement) -> None:
        assert spec.weight is not None
        self.element = element
        self.rows = half_rows_of(spec, element)
        self.layout = WeightLayout.of(spec)
        self.grouped = self.layout.grouped.groups > 1

    def instruction(self, rows: int) -> Wgmma:
        return Wgmma(rows, (self.element, self.element))

    def prepare(self, context: WgmmaContext) -> None:
        pass

    def group_values(self, context: WgmmaContext, group: Value | int) -> list[Value]:
        """-zero of each of the thread's columns, twice, then their scales where they are needed
        in the K loop."""
        b, weight = context.b, context.weight
        columns = [context.stored_column(*place) for place in context.places()]
        result = []
        if self.layout.has_zeros:
            for column in columns:
                (zero,) = weight.zeros(group, column)
                narrow = b.narrow(b.to_float(0 - zero), self.element)
                result.append(b.splat(narrow, 2))
        if self.grouped:
            for column in columns:
                result += weight.scales(group, column)
        return result

    def decode(
        self,
        context: WgmmaContext,
        words: Sequence[Value],
        register: int,
        column: int,
        values: Sequence[Value],
    ) -> Value:
        b = context.b
        zero = values[column] if self.layout.has_zeros else None
        return b.to_bits(half_register(b, self.layout, words, register, self.element, zero))

    def flush(
        self,
        context: WgmmaContext,
        sums: list[Value],
        totals: list[Value],
        group: Value,
        values: Sequence[Value],
    ) -> list[Value]:
        # Beyond the last group the accumulators are 0: x is.
        b, result = context.b, list(totals)
        places = context.places()
        for (half, i), scale in zip(places, values[-len(places) :], strict=True):
            for j in range(context.row_pairs):
                for e in range(2):
                    at = context.accumulator(half, i, j, e)
                    result[at] = b.fma(sums[at], scale, result[at])
        return result

    def finish(self, context: WgmmaContext, values: list[Value]) -> None:
        b = context.b
        if context.plan.schedule.grid_split > 1:
            store_sums(context, context.split, values)
            return
        biases = load_bias(context)
        scales = []
        if not self.grouped:
            for place in context.places():
                scales += context.weight.scales(0, context.stored_column(*place))

        def row_scale(j: int, e: int) -> list[Value]:
            """That of a row; none where activations are floats."""
            if not isinstance(self.rows, CentredRows):
                return []
            pointer = context.row_pointer(j, e)
            return [b.load(pointer, "f32", self.rows.scale_offset, cache="nc")]

        def element(half: int, i: int, j: int, e: int, row_scale: list[Value]) -> Value:
            value, column = values[context.accumulator(half, i, j, e)], 2 * half + i
            factors = [*scales[column : column + 1], *row_scale]
            if not factors:
                return value + biases[column]
            return b.fma(value, product(factors), biases[column])

        store_block(context, 0, row_scale, element)
