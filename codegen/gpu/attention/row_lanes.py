"""How lanes of a warp share a row of keys or values, and how they add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..arch import WARP
from ..builder import GpuBuilder
from .stored_rows import StoredRows

THREADS = 128
WARPS = THREADS // WARP
FEWEST_LANES = 8  # 128 bytes of a row of f32 at a time
RESIDENT = 64  # registers for what a lane keeps of all rows: queries, or sums
LOADED = 32  # registers that one turn's loads fill: 8 loads of 16 bytes
MOST_SCORES = 32  # of a lane in a turn
MOST_ELEMENTS = 64  # decoded by a lane in a turn
MOST_KEYS = 256  # of a block in a turn; a power of two


@dataclass(frozen=True)
class RowLanes:
    """`lanes` neighbours have a row each; `steps` chunks of it each, `lanes` chunks apart, all of
    them for `rows` rows of queries."""

    stored: StoredRows
    rows: int

    @property
    def lanes(self) -> int:
        wanted = -(-self.rows * self.stored.columns // RESIDENT)
        return min(
            _power_of_two(max(FEWEST_LANES, wanted)), _power_of_two(self.stored.chunks), WARP
        )

    @property
    def steps(self) -> int:
        return -(-self.stored.chunks // self.lanes)

    @property
    def columns(self) -> int:
        """Of a lane."""
        return self.steps * self.stored.width

    @property
    def groups(self) -> int:
        """Rows that a block reads at once."""
        return THREADS // self.lanes

    @property
    def unroll(self) -> int:
        """Rows of a group in a turn, a power of two: whose loads are under way at once."""
        wanted = LOADED // (self.steps * self.stored.registers)
        most = min(
            wanted,
            MOST_SCORES // self.rows,
            MOST_KEYS // self.groups,
            MOST_ELEMENTS // self.columns,
        )
        return 1 << (max(1, most).bit_length() - 1)

    @property
    def turn(self) -> int:
        """Rows of a block in a turn."""
        return self.groups * self.unroll

    def at(self, lane: Value) -> list[Value]:
        """The first columns of the chunks of `lane`, of 0 .. lanes."""
        width = self.stored.width
        return [lane * width + step * self.lanes * width for step in range(self.steps)]

    def load(self, b: GpuBuilder, row: Value, at: Sequence[Value]) -> list[Value]:
        return [word for column in at for word in self.stored.load(b, row, column)]

    def decode(self, b: GpuBuilder, loaded: Sequence[Value], at: Sequence[Value]) -> list[Value]:
        each = len(loaded) // self.steps
        parts = [loaded[i * each : (i + 1) * each] for i in range(self.steps)]
        return [
            value
            for part, column in zip(parts, at, strict=True)
            for value in self.stored.decode(b, part, column)
        ]


@dataclass(frozen=True)
class Spread:
    """What is left of sums over lanes: a lane has `values`, from number `first` (i32) on of those
    that there were."""

    values: list[Value]
    first: Value


def spread_sums(b: GpuBuilder, values: Sequence[Value], *, inner: int, outer: int) -> Spread:
    """The sums of each of `values` over the lanes that differ in bits `inner` .. `outer` (powers of
    two) of their numbers. A step halves the values where their number is even: each of two lanes
    adds up half of them. Lanes that have the same numbers have the same sums."""
    values, first = list(values), b.const(0, "i32")
    distance = outer // 2
    while distance >= inner:
        half = len(values) // 2
        if len(values) % 2:
            values = [value + b.exchange(value, "bfly", distance) for value in values]
        else:
            upper = (b.lane & distance) != 0
            pairs = list(zip(values[:half], values[half:], strict=True))
            given = [b.exchange(b.select(upper, x, y), "bfly", distance) for x, y in pairs]
            values = [
                b.select(upper, y, x) + other for (x, y), other in zip(pairs, given, strict=True)
            ]
            first = first + b.select(upper, b.const(half, "i32"), 0)
        distance //= 2
    return Spread(values, first)


def _power_of_two(value: int) -> int:
    """The smallest that is not less."""
    return 1 << (value - 1).bit_length()
