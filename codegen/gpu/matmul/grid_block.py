"""Which part of a product a block of the grid has; all kernels of tiles decode it here."""

from __future__ import annotations

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from .block_order import place
from .schedule import Schedule


def grid_block(
    b: GpuBuilder, block: Value, schedule: Schedule, group_m: int, m: Value, n: Value
) -> tuple[Value, Value, Value]:
    """Row and column, in blocks of the schedule, and the number of the split (i32); splits have
    their numbers one after another."""
    blocks_m, blocks_n = b.ceil_div(m, schedule.block_m), b.ceil_div(n, schedule.block_n)
    split = b.const(0, "i32")
    if schedule.grid_split > 1:
        in_split = blocks_m * blocks_n
        split, block = block // in_split, block % in_split
    row, column = place(block, blocks_m, blocks_n, group_m, b.min)
    return row, column, split
