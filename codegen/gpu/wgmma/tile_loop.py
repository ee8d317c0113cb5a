"""Blocks that stay: each does several tiles of the output, one after the other.

As many blocks as run at once take tiles in turns, so that warps that copy are already at the next
tile while the others store the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from ..matmul.schedule import Schedule
from .context import anew


def each_tile(
    b: GpuBuilder,
    schedule: Schedule,
    block: Value,
    m: Value,
    n: Value,
    carry: Sequence[Value],
    body: Callable[[Value, list[Value]], Sequence[Value]],
) -> list[Value]:
    """Emit `body` for the numbers of this block's tiles, with values that it takes and returns:
    what the last one returns. A block that does not stay has one tile, whose number is its own."""
    if not schedule.persistent:
        return list(body(anew(b, block), list(carry)))
    tiles = b.ceil_div(m, schedule.block_m) * b.ceil_div(n, schedule.block_n)
    with b.loop(block, tiles, schedule.persistent, carry=carry) as loop:
        loop.carry(*body(loop.i, list(loop.args)))
    return loop.results
