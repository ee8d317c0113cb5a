"""Kernels of the strategy `planes` by wgmma b1: y or, of a split, its sums (kernel.py).

    rows      global -> shared (cp.async)      -> B, read by the tensor cores
    weights   global -> shared (bulk copies)   -> A, 16 bytes a lane as they are stored

One warpgroup copies, the others multiply. Pairs of planes are added up by Horner's rule with signs
(signed_runs.py) in one set of accumulators. With one group, the last run of a stage is added to
what the stages before have left; with several, their accumulators are scaled and added as floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from abqc.codegen.builder import Value, vec

from ..arch import GpuArch
from ..builder import POINTER, WEIGHT, kernel
from ..matmul.grid_block import grid_block
from ..wgmma.barriers import shared_address
from ..wgmma.context import BlockContext, anew
from ..wgmma.instructions import (
    WARPGROUP_WARPS,
    Wgmma,
    begin_products,
    commit_products,
    finished,
    plain_descriptor,
    wait_products,
)
from ..wgmma.output import store_block, store_sums
from ..wgmma.producer import CopyState
from ..wgmma.ring import Place, Ring
from ..wgmma.stream_k import exchange_of, stream_arguments
from ..wgmma.tile_loop import Work, first_work, run_warpgroups
from .chain import Pair
from .layout import HALVES, TILE_BYTES, TILE_COLUMNS
from .mma import WHOLE
from .operands import Factors, PlaneOperands
from .plan import Segment
from .signed_runs import Run
from .wgmma_copy import PlaneStageCopies
from .wgmma_plan import WgmmaPlanesPlan

Sums = list[Value]


def emit_wgmma_matmul(module: Any, arch: GpuArch, name: str, plan: WgmmaPlanesPlan) -> None:
    """The matmul, or its part of a split; arguments as of wgmma/kernel.py."""
    arguments = [POINTER, WEIGHT, WEIGHT, POINTER, "i32", "i32", *stream_arguments(plan)]
    with kernel(
        module,
        arch,
        name,
        arguments,
        threads=plan.schedule.threads,
        shared=plan.shared_bytes,
        registers=plan.launch_registers,
    ) as (b, block, rows, weight, bias, target, m, n, *shared):
        ring = Ring(b, plan, shared_address(b))
        ring.initialize()
        first = first_work(b, plan, block, m, n)
        operands = PlaneOperands(plan, b, rows, weight, bias, m, n)
        _prefetch(_context(operands, first.tile, target), first)
        b.wait()

        def context(tile: Value) -> PlanesContext:
            # m and n anew: what follows from them, kept from tile to tile, takes registers.
            operands = PlaneOperands(plan, b, rows, weight, bias, anew(b, m), anew(b, n))
            operands.prepare()
            return _context(operands, tile, target)

        def copy(work: Work, state: CopyState) -> CopyState:
            here = context(work.tile)
            stages = PlaneStageCopies(ring, plan, here.operands, here.first_row, here.first_tile)
            return stages.run(*here.turns(work), state)

        def multiply(work: Work, place: Place) -> Place:
            here = context(work.tile)
            sums, after = _Products(here, ring).run(*here.turns(work), place)
            exchange = exchange_of(b, plan, block, shared)
            work.finish(exchange, sums, lambda values: _finish(here.again(), values))
            return after

        run_warpgroups(ring, block, m, n, copy, multiply)


@dataclass(frozen=True)
class PlanesContext(BlockContext):
    """A block of planes, and its operands."""

    plan: WgmmaPlanesPlan
    operands: PlaneOperands

    def warp_tile(self, half: int) -> Value:
        """The warp's tile in the block, of a half of its warpgroup."""
        return self.b.warp // WARPGROUP_WARPS * (self.plan.halves * WARPGROUP_WARPS) + (
            self.warp + half * WARPGROUP_WARPS
        )

    def column(self, half: int, i: int) -> Value:
        tile = self.first_tile + self.warp_tile(half)
        return tile * TILE_COLUMNS + (self.b.lane >> 2) + i * (TILE_COLUMNS // HALVES)

    def turns(self, work: Work) -> tuple[Value, Value]:
        """The blocks of K that are this split's, or this block's."""
        b, plan = self.b, self.plan
        if work.part is not None:
            return work.part.begin, work.part.end
        total = b.const(plan.k_blocks, "i32")
        if plan.schedule.split == 1:
            return b.const(0, "i32"), total
        begin = self.split * plan.split_blocks
        return begin, b.min(begin + plan.split_blocks, total)


def _context(operands: PlaneOperands, block: Value, target: Value) -> PlanesContext:
    """The place of a block, which copying and multiplying warps find for themselves."""
    b, plan, m, n = operands.b, operands.plan, operands.m, operands.n
    assert isinstance(plan, WgmmaPlanesPlan)
    s = plan.schedule
    row, column, split = grid_block(b, block, s, plan.group_m, m, n)
    first_row, first_tile = row * s.block_m, column * plan.block_tiles
    return PlanesContext(b, plan, target, m, n, first_row, first_tile, split, operands)


def _prefetch(context: PlanesContext, work: Work) -> None:
    """What the block reads first of each tile of columns; a thread has one."""
    b, plan = context.b, context.plan
    begin, end = (turn * plan.tile_stage_bytes for turn in context.turns(work))
    end = b.min(end, b.const(plan.weight.tile_bytes, "i32"))
    with b.when((b.thread < plan.block_tiles) & (begin < end)):
        tile = context.operands.tile(context.first_tile + b.thread)
        b.prefetch(b.at(tile, begin), end - begin)


class _Products:
    """The K loop of a warpgroup that multiplies."""

    def __init__(self, context: PlanesContext, ring: Ring) -> None:
        self.context, self.b, self.plan = context, context.b, context.plan
        self.ring, self.operands = ring, context.operands
        self.instruction = Wgmma(self.plan.schedule.block_m, ("b1", "b1"))
        self.row_zeros: list[Value | int] = []
        if not self.plan.one_group:
            self.row_zeros = [
                self.operands.row_zero(context.row(j, e))
                for j in range(context.row_pairs)
                for e in range(2)
            ]

    def run(self, begin: Value, end: Value, place: Place) -> tuple[Sums, Place]:
        """All blocks of K of this block's split: accumulators as signed runs leave them, or totals
        where there are groups; and the next tile's first stage."""
        b, plan = self.b, self.plan
        element = "i32" if plan.one_group else "f32"
        start = [b.const(0, element)] * plan.accumulators
        with b.loop(begin, end, carry=[*place.values, *start]) as loop:
            stage, phase, *totals = loop.args
            at = self.ring.place([stage, phase])
            self.ring.full.wait(at.stage, at.phase)
            totals = self._stage(loop.i, at, totals)
            b.warp_barrier()
            with b.when(b.lane == 0):
                self.ring.empty.arrive(at.stage)
            loop.carry(*self.ring.next(at).values, *totals)
        stage, phase, *totals = loop.results
        return totals, self.ring.place([stage, phase])

    def _stage(self, k_block: Value, at: Place, totals: Sums) -> Sums:
        """The totals with the products of a stage."""
        plan = self.plan
        offset = self.ring.offset(at)
        if plan.one_group:
            return self._only_group(offset, list(plan.segments()), totals)
        for groups in plan.groups_by_steps:
            for group, segments in groups.items():
                first = k_block * plan.block_groups
                sums = self._runs(offset, segments, plan.sums_of_pairs.runs)
                totals = self._scaled(offset, first + group, group, sums, totals)
        return totals

    # Products of pairs of planes

    def _only_group(self, offset: Value, segments: list[Segment], totals: Sums) -> Sums:
        """All runs, of which the last one is added to the totals at once."""
        *before, last = self.plan.sums_of_pairs.runs
        if before:
            sums = self._runs(offset, segments, before)
            factor = self._factor(last.factor)
            totals = [t + s * factor for t, s in zip(totals, sums, strict=True)]
        return finished(self.b, self._multiply(offset, segments, last.pairs, totals, adds=True))

    def _runs(self, offset: Value, segments: list[Segment], runs: Sequence[Run]) -> Sums:
        """What the runs add up to."""
        b = self.b
        sums = [b.const(0, "i32")] * self.plan.accumulators
        for number, run in enumerate(runs):
            if number:
                factor = self._factor(run.factor)
                sums = [value * factor for value in sums]
            sums = self._multiply(offset, segments, run.pairs, sums, adds=number > 0)
            sums = finished(b, sums)
        return sums

    def _factor(self, factor: int) -> Value | int:
        """Of accumulators. Of a negative constant compilers would make a shift and a subtraction:
        they shall not know it (n is no negative number), and multiply."""
        if factor >= -1:
            return factor
        text = f"{{ .reg .b32 zero; shr.s32 zero, $1, 31; xor.b32 $0, zero, {factor}; }}"
        return self.b.asm(text, "=r,r", ["i32"], self.operands.n)[0]

    def _multiply(
        self,
        offset: Value,
        segments: list[Segment],
        pairs: Sequence[Pair],
        sums: Sums,
        *,
        adds: bool,
    ) -> Sums:
        """Accumulators with the products of pairs of planes; the last ones are under way."""
        b, plan, count = self.b, self.plan, self.plan.half_sums
        rows = plain_descriptor(b, self.ring.base + offset, plan.unit_pitch)
        for number, (segment, pair) in enumerate((s, p) for s in segments for p in pairs):
            plane, row_plane = pair
            piece = 2 * segment.step * plan.row_planes + row_plane
            fragments = [
                register
                for half in range(plan.halves)
                for register in self._fragment(offset, segment, plane, half)
            ]
            flat = begin_products(b, [*sums, *fragments])
            sums, fragments = flat[: plan.accumulators], flat[plan.accumulators :]
            for half in range(plan.halves):
                own = slice(half * count, (half + 1) * count)
                a = fragments[4 * half : 4 * half + 4]
                at = rows + (piece * plan.piece_pitch >> 4)
                sums[own] = self.instruction.emit(b, a, at, sums[own], adds or number > 0)
            commit_products(b)
            wait_products(b, 1)
        return sums

    def _fragment(self, offset: Value, segment: Segment, plane: int, half: int) -> list[Value]:
        """A's registers of a step and plane; of a group that is a part of the step, zeros
        elsewhere."""
        b, plan = self.b, self.plan
        tile = self.context.warp_tile(half) * plan.tile_stage_bytes
        base = b.at(b.shared, offset + plan.weights_offset + tile + b.lane * 16)
        at = (segment.step * plan.weight_planes + plane) * TILE_BYTES
        words = b.lanes_of(b.load(base, vec(4, "i32"), at))
        if segment.unit is None:
            return words
        mask, zero = segment.mask, b.const(0, "i32")
        mine = range(2 * segment.unit, 2 * segment.unit + 2)  # registers of the unit
        masked = words if mask == WHOLE else [word & mask for word in words]
        return [masked[i] if i in mine else zero for i in range(4)]

    # Groups

    def _scaled(self, offset: Value, group: Value, in_stage: int, sums: Sums, totals: Sums) -> Sums:
        """The totals with a group's accumulators, scaled: by 0 where K has no such group."""
        b, plan, context = self.b, self.plan, self.context
        made = list(totals)
        factors = [self._factors(offset, in_stage, half) for half in range(plan.halves)]
        if plan.groups_beyond:
            exists = group < plan.groups
            factors = [
                replace(f, scales=[b.select(exists, scale, 0.0) for scale in f.scales])
                for f in factors
            ]
        for j in range(context.row_pairs):
            for e in range(2):
                row_sum = self._row_sum(offset, in_stage, 8 * j + e)
                zero = self.row_zeros[2 * j + e]
                for half, i in context.places():
                    at = context.accumulator(half, i, j, e)
                    total = sums[at] * plan.sums_of_pairs.scale
                    acc = self.operands.corrected(total, zero, row_sum, factors[half], i)
                    made[at] = b.fma(factors[half].scales[i], b.to_float(acc), made[at])
        return made

    def _factors(self, offset: Value, in_stage: int, half: int) -> Factors:
        """Of the thread's columns in a half, from the stage."""
        b, plan = self.b, self.plan
        tile = self.context.warp_tile(half) * plan.tile_records_bytes
        at = offset + plan.records_offset + tile + in_stage * plan.weight.record_bytes
        return self.operands.factors(b.at(b.shared, at), b.lane >> 2, count=HALVES)

    def _row_sum(self, offset: Value, in_stage: int, down: int) -> Value | None:
        """That of a group and the thread's row `down` rows below its first one."""
        b, plan = self.b, self.plan
        if not plan.rows.has_sums:
            return None
        pitch = 4 * plan.block_groups
        first = b.at(b.shared, offset + plan.row_sums_offset + (b.lane & 3) * (2 * pitch))
        return b.load(first, "i32", down * pitch + 4 * in_stage)


def _finish(context: PlanesContext, sums: Sums) -> None:
    """Store y, or the sums of a split: planes' products (i32) or scaled groups (f32)."""
    b, plan, operands = context.b, context.plan, context.operands
    if plan.one_group:
        sums = [value * plan.sums_of_pairs.scale for value in sums]
    if plan.schedule.grid_split > 1:
        store_sums(context, context.split, sums)
        return
    columns = [context.column(*place) for place in context.places()]
    known = [b.min(column, context.n - 1) for column in columns]
    biases = [b.load(operands.bias, "f32", column * 4, cache="nc") for column in known]
    factors = [_column_factors(operands, column) for column in columns] if plan.one_group else []

    def row_values(j: int, e: int) -> list[Any]:
        row = context.row(j, e)
        at = plan.rows.scale_offset
        scale = b.load(operands.row(row), "f32", at, cache="nc")
        if not plan.one_group:
            return [scale]
        row_sum = operands.row_sum(row, 0) if plan.rows.has_sums else None
        return [scale, operands.row_zero(row) if plan.weight.has_sums else 0, row_sum]

    def element(half: int, i: int, j: int, e: int, of_row: list[Any]) -> Value:
        value, column = sums[context.accumulator(half, i, j, e)], 2 * half + i
        if not plan.one_group:
            return b.fma(of_row[0], value, biases[column])
        scale, zero, row_sum = of_row
        acc = operands.corrected(value, zero, row_sum, factors[column], 0)
        return b.fma(scale * factors[column].scales[0], b.to_float(acc), biases[column])

    store_block(context, 0, row_values, element)


def _column_factors(operands: PlaneOperands, column: Value) -> Factors:
    """Of the only group and a column; those of padding where it is beyond the last one."""
    return operands.factors(operands.records(column // TILE_COLUMNS), column % TILE_COLUMNS)
