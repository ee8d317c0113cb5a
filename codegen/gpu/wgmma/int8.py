"""Integer accumulators of kernels by wgmma: acc of docs/numerics.md, exact, and its float part.

The formulas are those of tiles/int8_arithmetic.py; columns and rows change places.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.codegen.builder import Value
from abqc.codegen.strategy import MatmulSpec

from ..packing.layout import Int8Rows
from ..weights.decode import byte_type, s8_factor, s8_register, s8_shift
from ..weights.layout import WeightLayout
from .context import WgmmaContext
from .instructions import Wgmma
from .output import Element, load_bias, store_block, store_sums


class Int8Products:
    """`Arithmetic` of quantized activations and weights."""

    def __init__(self, spec: MatmulSpec) -> None:
        assert spec.weight is not None and spec.activation is not None
        self.format = spec.weight.format
        self.rows = Int8Rows.of(spec)
        self.layout = WeightLayout.of(spec)
        self.grouped = self.layout.grouped.groups > 1
        self._row_zeros: list[Value] = []

    def instruction(self, rows: int) -> Wgmma:
        return Wgmma(rows, (byte_type(self.format), "u8" if self.rows.unsigned else "s8"))

    def prepare(self, context: WgmmaContext) -> None:
        if self.grouped:  # else they are wanted after the loop alone
            self._row_zeros = self._zeros_of_rows(context)

    def _zeros_of_rows(self, context: WgmmaContext) -> list[Value]:
        if not self.layout.has_sums:
            return []
        return self._row_values(context, self.rows.zero_offset, "i32")

    def _row_values(self, context: WgmmaContext, offset: int | Value, type_: str) -> list[Value]:
        """A 4-byte value at byte `offset` of each of the thread's packed rows."""
        return [
            context.b.load(context.row_pointer(j, e), type_, offset, cache="nc")
            for j in range(context.row_pairs)
            for e in range(2)
        ]

    def group_values(self, context: WgmmaContext, group: Value | int) -> list[Value]:
        """Where there are groups: scales of the thread's columns, over the factor of decoded codes;
        then negated sums of these codes, then zero points."""
        if not self.grouped:
            return []
        factor = 1.0 / s8_factor(self.format)
        columns = [context.stored_column(*place) for place in context.places()]
        scales = [context.weight.scales(group, column)[0] * factor for column in columns]
        return [*scales, *self._code_sums(context, group), *self._zeros(context, group)]

    def _code_sums(self, context: WgmmaContext, group: Value | int) -> list[Value]:
        """-factor * sum of each column's codes."""
        if not self.layout.has_sums:
            return []
        shift, weight = s8_shift(self.format), context.weight
        columns = [context.stored_column(*place) for place in context.places()]
        return [0 - (weight.sums(group, column)[0] << shift) for column in columns]

    def _zeros(self, context: WgmmaContext, group: Value | int) -> list[Value]:
        if not self.layout.has_zeros:
            return []
        columns = [context.stored_column(*place) for place in context.places()]
        return [context.weight.zeros(group, column)[0] for column in columns]

    def decode(
        self,
        context: WgmmaContext,
        words: Sequence[Value],
        register: int,
        column: int,
        values: Sequence[Value],
    ) -> Value:
        return s8_register(context.b, self.layout, words, register)

    def flush(
        self,
        context: WgmmaContext,
        sums: list[Value],
        totals: list[Value],
        group: Value,
        values: Sequence[Value],
    ) -> list[Value]:
        b, result = context.b, list(totals)
        scales, corrected = self._corrected_group(context, sums, group, values)
        if context.plan.runs_over:
            exists = group < self.layout.grouped.groups
            scales = [b.select(exists, scale, 0.0) for scale in scales]
        for half, i, j, e in context.elements():
            at = context.accumulator(half, i, j, e)
            value = b.to_float(corrected[at])
            result[at] = b.fma(value, scales[2 * half + i], result[at])
        return result

    def _corrected_group(
        self, context: WgmmaContext, sums: list[Value], group: Value, values: Sequence[Value]
    ) -> tuple[list[Value], list[Value]]:
        """Scales by column and `_corrected` accumulators of a group; `values` as `group_values`."""
        columns = len(context.places())
        scales, rest = list(values[:columns]), list(values[columns:])
        code_sums = rest[:columns] if self.layout.has_sums else []
        zeros = rest[-columns:] if self.layout.has_zeros else []
        known = group
        if context.plan.runs_over:
            known = context.b.min(group, self.layout.grouped.groups - 1)
        row_sums = self._row_sums(context, known)
        return scales, self._corrected(context, sums, self._row_zeros, code_sums, row_sums, zeros)

    def _row_sums(self, context: WgmmaContext, group: Value | int) -> list[Value]:
        if not self.layout.has_zeros:
            return []
        offset = context.b.index(group) * 4 + self.rows.sums_offset
        return self._row_values(context.again(), offset, "i32")

    def _corrected(
        self,
        context: WgmmaContext,
        sums: list[Value],
        row_zeros: list[Value],
        code_sums: list[Value],
        row_sums: list[Value],
        zeros: list[Value],
    ) -> list[Value]:
        """factor * acc: zero points taken into account."""
        result = list(sums)
        for half, i, j, e in context.elements():
            at, column, row = context.accumulator(half, i, j, e), 2 * half + i, 2 * j + e
            result[at] = _corrected(
                sums[at],
                [row_zeros[row] * code_sums[column]] if code_sums else [],
                [row_sums[row] * zeros[column]] if zeros else [],
            )
        return result

    def finish(self, context: WgmmaContext, values: list[Value]) -> None:
        b = context.b
        if context.plan.schedule.grid_split > 1:
            store_sums(context, context.split, values)
            return
        biases = load_bias(context)

        def row_scale(j: int, e: int) -> Value:
            return b.load(context.row_pointer(j, e), "f32", self.rows.scale_offset, cache="nc")

        if self.grouped:

            def total(half: int, i: int, j: int, e: int, row: list[Value]) -> Value:
                value = values[context.accumulator(half, i, j, e)]
                return b.fma(row[0], value, biases[2 * half + i])

            store_block(context, 0, lambda j, e: [row_scale(j, e)], total)
            return
        scales = [
            context.weight.scales(0, context.stored_column(*place))[0] for place in context.places()
        ]
        corrected = self._only_group(context, values)

        def element(half: int, i: int, j: int, e: int, row: list[Value]) -> Value:
            column = 2 * half + i
            acc = b.to_float(corrected(half, i, j, e, row[1:]))
            return b.fma(row[0] * scales[column], acc, biases[column])

        store_block(
            context, 0, lambda j, e: [row_scale(j, e), *self._row_terms(context, j, e)], element
        )

    def _row_terms(self, context: WgmmaContext, j: int, e: int) -> list[Value]:
        """What accumulators of the only group need of a row: its zero point and its sum."""
        offsets = [self.rows.zero_offset] if self.layout.has_sums else []
        offsets += [self.rows.sums_offset] if self.layout.has_zeros else []
        pointer = context.row_pointer(j, e)
        return [context.b.load(pointer, "i32", offset, cache="nc") for offset in offsets]

    def _only_group(self, context: WgmmaContext, values: list[Value]) -> Element:
        """acc of the only group, of accumulators and `_row_terms`."""
        code_sums, zeros = self._code_sums(context, 0), self._zeros(context, 0)

        def corrected(half: int, i: int, j: int, e: int, row: list[Value]) -> Value:
            at, column = context.accumulator(half, i, j, e), 2 * half + i
            plus = [row[0] * code_sums[column]] if code_sums else []
            minus = [row[-1] * zeros[column]] if zeros else []
            return self._unscaled(_corrected(values[at], plus, minus))

        return corrected

    def _unscaled(self, accumulator: Value) -> Value:
        """Without the factor of decoded codes."""
        shift = s8_shift(self.format)
        return accumulator.sar(shift) if shift else accumulator


def _corrected(value: Value, plus: list[Value], minus: list[Value]) -> Value:
    for term in plus:
        value = value + term
    for term in minus:
        value = value - term
    return value


class Int8Accumulators(Int8Products):
    """Stores acc itself, i32 [groups][m][n]."""

    def flush(
        self,
        context: WgmmaContext,
        sums: list[Value],
        totals: list[Value],
        group: Value,
        values: Sequence[Value],
    ) -> list[Value]:
        b = context.b
        _, corrected = self._corrected_group(context, sums, group, values)
        with b.when(group < self.layout.grouped.groups):
            store_sums(context, group, [self._unscaled(acc) for acc in corrected])
        return totals

    def finish(self, context: WgmmaContext, values: list[Value]) -> None:
        if not self.grouped:
            element = self._only_group(context, values)
            store_block(context, 0, lambda j, e: self._row_terms(context, j, e), element)
