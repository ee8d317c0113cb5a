"""What the values of a rows kernel mean: packed rows, decoded weights, and y of their sums.

Int8Values   codes as bytes; sums are those of factor * q_w * q_a, exact (weights/decode.py)
HalfValues   f16 or bf16, sums of x * (q_w - z_w) in f32; x may be codes, whose scale comes last
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from abqc.codegen.builder import Value, vec
from abqc.codegen.strategy import MatmulSpec

from ..builder import Cache, GpuBuilder
from ..packing.layout import CentredRows, FloatElement, FloatRows, Int8Rows, half_rows_of
from ..weights.decode import byte_type, half_register, s8_factor, s8_register, s8_shift
from ..weights.layout import LANE_CODES, WeightLayout
from ..weights.pointers import PackedWeight

QUARTERS = 4  # lanes of a warp that share a column: each has a quarter of a unit's terms


class RowValues(Protocol):
    """Quantized or float activations, and the weights that go with them."""

    name: str
    layout: WeightLayout
    accumulator: str  # type of sums
    row_bytes: int
    unit_bytes: int  # of a unit in a row

    def load(
        self, b: GpuBuilder, row: Value, offset: Value, at: int, cache: Cache = "nc"
    ) -> list[Value]:
        """The lane's words (i32) of the unit at byte `offset` + `at` of a row: its quarter."""
        ...

    def decode(
        self, b: GpuBuilder, words: Sequence[Value], register: int, zero: Value | None
    ) -> Value:
        """A register of weights (i32); `zero` is the column's zero point, where they need it."""
        ...

    def decode_zeros(
        self, weight: PackedWeight, group: Value | int, columns: Sequence[Value]
    ) -> list[Value]:
        """The zero points (i32) that `decode` needs, for each column; none where it needs none."""
        ...

    def column(self, weight: PackedWeight, group: Value | int, column: Value) -> list[Value]:
        """What is to know of a column and group to scale its sums."""
        ...

    def scaled(
        self, b: GpuBuilder, total: Value, known: Sequence[Value], row: Value, group: Value,
        before: Value,
    ) -> Value:  # fmt: skip
        """`before` plus the scaled sum of a group, f32; `known` as `column` gives it."""
        ...

    def finish(
        self, b: GpuBuilder, total: Value, row: Value, weight: PackedWeight, column: Value,
        bias: Value,
    ) -> Value:  # fmt: skip
        """y: of the sum of the only group, or of the total of scaled ones."""
        ...


def load_words(
    b: GpuBuilder, row: Value, offset: Value, at: int, count: int, cache: Cache
) -> list[Value]:
    """The quarter of a unit that a lane has: `count` words, 16 bytes apart."""
    pointer = b.at(row, offset + b.lane % QUARTERS * 4)
    return [b.load(pointer, "i32", at + 16 * i, cache=cache) for i in range(count)]


def product(factors: Sequence[Value]) -> Value:
    """Of one or more."""
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result


class Int8Values:
    """Activations of up to 8 bits."""

    accumulator = "i32"

    def __init__(self, spec: MatmulSpec) -> None:
        assert spec.weight is not None and spec.activation is not None
        self.format = spec.weight.format
        self.rows = Int8Rows.of(spec)
        self.layout = WeightLayout.of(spec)
        self.row_bytes = self.rows.row_bytes
        self.unit_bytes = self.layout.grouped.unit
        signs = "u8" if self.rows.unsigned else "s8"
        self.name = f"{signs}{'_sums' if self.layout.has_sums else ''}"

    @property
    def signs(self) -> tuple[str, str]:
        """How the bytes of rows and of weights are read: "u8" or "s8"."""
        return "u8" if self.rows.unsigned else "s8", byte_type(self.format)

    def load(
        self, b: GpuBuilder, row: Value, offset: Value, at: int, cache: Cache = "nc"
    ) -> list[Value]:
        return load_words(b, row, offset, at, self.layout.registers_per_block, cache)

    def decode(
        self, b: GpuBuilder, words: Sequence[Value], register: int, zero: Value | None
    ) -> Value:
        return s8_register(b, self.layout, words, register)

    def decode_zeros(
        self, weight: PackedWeight, group: Value | int, columns: Sequence[Value]
    ) -> list[Value]:
        return []

    def column(self, weight: PackedWeight, group: Value | int, column: Value) -> list[Value]:
        known = weight.scales(group, column)
        known += weight.sums(group, column) if self.layout.has_sums else []
        return known + (weight.zeros(group, column) if self.layout.has_zeros else [])

    def scaled(
        self,
        b: GpuBuilder,
        total: Value,
        known: Sequence[Value],
        row: Value,
        group: Value,
        before: Value,
    ) -> Value:
        acc = b.to_float(self._centred(b, total, known, row, group))
        return b.fma(acc, known[0] * (1.0 / s8_factor(self.format)), before)

    def _centred(
        self, b: GpuBuilder, total: Value, known: Sequence[Value], row: Value, group: Value | int
    ) -> Value:
        """factor * acc of the sum of a whole group: zero points taken into account."""
        rest = list(known[1:])
        if self.layout.has_sums:
            zero = b.load(row, "i32", self.rows.zero_offset, cache="nc")
            total = total - zero * (rest.pop(0) << s8_shift(self.format))
        if self.layout.has_zeros:
            row_sum = b.load(row, "i32", b.index(group) * 4 + self.rows.sums_offset, cache="nc")
            total = total - row_sum * rest.pop(0)
        return total

    def finish(
        self,
        b: GpuBuilder,
        total: Value,
        row: Value,
        weight: PackedWeight,
        column: Value,
        bias: Value,
    ) -> Value:
        row_scale = b.load(row, "f32", self.rows.scale_offset, cache="nc")
        if self.layout.grouped.groups > 1:
            return b.fma(row_scale, total, bias)
        known = self.column(weight, 0, column)
        acc = self._centred(b, total, known, row, 0)
        shift = s8_shift(self.format)
        acc = acc.sar(shift) if shift else acc
        return b.fma(row_scale * known[0], b.to_float(acc), bias)


class HalfValues:
    """Activations of f16 or bf16."""

    accumulator = "f32"

    def __init__(self, spec: MatmulSpec, element: FloatElement = "f16") -> None:
        self.element: FloatElement = element
        self.rows = half_rows_of(spec, element)
        self.name: str = element if isinstance(self.rows, FloatRows) else f"{element}_codes"
        self.layout = WeightLayout.of(spec)
        self.row_bytes = self.rows.row_bytes
        self.unit_bytes = 2 * self.layout.grouped.unit

    def load(
        self, b: GpuBuilder, row: Value, offset: Value, at: int, cache: Cache = "nc"
    ) -> list[Value]:
        return load_words(b, row, offset, at, self.layout.registers_per_block, cache)

    def pair(self, b: GpuBuilder, word: Value) -> list[Value]:
        """The two values (f32) of a register."""
        return b.lanes_of(b.extend(b.from_bits(word, vec(2, self.element))))

    def decode(
        self, b: GpuBuilder, words: Sequence[Value], register: int, zero: Value | None
    ) -> Value:
        minus_zero = None
        if zero is not None:
            minus_zero = b.splat(b.narrow(b.to_float(0 - zero), self.element), 2)
        return b.to_bits(half_register(b, self.layout, words, register, self.element, minus_zero))

    def decode_zeros(
        self, weight: PackedWeight, group: Value | int, columns: Sequence[Value]
    ) -> list[Value]:
        if not self.layout.has_zeros:
            return []
        return [zero for column in columns for zero in weight.zeros(group, column)]

    def column(self, weight: PackedWeight, group: Value | int, column: Value) -> list[Value]:
        return weight.scales(group, column)

    def scaled(
        self,
        b: GpuBuilder,
        total: Value,
        known: Sequence[Value],
        row: Value,
        group: Value,
        before: Value,
    ) -> Value:
        return b.fma(total, known[0], before)

    def finish(
        self,
        b: GpuBuilder,
        total: Value,
        row: Value,
        weight: PackedWeight,
        column: Value,
        bias: Value,
    ) -> Value:
        grouped = self.layout.grouped.groups > 1
        scales = [] if grouped else weight.scales(0, column)
        if isinstance(self.rows, CentredRows):
            scales.append(b.load(row, "f32", self.rows.scale_offset, cache="nc"))
        if not scales:
            return total + bias
        return b.fma(total, product(scales), bias)


assert LANE_CODES * QUARTERS == 32
