"""Where a thread of a tile kernel is: its rows, columns and the operands they belong to."""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from ..weights.layout import BLOCK_COLUMNS, TILE_COLUMNS
from ..weights.pointers import PackedWeight
from .plan import MMA_ROWS, TilePlan


@dataclass(frozen=True)
class TileContext:
    """One block's place in the grid and its operands.

    Accumulators are those of m16n8 MMAs: number ((row block * column blocks) + column block) * 4 +
    half * 2 + j is at row `row(2 * row block + half)` and column `column(column block)` + j.
    """

    b: GpuBuilder
    plan: TilePlan
    rows: Value  # pointer to the packed activations
    weight: PackedWeight
    bias: Value
    target: Value  # y, or the workspace of a split
    m: Value
    n: Value
    first_row: Value  # of the block
    first_tile: Value  # of the block, in tiles of the weight
    split: Value  # the number of the split

    @property
    def warp_m(self) -> Value:
        return self.b.warp % self.plan.schedule.warps_m

    @property
    def warp_n(self) -> Value:
        return self.b.warp // self.plan.schedule.warps_m

    @property
    def row_count(self) -> int:
        """Rows of which this thread holds accumulators."""
        return 2 * self.plan.row_blocks

    def row(self, i: int) -> Value:
        """The thread's i-th row, 8 below the one before; it may be beyond the last."""
        warp = self.warp_m * (self.plan.row_blocks * MMA_ROWS)
        return self.first_row + warp + (self.b.lane >> 2) + 8 * i

    def row_pointer(self, i: int) -> Value:
        """The packed row of `row(i)`, or the last one."""
        row = self.b.min(self.row(i), self.m - 1)
        return self.b.at(self.rows, self.b.wide(row) * self.plan.row_bytes)

    def tile(self, column_block: int) -> Value:
        """The tile of the weight that a block of columns is in; it may be beyond the last."""
        per_tile = TILE_COLUMNS // BLOCK_COLUMNS
        return self.first_tile + self.warp_n * self.plan.warp_tiles + column_block // per_tile

    def column(self, column_block: int) -> Value:
        """The first of the thread's two columns in a block; it may be beyond the last."""
        return self.tile(column_block) * TILE_COLUMNS + self._inside(column_block)

    def stored_column(self, column_block: int) -> Value:
        """`column`, or where that is beyond the weight, one of its last tile."""
        tile = self.b.min(self.tile(column_block), self.weight.tiles - 1)
        return tile * TILE_COLUMNS + self._inside(column_block)

    def fragment_column(self, column_block: int) -> Value:
        """As `stored_column`, of the one column whose codes this thread decodes."""
        tile = self.b.min(self.tile(column_block), self.weight.tiles - 1)
        per_tile = TILE_COLUMNS // BLOCK_COLUMNS
        inside = (self.b.lane >> 2) + column_block % per_tile * BLOCK_COLUMNS
        return tile * TILE_COLUMNS + inside

    def _inside(self, column_block: int) -> Value:
        per_tile = TILE_COLUMNS // BLOCK_COLUMNS
        return (self.b.lane & 3) * 2 + column_block % per_tile * BLOCK_COLUMNS

    def accumulator(self, row: int, column_block: int, j: int) -> int:
        """The number of an accumulator of the thread's row `row`."""
        block = row // 2 * self.plan.column_blocks + column_block
        return block * 4 + row % 2 * 2 + j
