"""How the lanes of a warp share the products of 32 columns (a tile) and a few rows.

While weights are multiplied, lane l has columns c, c + 8, c + 16, c + 24 with c = l / 4, and of
each unit of K the quarter l % 4 (weights/layout.py).

    DotLanes   a lane multiplies its own quarter, for all rows, by dp4a or f32 multiply-adds; before
               sums are scaled they are added over quarters and transposed: one column a lane
    MmaLanes   one `mma.sync` for 16 columns and up to 8 rows: the weights are its A operand, whose
               fragment is that of two blocks of B side by side; rows are B. What is beside the
               first `m` rows is zeros (staging.py), or without `cp.async` the last one again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from abqc.codegen.builder import Value

from ..atoms import MmaStep
from ..builder import GpuBuilder
from ..weights.layout import BLOCK_COLUMNS, BLOCKS, TILE_COLUMNS
from ..weights.pointers import PackedWeight
from .values import QUARTERS, HalfValues, Int8Values, RowValues


@dataclass(frozen=True)
class RowPointers:
    """The packed rows of a block: `count` rows from `first` on, of `m`."""

    b: GpuBuilder
    values: RowValues
    base: Value
    first: Value
    m: Value

    @property
    def first_row(self) -> Value:
        """The pointer to the first row."""
        return self.b.at(self.base, self.b.wide(self.first) * self.values.row_bytes)

    def exists(self, row: Value | int) -> Value:
        """Whether there is a row `row` of the block."""
        return self.first + row < self.m

    def at(self, row: Value | int) -> Value:
        """The pointer to row `row` of the block; to the last one for those behind it."""
        b = self.b
        return b.at(self.base, b.wide(b.min(self.first + row, self.m - 1)) * self.values.row_bytes)


class Lanes(Protocol):
    """Who multiplies what. Sums are those of the group at hand, totals of scaled groups."""

    sums: int  # values of a lane
    totals: int
    x_values: int  # of a unit
    x_type: str

    def load(self, offset: Value, at: int) -> list[Value]:
        """Activations of the unit at byte `offset` + `at` of the rows."""
        ...

    def group(self, weight: PackedWeight, group: Value | int, tile: Value) -> list[Value]:
        """What is to know of a group of the tile's columns."""
        ...

    def multiply(
        self, words: Sequence[Value], unit: int, x: Sequence[Value], sums: Sequence[Value],
        group: Sequence[Value],
    ) -> list[Value]:  # fmt: skip
        """Sums after unit `unit` of the chunk of these words."""
        ...

    def whole(self, sums: Sequence[Value]) -> list[Value]:
        """Sums of all terms that the warp has multiplied, at `places`."""
        ...

    def scaled(
        self, sums: Sequence[Value], group: Sequence[Value], number: Value,
        totals: Sequence[Value],
    ) -> list[Value]:  # fmt: skip
        """Totals after group `number`."""
        ...

    def places(self) -> list[tuple[Value | int, Value]]:
        """The row, and the column of the tile, of each total."""
        ...


class DotLanes:
    """Products of a lane's own terms."""

    def __init__(self, values: RowValues, pointers: RowPointers, rows: int) -> None:
        self.b, self.values = pointers.b, values
        self.rows = [pointers.at(row) for row in range(rows)]
        self.sums, self.totals = rows * BLOCKS, rows
        self.per_row = values.layout.registers_per_block
        if isinstance(values, HalfValues):
            self.per_row *= 2
        self.x_values = rows * self.per_row
        self.x_type = values.accumulator

    def load(self, offset: Value, at: int) -> list[Value]:
        words = [w for row in self.rows for w in self.values.load(self.b, row, offset, at)]
        if isinstance(self.values, HalfValues):
            return [value for word in words for value in self.values.pair(self.b, word)]
        return words

    def group(self, weight: PackedWeight, group: Value | int, tile: Value) -> list[Value]:
        first = tile * TILE_COLUMNS
        known = self.values.column(weight, group, first + self._column)
        columns = [first + (self.b.lane // QUARTERS + i * BLOCK_COLUMNS) for i in range(BLOCKS)]
        return self.values.decode_zeros(weight, group, columns) + known

    @property
    def _column(self) -> Value:
        """Of the lane, after `whole`."""
        lane = self.b.lane
        return lane % QUARTERS * BLOCK_COLUMNS + lane // QUARTERS

    @property
    def _zeros(self) -> int:
        """Of the values of a group, how many are for `decode`."""
        has_zeros = self.values.layout.has_zeros and isinstance(self.values, HalfValues)
        return BLOCKS if has_zeros else 0

    def multiply(
        self,
        words: Sequence[Value],
        unit: int,
        x: Sequence[Value],
        sums: Sequence[Value],
        group: Sequence[Value],
    ) -> list[Value]:
        count = self.values.layout.registers_per_block
        result = list(sums)
        for block in range(BLOCKS):
            zero = group[block] if self._zeros else None
            for i in range(count):
                place = (unit * BLOCKS + block) * count + i
                register = self.values.decode(self.b, words, place, zero)
                mine = slice(block, None, BLOCKS)  # of all rows
                result[mine] = self._add(register, i, x, result[mine])
        return result

    def _add(
        self, register: Value, place: int, x: Sequence[Value], sums: Sequence[Value]
    ) -> list[Value]:
        """The sums of all rows after register `place` of a unit and block."""
        b, values, step = self.b, self.values, self.per_row
        if isinstance(values, Int8Values):
            signs = "".join(sign[0] for sign in values.signs)
            return [
                b.dot4(x[row * step + place], register, total, signs=signs)
                for row, total in enumerate(sums)
            ]
        assert isinstance(values, HalfValues)
        result = list(sums)
        for i, weight in enumerate(values.pair(b, register)):
            result = [
                b.fma(x[row * step + 2 * place + i], weight, total)
                for row, total in enumerate(result)
            ]
        return result

    def whole(self, sums: Sequence[Value]) -> list[Value]:
        return [self._transpose(sums[i : i + BLOCKS]) for i in range(0, len(sums), BLOCKS)]

    def _transpose(self, sums: Sequence[Value]) -> Value:
        """Of a lane's sums of four blocks, added over quarters, that of block `lane % 4`."""
        b = self.b
        upper, odd = (b.lane & 2) != 0, (b.lane & 1) != 0
        kept = []
        for low, high in ((0, 2), (1, 3)):
            mine = b.select(upper, sums[high], sums[low])
            other = b.select(upper, sums[low], sums[high])
            kept.append(mine + b.exchange(other, "bfly", 2))
        mine = b.select(odd, kept[1], kept[0])
        other = b.select(odd, kept[0], kept[1])
        return mine + b.exchange(other, "bfly", 1)

    def scaled(
        self,
        sums: Sequence[Value],
        group: Sequence[Value],
        number: Value,
        totals: Sequence[Value],
    ) -> list[Value]:
        known = group[self._zeros :]
        return [
            self.values.scaled(self.b, total, known, row, number, before)
            for total, row, before in zip(sums, self.rows, totals, strict=True)
        ]

    def places(self) -> list[tuple[Value | int, Value]]:
        return [(row, self._column) for row in range(len(self.rows))]


class MmaLanes:
    """Products by tensor cores: the lane gets rows 2 q and 2 q + 1 (q = lane % 4) of 4 columns."""

    sums = totals = 2 * BLOCKS
    x_type = "i32"

    def __init__(self, values: RowValues, pointers: RowPointers, step: MmaStep) -> None:
        self.b, self.values, self.step = pointers.b, values, step
        b = self.b
        self.own = pointers.at(b.lane // QUARTERS)
        self.rows = [pointers.at(b.lane % QUARTERS * 2 + j) for j in range(2)]
        self.x_values = values.layout.registers_per_block

    def load(self, offset: Value, at: int) -> list[Value]:
        return self.values.load(self.b, self.own, offset, at)

    def _columns(self) -> list[Value]:
        """The lane's columns of the tile."""
        return [self.b.lane // QUARTERS + i * BLOCK_COLUMNS for i in range(BLOCKS)]

    def group(self, weight: PackedWeight, group: Value | int, tile: Value) -> list[Value]:
        columns = [tile * TILE_COLUMNS + column for column in self._columns()]
        zeros = self.values.decode_zeros(weight, group, columns)
        return zeros + [v for column in columns for v in self.values.column(weight, group, column)]

    def _split(self, group: Sequence[Value]) -> tuple[list[Value | None], list[list[Value]]]:
        """The zero points for `decode`, and what is known, of each of the four columns."""
        zeros: list[Value | None] = [None] * BLOCKS
        rest = list(group)
        if isinstance(self.values, HalfValues) and self.values.layout.has_zeros:
            zeros, rest = list(rest[:BLOCKS]), rest[BLOCKS:]
        size = len(rest) // BLOCKS
        return zeros, [rest[i * size : (i + 1) * size] for i in range(BLOCKS)]

    def multiply(
        self,
        words: Sequence[Value],
        unit: int,
        x: Sequence[Value],
        sums: Sequence[Value],
        group: Sequence[Value],
    ) -> list[Value]:
        count, depth = self.values.layout.registers_per_block, self.step.atom.b_registers
        zeros = self._split(group)[0]
        result = list(sums)
        for pair in range(BLOCKS // 2):
            blocks = (2 * pair, 2 * pair + 1)
            registers = [
                self.values.decode(self.b, words, (unit * BLOCKS + block) * count + i, zeros[block])
                for i in range(count)
                for block in blocks
            ]
            mine = slice(4 * pair, 4 * pair + 4)
            for i in range(0, count, depth):
                weights = registers[2 * i : 2 * (i + depth)]
                result[mine] = self.step.emit(self.b, weights, x[i : i + depth], result[mine])
        return result

    def whole(self, sums: Sequence[Value]) -> list[Value]:
        return list(sums)

    def scaled(
        self,
        sums: Sequence[Value],
        group: Sequence[Value],
        number: Value,
        totals: Sequence[Value],
    ) -> list[Value]:
        known = self._split(group)[1]
        return [
            self.values.scaled(self.b, total, known[i // 2], self.rows[i % 2], number, totals[i])
            for i, total in enumerate(sums)
        ]

    def places(self) -> list[tuple[Value | int, Value]]:
        first = self.b.lane % QUARTERS * 2
        return [(first + j, column) for column in self._columns() for j in range(2)]
