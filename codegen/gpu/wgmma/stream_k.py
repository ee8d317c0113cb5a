"""Stream-K: blocks that stay share tiles along K, so that no wave of them is partly filled.

    3 blocks, 8 tiles of 4 units of K: 3 tiles are one whole wave; 5 are shared, 20 units

        tile    0            1            2            3            4
        unit    0  1  2  3 | 4  5  6  7 | 8  9 10 11 |12 13 14 15 |16 17 18 19
        block   0  0  0  0   0  0  1  1   1  1  1  1   1  2  2  2   2  2  2  2

Of T tiles and g blocks, T mod g are left over by whole waves. They and one whole wave, where there
is one, are shared: each block has an equal run of their units, one to two tiles long, so that a
tile has no more than two blocks. Fewer tiles than blocks are all shared, and have more. All others
are one block's.

A block *owns* the tile whose last units it has: it adds what those before it have left in the
workspace, in the order of their numbers, to its own sums, and stores the tile. So results depend on
nothing but m and n. It does its last tile first, which it gives away if it does not own it, and the
one that it waits for last: what it waits for was begun long before. It waits for blocks of lower
numbers, and these give away before they wait: no block waits for one that has not begun, as long as
blocks begin in the order of their numbers, however many of them run at once.

(M. Osama, D. Merrill et al.: "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix
Multiplication on the GPU", PPoPP 2023, the hybrid with two tiles.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Value, vec

from ..builder import POINTER, GpuBuilder
from .context import anew
from .ring import StagedPlan

LANES = 4  # sums that a thread moves at once, 16 bytes


@dataclass(frozen=True)
class Part:
    """What a block does of a tile: turns `begin` to `end` of its K. The blocks from number `first`
    up to this one have the turns before; `owned`: the last turn is among its own."""

    tile: Value
    begin: Value
    end: Value
    first: Value
    owned: Value


@dataclass(frozen=True)
class Shares:
    """The parts of tiles that are block number `block`'s, of the blocks of a product."""

    b: GpuBuilder
    plan: StagedPlan
    block: Value
    m: Value
    n: Value

    def again(self) -> Shares:
        """The same, computed anew: what follows from these takes registers in the K loop."""
        b = self.b
        block, m, n = (anew(b, value) for value in (self.block, self.m, self.n))
        return Shares(b, self.plan, block, m, n)

    @property
    def count(self) -> Value:
        """How many parts the block has."""
        run = self._run()
        return run.parts + (run.tiles - run.shared) // run.blocks

    def part(self, number: Value) -> Part:
        """The parts of shared tiles, the last one first; then whole tiles."""
        b, units, turns = self.b, self.plan.units, self.plan.unit_turns
        run = self._run()
        is_shared = number < run.parts
        whole = run.shared + self.block + (number - run.parts) * run.blocks
        # Not a select of a difference: where ptxas jumps over one it spills what it keeps of it.
        tile = b.select(is_shared, run.last, whole + number) - number
        start = tile * units
        begin = b.select(is_shared, b.max(run.begin - start, 0), 0)
        end = b.select(is_shared, b.min(run.end - start, units), units)
        before = ((start + 1) * run.blocks - 1) // b.max(run.units, 1)
        first = b.select(begin == 0, self.block, before)
        last = b.min(end * turns, self.plan.turns)
        return Part(tile, begin * turns, last, first, end == units)

    def _run(self) -> _Run:
        b, s = self.b, self.plan.schedule
        tiles = b.ceil_div(self.m, s.block_m) * b.ceil_div(self.n, s.block_n)
        blocks = b.min(tiles * s.split, s.persistent)
        left = tiles % blocks
        shared = b.select(left == 0, left, left + b.select(tiles > blocks, blocks, 0))
        units = shared * self.plan.units
        begin, end = (units * at // blocks for at in (self.block, self.block + 1))
        last, first = (end - 1) // self.plan.units, begin // self.plan.units
        parts = b.select(shared == 0, shared, last - first + 1)
        return _Run(tiles, blocks, shared, units, begin, end, last, parts)


@dataclass(frozen=True)
class _Run:
    """Tiles and blocks of the product; shared tiles and their units; of these, those of one block,
    from `begin` to `end`, the last tile that it has some of, and of how many it has."""

    tiles: Value
    blocks: Value
    shared: Value
    units: Value
    begin: Value
    end: Value
    last: Value
    parts: Value


@dataclass(frozen=True)
class Exchange:
    """Sums that pass between blocks, by threads that multiply: a thread gets those of the same
    thread of other blocks.

        workspace   [blocks][accumulators / 4][threads][4]     what a block gives away: one part
        flags       [blocks][warps] i32                        1: the warp's sums are there

    Flags are 0 at the start and at the end. Each is written by one warp and read by one.
    """

    b: GpuBuilder
    plan: StagedPlan
    workspace: Value
    flags: Value
    block: Value

    def give(self, sums: Sequence[Value]) -> None:
        """Leave the sums of a part that some other block adds."""
        b = self.b
        slot = self._slot(self.workspace, self.block)
        for at in range(0, len(sums), LANES):
            b.store(b.vector(sums[at : at + LANES]), slot, self._offset(at))
        b.warp_barrier()
        with b.when(b.lane == 0):
            # The workspace is an operand: what was stored there stays before this.
            text = "st.release.gpu.global.b32 [$0], 1;"
            b.asm(text, "l,l,~{memory}", [], self._flag(self.block), self.workspace, effects=True)

    def collect(self, first: Value, sums: Sequence[Value]) -> list[Value]:
        """The sums with those that the blocks from `first` up to this one give away, in order."""
        b = self.b
        type_ = vec(LANES, sums[0].type)
        with b.loop(first, self.block, carry=sums) as loop:
            slot = self._slot(self._wait(loop.i), loop.i)
            made: list[Value] = []
            for at in range(0, len(sums), LANES):
                given = b.lanes_of(b.load(slot, type_, self._offset(at)))
                own = loop.args[at : at + LANES]
                made += [a + c for a, c in zip(own, given, strict=True)]
            loop.carry(*made)
        return loop.results

    def _wait(self, giver: Value) -> Value:
        """Wait until this warp's sums of a block are there, and reset the flag: the workspace."""
        b, flag = self.b, self._flag(giver)
        text = """{
            .reg .pred given;
            .reg .b32 flag;
            again_${:uid}:
            ld.acquire.gpu.global.b32 flag, [$1];
            setp.ne.s32 given, flag, 0;
            @!given bra again_${:uid};
            mov.b64 $0, $2;
            }"""
        constraints = "=l,l,l,~{memory}"
        (workspace,) = b.asm(text, constraints, [POINTER], flag, self.workspace, effects=True)
        b.warp_barrier()
        with b.when(b.lane == 0):
            b.store(b.const(0, "i32"), flag)
        return workspace

    def _flag(self, block: Value) -> Value:
        assert self.plan.stream is not None
        return self.b.at(self.flags, (block * self.plan.stream.flags + self.b.warp) * 4)

    def _slot(self, workspace: Value, block: Value) -> Value:
        """This thread's sums in the slot of a block."""
        b = self.b
        assert self.plan.stream is not None
        slot = b.at(workspace, b.wide(block) * self.plan.stream.slot_bytes)
        return b.at(slot, b.thread * (4 * LANES))

    def _offset(self, at: int) -> int:
        """Of sums number `at` and following, behind the thread's first ones."""
        return 4 * at * self.plan.consumer_threads


def stream_arguments(plan: StagedPlan) -> list[str]:
    """Further arguments of a kernel whose blocks share tiles: workspace, number of the first
    counter, counters."""
    return [] if plan.stream is None else [POINTER, "i32", POINTER]


def exchange_of(
    b: GpuBuilder, plan: StagedPlan, block: Value, arguments: Sequence[Value]
) -> Exchange | None:
    """Of these further arguments; None where there are none."""
    if not arguments:
        return None
    workspace, first, counters = arguments
    return Exchange(b, plan, workspace, b.at(counters, b.wide(first) * 4), anew(b, block))
