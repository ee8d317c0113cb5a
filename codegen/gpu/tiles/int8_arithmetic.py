"""Integer accumulators of tile kernels: acc of docs/numerics.md, exact, and the float part of it.

    acc = sum q_a q_w  -  z_a * sum q_w  -  z_w * sum (q_a - z_a)          sums over a group

Rows have the last sum, weights the other one. Registers of weights hold factor * q_w
(weights/decode.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from abqc.codegen.builder import Value
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import NumberFormat

from ..arch import GpuArch
from ..atoms import Element, MmaStep, mma_step
from ..builder import GpuBuilder
from ..magic import MAGIC, MAGIC_BITS, MAGIC_RANGE
from ..packing.layout import Int8Rows
from ..weights.decode import byte_type, s8_factor, s8_register, s8_shift
from ..weights.layout import WeightLayout
from .context import TileContext
from .output import load_bias, store_tile


def largest(format: NumberFormat) -> int:
    """The largest magnitude of q - z."""
    return max(abs(format.qmin), abs(format.qmax))


class Int8Arithmetic:
    """`Arithmetic` of quantized activations and weights."""

    def __init__(self, spec: MatmulSpec) -> None:
        assert spec.weight is not None and spec.activation is not None
        self.spec = spec
        self.format = spec.weight.format
        self.rows = Int8Rows.of(spec)
        self.layout = WeightLayout.of(spec)
        self.grouped = self.layout.grouped.groups > 1
        self._row_zeros: list[Value] = []

    @cached_property
    def signs(self) -> tuple[Element, Element]:
        return ("u8" if self.rows.unsigned else "s8", byte_type(self.format))

    @cached_property
    def by_magic(self) -> bool:
        """Whether the accumulators of a group, times the factor, are surely below MAGIC_RANGE."""
        assert self.spec.activation is not None
        term = largest(self.spec.activation.format) * largest(self.format) * s8_factor(self.format)
        return self.grouped and term * self.layout.grouped.group_size < MAGIC_RANGE

    def step(self, arch: GpuArch) -> MmaStep:
        step = mma_step(arch, "s8", self.signs)
        assert step is not None, f"{arch.name} has no s8 MMA"
        return step

    def initial(self, b: GpuBuilder) -> Value:
        return b.const(MAGIC_BITS if self.by_magic else 0, "i32")

    def prepare(self, context: TileContext) -> None:
        if self.grouped:  # else they are wanted after the loop alone
            self._row_zeros = self._zeros_of_rows(context)

    def _zeros_of_rows(self, context: TileContext) -> list[Value]:
        if not self.layout.has_sums:
            return []
        return self.row_values(context, self.rows.zero_offset, "i32")

    def zeros(self, context: TileContext, group: Value | int) -> list[Value]:
        return []

    def decode(
        self, b: GpuBuilder, words: Sequence[Value], register: int, zero: Value | None
    ) -> Value:
        return s8_register(b, self.layout, words, register)

    def row_values(self, context: TileContext, offset: int, type_: str) -> list[Value]:
        """A 4-byte value at byte `offset` of each of the thread's packed rows."""
        b = context.b
        return [
            b.load(context.row_pointer(i), type_, offset, cache="nc")
            for i in range(context.row_count)
        ]

    def flush(
        self, context: TileContext, sums: list[Value], totals: list[Value], group: Value
    ) -> list[Value]:
        b, plan = context.b, context.plan
        known = b.min(group, self.layout.grouped.groups - 1) if plan.runs_over else group
        corrected = self.corrected(context, sums, known)
        result = list(totals)
        for block in range(plan.column_blocks):
            scales = context.weight.scales(known, context.stored_column(block), count=2)
            scales = [scale * (1.0 / s8_factor(self.format)) for scale in scales]
            if plan.runs_over:
                exists = group < self.layout.grouped.groups
                scales = [b.select(exists, scale, 0.0) for scale in scales]
            for row in range(context.row_count):
                for j in range(2):
                    at = context.accumulator(row, block, j)
                    result[at] = b.fma(self._as_float(b, corrected[at]), scales[j], result[at])
        return result

    def corrected(self, context: TileContext, sums: list[Value], group: Value | int) -> list[Value]:
        """factor * acc of accumulators of a group: zero points taken into account."""
        shift, result = s8_shift(self.format), list(sums)
        row_zeros = self._row_zeros if self.grouped else self._zeros_of_rows(context)
        row_sums = self._row_sums(context, group)
        for block in range(context.plan.column_blocks):
            column = context.stored_column(block)
            weight = context.weight
            code_sums = weight.sums(group, column, count=2) if self.layout.has_sums else []
            code_sums = [total << shift for total in code_sums]
            zeros = weight.zeros(group, column, count=2) if self.layout.has_zeros else []
            for row in range(context.row_count):
                for j in range(2):
                    at = context.accumulator(row, block, j)
                    if code_sums:
                        result[at] = result[at] - row_zeros[row] * code_sums[j]
                    if zeros:
                        result[at] = result[at] - row_sums[row] * zeros[j]
        return result

    def _row_sums(self, context: TileContext, group: Value | int) -> list[Value]:
        if not self.layout.has_zeros:
            return []
        b, offset = context.b, self.rows.sums_offset
        pointers = [context.row_pointer(i) for i in range(context.row_count)]
        if not isinstance(group, int):
            pointers = [b.at(pointer, group * 4) for pointer in pointers]
        return [b.load(pointer, "i32", offset, cache="nc") for pointer in pointers]

    def _as_float(self, b: GpuBuilder, value: Value) -> Value:
        """An accumulator that began at `initial`, as f32."""
        return b.from_bits(value, "f32") - MAGIC if self.by_magic else b.to_float(value)

    def finish(self, context: TileContext, values: list[Value]) -> None:
        b, plan = context.b, context.plan
        if plan.schedule.split > 1:
            store_tile(
                context,
                context.split,
                lambda row, block, j: values[context.accumulator(row, block, j)],
            )
            return
        row_scales = self.row_values(context, self.rows.scale_offset, "f32")
        biases = load_bias(context)
        if self.grouped:
            store_tile(
                context,
                0,
                lambda row, block, j: b.fma(
                    row_scales[row], values[context.accumulator(row, block, j)], biases[block][j]
                ),
            )
            return
        scales = [
            context.weight.scales(0, context.stored_column(block), count=2)
            for block in range(plan.column_blocks)
        ]
        accumulators = self.corrected(context, values, 0)
        shift = s8_shift(self.format)

        def element(row: int, block: int, j: int) -> Value:
            acc = accumulators[context.accumulator(row, block, j)]
            acc = b.to_float(acc.sar(shift) if shift else acc)
            return b.fma(row_scales[row] * scales[block][j], acc, biases[block][j])

        store_tile(context, 0, element)


class AccumulatorProbe(Int8Arithmetic):
    """Stores acc itself, i32 [groups][m][n]."""

    def flush(
        self, context: TileContext, sums: list[Value], totals: list[Value], group: Value
    ) -> list[Value]:
        b, groups = context.b, self.layout.grouped.groups
        known = b.min(group, groups - 1)
        with b.when(group < groups):
            self._store(context, sums, known)
        return totals

    def finish(self, context: TileContext, values: list[Value]) -> None:
        if not self.grouped:
            self._store(context, values, 0)

    def _store(self, context: TileContext, sums: list[Value], group: Value | int) -> None:
        base = MAGIC_BITS if self.by_magic else 0
        values = self.corrected(context, sums, group)
        shift = s8_shift(self.format)

        def element(row: int, block: int, j: int) -> Value:
            value = values[context.accumulator(row, block, j)] - base
            return value.sar(shift) if shift else value

        store_tile(context, group, element)
