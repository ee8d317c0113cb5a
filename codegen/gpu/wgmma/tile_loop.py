"""What the warpgroups of a block do, tile after tile of the output.

Blocks that stay do several tiles: as many blocks as run at once take them in turns, so that warps
that copy are already at the next tile while the others store the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from ..matmul.schedule import Schedule
from .barriers import set_registers
from .context import anew
from .producer import CopyState, complete_all, first_state, is_copying, those_that_copy
from .ring import Place, Ring


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


def run_warpgroups(
    ring: Ring,
    block: Value,
    m: Value,
    n: Value,
    copy: Callable[[Value, CopyState], CopyState],
    multiply: Callable[[Value, Place], Place],
) -> None:
    """The end of a kernel: one warpgroup copies the tiles' stages, the others multiply them. Both
    functions take a tile's number and where they are in the ring, and return where they are then.
    """
    b, schedule = ring.b, ring.plan.schedule
    copying, multiplying = ring.plan.role_registers
    copies = is_copying(b, ring.plan)

    def copy_tile(tile: Value, values: list[Value]) -> list[Value]:
        return copy(tile, CopyState.of(ring, values)).values

    def multiply_tile(tile: Value, values: list[Value]) -> list[Value]:
        return multiply(tile, ring.place(values)).values

    with b.when(copies):
        set_registers(b, copying, more=False)
        with those_that_copy(b, ring.plan):
            state = each_tile(b, schedule, block, m, n, first_state(ring).values, copy_tile)
            complete_all(ring, CopyState.of(ring, state))
    with b.when(copies == 0):
        set_registers(b, multiplying, more=True)
        each_tile(b, schedule, block, m, n, ring.first().values, multiply_tile)
