"""What the warpgroups of a block do, tile after tile of the output.

Blocks that stay do several tiles: as many blocks as run at once take them in turns, so that warps
that copy are already at the next tile while the others store the last one. They may share tiles
along K (stream_k.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from .barriers import set_registers
from .context import anew
from .producer import CopyState, complete_all, first_state, is_copying, those_that_copy
from .ring import Place, Ring, StagedPlan
from .stream_k import Exchange, Part, Shares


@dataclass(frozen=True)
class Work:
    """A tile, or part `number` of those that a block has in `shares`."""

    b: GpuBuilder
    number: Value
    shares: Shares | None = None

    @cached_property
    def part(self) -> Part | None:
        """None: all of the tile, or of its split."""
        return None if self.shares is None else self.shares.part(self.number)

    @property
    def tile(self) -> Value:
        return self.number if self.part is None else self.part.tile

    def finish(
        self,
        exchange: Exchange | None,
        sums: Sequence[Value],
        finish: Callable[[list[Value]], None],
    ) -> None:
        """Have `finish` store a tile whose sums are complete; others are given away."""
        if self.shares is None or exchange is None:
            finish(list(sums))
            return
        # Computed anew: from before the K loop it would be kept in registers.
        part = self.shares.again().part(anew(self.b, self.number))
        with self.b.when(part.owned == 0):
            exchange.give(sums)
        with self.b.when(part.owned):
            finish(exchange.collect(part.first, sums))


def first_work(b: GpuBuilder, plan: StagedPlan, block: Value, m: Value, n: Value) -> Work:
    """What a block begins with."""
    if not plan.schedule.stream_k:
        return Work(b, block)
    return Work(b, b.const(0, "i32"), Shares(b, plan, block, m, n))


def each_tile(
    b: GpuBuilder,
    plan: StagedPlan,
    block: Value,
    m: Value,
    n: Value,
    carry: Sequence[Value],
    body: Callable[[Work, list[Value]], Sequence[Value]],
) -> list[Value]:
    """Emit `body` for the tiles of this block, with values that it takes and returns: what the last
    one returns. A block that does not stay has one tile, whose number is its own."""
    schedule = plan.schedule
    if not schedule.persistent:
        return list(body(Work(b, anew(b, block)), list(carry)))
    shares = Shares(b, plan, block, m, n) if schedule.stream_k else None
    if shares is not None:
        bounds = b.const(0, "i32"), shares.count, 1
    else:
        tiles = b.ceil_div(m, schedule.block_m) * b.ceil_div(n, schedule.block_n)
        bounds = block, tiles, schedule.persistent
    with b.loop(*bounds, carry=carry) as loop:
        work = Work(b, loop.i, shares and shares.again())
        loop.carry(*body(work, list(loop.args)))
    return loop.results


def run_warpgroups(
    ring: Ring,
    block: Value,
    m: Value,
    n: Value,
    copy: Callable[[Work, CopyState], CopyState],
    multiply: Callable[[Work, Place], Place],
) -> None:
    """The end of a kernel: one warpgroup copies the tiles' stages, the others multiply them. Both
    functions take a tile and where they are in the ring, and return where they are then."""
    b, plan = ring.b, ring.plan
    copying, multiplying = plan.role_registers
    copies = is_copying(b, plan)

    def copy_tile(work: Work, values: list[Value]) -> list[Value]:
        return copy(work, CopyState.of(ring, values)).values

    def multiply_tile(work: Work, values: list[Value]) -> list[Value]:
        return multiply(work, ring.place(values)).values

    with b.when(copies):
        set_registers(b, copying, more=False)
        with those_that_copy(b, plan):
            state = each_tile(b, plan, block, m, n, first_state(ring).values, copy_tile)
            complete_all(ring, CopyState.of(ring, state))
    with b.when(copies == 0):
        set_registers(b, multiplying, more=True)
        each_tile(b, plan, block, m, n, ring.first().values, multiply_tile)
