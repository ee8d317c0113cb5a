"""Where a thread of a kernel by wgmma is: its columns and rows, and the operands they belong to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from ..matmul.schedule import Schedule
from ..weights.layout import BLOCK_COLUMNS, TILE_COLUMNS
from ..weights.pointers import PackedWeight
from .instructions import WARPGROUP_WARPS
from .plan import HALF_BLOCKS, WgmmaPlan


def anew(b: GpuBuilder, value: Value) -> Value:
    """An i32 of which LLVM does not know that it is the same: what is computed of it is computed
    again, where it would else be kept in registers from before."""
    return b.asm("mov.b32 $0, $1;", "=r,r", ["i32"], value, effects=True)[0]


class ResultPlan(Protocol):
    """The plan of a kernel by wgmma, as far as it says who has which results."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def halves(self) -> int:
        """Instructions that a warpgroup needs for its columns."""
        ...

    @property
    def half_sums(self) -> int:
        """Accumulators of a thread and half."""
        ...


@dataclass(frozen=True)
class BlockContext:
    """One block's place in the grid, as a thread that multiplies sees it.

    Accumulator `accumulator(half, i, j, e)` is at column `column(half, i)` and row `row(j, e)`.
    """

    b: GpuBuilder
    plan: ResultPlan
    target: Value  # y, or the workspace of a split
    m: Value
    n: Value
    first_row: Value  # of the block
    first_tile: Value  # of the block, in tiles of the weight
    split: Value  # the number of the split

    def again(self) -> Self:
        """The same, with addresses that are computed anew: those from before, which LLVM
        would keep, take registers throughout the K loop."""
        return replace(self, first_row=anew(self.b, self.first_row))

    @property
    def warp(self) -> Value:
        """In its warpgroup."""
        return self.b.warp % WARPGROUP_WARPS

    def column(self, half: int, i: int) -> Value:
        """A column; it may be beyond the last."""
        raise NotImplementedError

    def row(self, j: int, e: int) -> Value:
        """A row; it may be beyond the last."""
        return self.first_row + (self.b.lane & 3) * 2 + (8 * j + e)

    @property
    def row_pairs(self) -> int:
        """Values of j of `row`: a thread has two rows of every eight."""
        return self.plan.schedule.block_m // 8

    def accumulator(self, half: int, i: int, j: int, e: int) -> int:
        """The number of an accumulator."""
        return half * self.plan.half_sums + 4 * j + 2 * i + e

    def places(self) -> list[tuple[int, int]]:
        """(half, i) of the thread's columns."""
        return [(half, i) for half in range(self.plan.halves) for i in range(2)]

    def elements(self) -> list[tuple[int, int, int, int]]:
        """(half, i, j, e) of all accumulators."""
        pairs = [(j, e) for j in range(self.row_pairs) for e in range(2)]
        return [(*place, *pair) for place in self.places() for pair in pairs]


@dataclass(frozen=True)
class WgmmaContext(BlockContext):
    """The same with the operands of codes that are decoded in registers."""

    plan: WgmmaPlan
    rows: Value  # pointer to the packed activations
    weight: PackedWeight
    bias: Value

    @property
    def block_tile(self) -> Value:
        """The warp's tile in the block."""
        if self.plan.halves == 2:
            return self.b.warp
        return self.b.warp >> 1

    @property
    def odd(self) -> Value:
        """Where a warpgroup has one half: which one of its tile the warp has."""
        return self.b.warp & 1

    def half(self, half: int) -> Value | int:
        """The number of a half in the warp's tile."""
        return half if self.plan.halves == 2 else self.odd

    def column(self, half: int, i: int) -> Value:
        return self._column(self.first_tile + self.block_tile, half, i)

    def stored_column(self, half: int, i: int) -> Value:
        """`column`, or where that is beyond the weight, one of its last tile."""
        tile = self.b.min(self.first_tile + self.block_tile, self.weight.tiles - 1)
        return self._column(tile, half, i)

    def _column(self, tile: Value, half: int, i: int) -> Value:
        first = tile * TILE_COLUMNS + (self.b.lane >> 2) + BLOCK_COLUMNS * i
        blocks = self.b.index(self.half(half)) * (HALF_BLOCKS * BLOCK_COLUMNS)
        return first + blocks

    def row_pointer(self, j: int, e: int) -> Value:
        """The packed row of `row(j, e)`, or the last one."""
        row = self.b.min(self.row(j, e), self.m - 1)
        return self.b.at(self.rows, self.b.wide(row) * self.plan.row_bytes)
