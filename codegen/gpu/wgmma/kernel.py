"""The kernel by wgmma: a block computes block_m x block_n of y, K in stages of shared memory.

    rows      global -> shared (cp.async or boxes, swizzled)   -> B, read by the tensor cores
    weights   global -> shared (bulk copies, as they are stored) -> decoded in registers: A

One warpgroup copies, the others multiply; stages go round between them (ring.py). Columns of the
weight are the rows of A, so that what a thread decodes is multiplied with all rows of the block. A
warp decodes the next fragment while the tensor cores work on the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from abqc.codegen.builder import Value, vec
from abqc.runtime.tensor_parameter import TensorParameter

from ..arch import GpuArch
from ..builder import POINTER, WEIGHT, GpuBuilder, kernel
from ..matmul.grid_block import grid_block
from ..matmul.loop_state import LoopState
from ..weights.layout import BLOCKS, TILE_COLUMNS, WARP_LOAD_BYTES
from ..weights.pointers import PackedWeight
from .barriers import prefetch_map, shared_address
from .boxes import BoxCopies, rows_tensor
from .context import WgmmaContext, anew
from .copy import StageCopies
from .fragments import words_of_half
from .instructions import (
    A_REGISTERS,
    Wgmma,
    begin_products,
    commit_products,
    descriptor,
    finished,
    wait_products,
)
from .plan import HALF_BLOCKS, WgmmaPlan
from .producer import CopyState
from .ring import Place, Ring
from .stream_k import exchange_of, stream_arguments
from .tile_loop import Work, first_work, run_warpgroups


class Arithmetic(Protocol):
    """What a strategy does with fragments and accumulators."""

    def instruction(self, rows: int) -> Wgmma:
        """For so many rows of activations."""
        ...

    def prepare(self, context: WgmmaContext) -> None:
        """Load what is needed throughout the K loop."""
        ...

    def group_values(self, context: WgmmaContext, group: Value | int) -> list[Value]:
        """What decoding and the end of a group need of it: the same number for all groups."""
        ...

    def decode(
        self,
        context: WgmmaContext,
        words: Sequence[Value],
        register: int,
        column: int,
        values: Sequence[Value],
    ) -> Value:
        """A register of A (i32) of a chunk's words, of the thread's column number `column`
        (places() of the context); `values` of the group."""
        ...

    def flush(
        self,
        context: WgmmaContext,
        sums: list[Value],
        totals: list[Value],
        group: Value,
        values: Sequence[Value],
    ) -> list[Value]:
        """The totals (f32) with the accumulators of a group added."""
        ...

    def finish(self, context: WgmmaContext, values: list[Value]) -> None:
        """Store the accumulators, or the totals where there are several groups."""
        ...


@dataclass(frozen=True)
class State(LoopState):
    """What the K loop carries: `here` are values of the group at hand, `ahead` those of the next
    one. `left`: units up to the end of the group."""

    sums: list[Value]
    totals: list[Value]
    here: list[Value]
    ahead: list[Value]
    group: list[Value]
    left: list[Value]


def emit_wgmma_kernel(
    module: Any, arch: GpuArch, name: str, plan: WgmmaPlan, arithmetic: Arithmetic
) -> None:
    """Add the kernel (q, w, bias, y or workspace, m, n) of docs/gpu.md to `module`; where blocks
    share tiles, (q, w, bias, y, m, n, workspace, number of the first counter, counters)."""
    shares = stream_arguments(plan)
    arguments: list[str | TensorParameter] = [POINTER, WEIGHT, WEIGHT, POINTER, "i32", "i32"]
    arguments += shares
    if plan.schedule.boxes:
        arguments.append(rows_tensor(plan))
    with kernel(
        module,
        arch,
        name,
        arguments,
        threads=plan.schedule.threads,
        shared=plan.shared_bytes,
        registers=plan.launch_registers,
    ) as (b, block, rows, packed, bias, target, m, n, *more):
        shared, tensor = more[: len(shares)], more[len(shares) :]
        for each in tensor:
            with b.when(b.thread == 0):
                prefetch_map(b, each)
        ring = Ring(b, plan, shared_address(b))
        ring.initialize()
        first = first_work(b, plan, block, m, n)
        here = _context(b, plan, first.tile, rows, packed, bias, target, m, n)
        begin, end = (turn * plan.stage_tile_bytes for turn in _turns(here, first))
        here.weight.prefetch(here.first_tile, plan.block_tiles, begin, end)
        b.wait()

        def context(tile: Value) -> WgmmaContext:
            # m and n anew: what follows from them, kept from tile to tile, takes registers.
            return _context(b, plan, tile, rows, packed, bias, target, anew(b, m), anew(b, n))

        def copy(work: Work, state: CopyState) -> CopyState:
            here = context(work.tile)
            copies = BoxCopies(ring, here, *tensor) if tensor else StageCopies(ring, here)
            return copies.run(*_turns(here, work), state)

        def multiply(work: Work, place: Place) -> Place:
            here = context(work.tile)
            values, after = _Products(here, arithmetic, ring).run(*_turns(here, work), place)
            exchange = exchange_of(b, plan, block, shared)
            work.finish(exchange, values, lambda sums: arithmetic.finish(here.again(), sums))
            return after

        run_warpgroups(ring, block, m, n, copy, multiply)


def _context(
    b: GpuBuilder,
    plan: WgmmaPlan,
    block: Value,
    rows: Value,
    packed: Value,
    bias: Value,
    target: Value,
    m: Value,
    n: Value,
) -> WgmmaContext:
    """The place of a block, which copying and multiplying warps find for themselves."""
    s = plan.schedule
    row, column, split = grid_block(b, block, s, plan.group_m, m, n)
    return WgmmaContext(
        b,
        plan,
        target,
        m,
        n,
        first_row=row * s.block_m,
        first_tile=column * (s.block_n // TILE_COLUMNS),
        split=split,
        rows=rows,
        weight=PackedWeight(b, plan.weights, packed, n),
        bias=bias,
    )


def _turns(context: WgmmaContext, work: Work) -> tuple[Value, Value]:
    """The turns of the K loop that are this split's, or this block's."""
    b, plan = context.b, context.plan
    if work.part is not None:
        return work.part.begin, work.part.end
    total = b.const(plan.iterations, "i32")
    if plan.schedule.split == 1:
        return b.const(0, "i32"), total
    begin = b.index(context.split) * plan.split_iterations
    return begin, b.min(begin + plan.split_iterations, total)


class _Products:
    """The K loop of a warpgroup that multiplies."""

    def __init__(self, context: WgmmaContext, arithmetic: Arithmetic, ring: Ring) -> None:
        self.context, self.b, self.plan = context, context.b, context.plan
        self.arithmetic, self.ring = arithmetic, ring
        self.instruction = arithmetic.instruction(self.plan.schedule.block_m)
        tile = context.block_tile * self.plan.stage_tile_bytes
        self._words = tile + self.b.lane * 16 + self.plan.rows_bytes

    def run(self, begin: Value, end: Value, place: Place) -> tuple[list[Value], Place]:
        """All turns of this block's split: accumulators, or totals where there are groups; and the
        next tile's first stage."""
        b, plan = self.b, self.plan
        self.arithmetic.prepare(self.context)
        state = self._initial_state(begin)
        with b.loop(begin, end, carry=[*place.values, *state.values]) as loop:
            stage, phase, *values = loop.args
            at = self.ring.place([stage, phase])
            self.ring.full.wait(at.stage, at.phase)
            state = self._stage(state.with_values(values), at)
            b.warp_barrier()
            with b.when(b.lane == 0):
                self.ring.empty.arrive(at.stage)
            loop.carry(*self.ring.next(at).values, *state.values)
        stage, phase, *values = loop.results
        state = self._last_flush(state.with_values(values))
        return state.totals if plan.grouped else state.sums, self.ring.place([stage, phase])

    def _stage(self, state: State, at: Place) -> State:
        """Multiply what is in a stage; all products are finished then."""
        plan = self.plan
        offset = self.ring.offset(at)
        rows = descriptor(self.b, self.ring.base + offset, plan.atom_bytes)
        per_chunk = plan.weights.chunk_units
        for chunk in range(plan.stage_chunks):
            words = self._chunk_words(offset, chunk)
            for inside in range(per_chunk):
                unit = chunk * per_chunk + inside
                state = replace(state, sums=self._unit(state, rows, words, unit, inside))
                last = unit == plan.stage_units - 1
                if last or plan.flush(unit) != "never":
                    state = replace(state, sums=finished(self.b, state.sums))
                state = self._end_of_unit(state, unit)
        return state

    def _chunk_words(self, stage: Value, chunk: int) -> list[Value]:
        """This lane's words of a chunk of its warp's tile."""
        b, layout = self.b, self.plan.weights
        base = b.at(b.shared, self._words + stage)
        words: list[Value] = []
        for load in range(layout.chunk_loads):
            at = chunk * layout.chunk_bytes + load * WARP_LOAD_BYTES
            words += b.lanes_of(b.load(base, vec(4, "i32"), at))
        if self.plan.halves == 1:
            words = words_of_half(b, layout, words, self.context.odd)
        return words

    def _unit(
        self, state: State, rows: Value, words: list[Value], unit: int, in_chunk: int
    ) -> list[Value]:
        """The accumulators after unit `unit` of a stage; its last products are under way."""
        b, plan, sums = self.b, self.plan, list(state.sums)
        count = plan.half_sums
        for step in range(plan.k_steps):
            offset = plan.step_offset(unit * plan.k_steps + step)
            a = [
                self._fragment(words, in_chunk, step, half, state.here)
                for half in range(plan.halves)
            ]
            adds = self._adds(state, unit) if step == 0 else True
            flat = begin_products(b, [*sums, *(register for half in a for register in half)])
            sums, registers = flat[: plan.accumulators], flat[plan.accumulators :]
            for half in range(plan.halves):
                own = slice(half * count, (half + 1) * count)
                of_half = registers[half * A_REGISTERS : (half + 1) * A_REGISTERS]
                at = rows + (offset >> 4)
                sums[own] = self.instruction.emit(b, of_half, at, sums[own], adds)
            commit_products(b)
            wait_products(b, 1)
        return sums

    def _fragment(
        self, words: list[Value], in_chunk: int, step: int, half: int, values: list[Value]
    ) -> list[Value]:
        """A's registers of a K step: of two blocks of columns, then the same further along K."""
        per_block = self.plan.weights.registers_per_block
        per_step = per_block // self.plan.k_steps
        first = in_chunk * BLOCKS + half * HALF_BLOCKS
        return [
            self.arithmetic.decode(
                self.context,
                words,
                (first + i) * per_block + step * per_step + along,
                half * 2 + i,
                values,
            )
            for along in range(per_step)
            for i in range(HALF_BLOCKS)
        ]

    # Groups

    def _adds(self, state: State, unit: int) -> Value | bool:
        """Whether a unit adds to the accumulators, and does not begin a group."""
        plan = self.plan
        if not plan.grouped:
            return True
        before = plan.stage_units - 1 if unit == 0 else unit - 1
        kind = plan.flush(before)
        if kind == "never":
            return True
        return False if kind == "always" else state.left[0] != plan.group_units

    def _initial_state(self, begin: Value) -> State:
        b, plan, arithmetic = self.b, self.plan, self.arithmetic
        group: list[Value] = []
        left: list[Value] = []
        here, ahead = arithmetic.group_values(self.context, 0), []
        if plan.grouped:
            group = [b.index(self.context.split) * plan.split_groups]
            if plan.schedule.stream_k:
                group = [begin * plan.stage_units // plan.group_units]
            if any(plan.flush(unit) == "sometimes" for unit in range(plan.stage_units)):
                left = [b.const(plan.group_units, "i32")]
            here = arithmetic.group_values(self.context, group[0])
            ahead = self._values_of(group[0] + 1)
        zero = b.const(0, self.instruction.accumulator)
        totals = [b.const(0.0, "f32")] * (plan.accumulators if plan.grouped else 0)
        return State([zero] * plan.accumulators, totals, here, ahead, group, left)

    def _values_of(self, group: Value) -> list[Value]:
        """Those of a group, or of the last one."""
        last = self.plan.weights.grouped.groups - 1
        return self.arithmetic.group_values(self.context, self.b.min(group, last))

    def _end_of_unit(self, state: State, unit: int) -> State:
        """Flush after a unit of a stage if its group ends there."""
        kind = self.plan.flush(unit)
        if kind == "never":
            return state
        if kind == "always":
            return self._flushed(state)
        left = state.left[0] - self.plan.flush_step
        return self._flushed_if(left == 0, replace(state, left=[left]))

    def _flushed_if(self, condition: Value, state: State) -> State:
        """Sums stay as they are: they are overwritten by what begins a group."""
        changing = replace(state, sums=[])
        types = [value.type for value in changing.values]
        values = self.b.either(
            condition,
            types,
            lambda: replace(self._flushed(state), sums=[]).values,
            lambda: changing.values,
        )
        return replace(changing.with_values(values), sums=state.sums)

    def _flushed(self, state: State) -> State:
        """The state at the beginning of the next group."""
        b, plan = self.b, self.plan
        (group,) = state.group
        totals = self.arithmetic.flush(self.context, state.sums, state.totals, group, state.here)
        following = group + 1
        ahead = self._values_of(following + 1)
        left = [b.const(plan.group_units, "i32") for _ in state.left]
        return State(state.sums, totals, state.ahead, ahead, [following], left)

    def _last_flush(self, state: State) -> State:
        """Flush a group that ends with K in the middle of a stage."""
        if not self.plan.ends_inside:
            return state
        if self.plan.schedule.split == 1:
            return self._flushed(state)
        return self._flushed_if(state.left[0] != self.plan.group_units, state)
