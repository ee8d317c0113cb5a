"""The tile kernel: a block computes block_m x block_n of y with MMAs, K in stages.

    rows      global -> shared (cp.async, swizzled) -> ldmatrix -> A fragments
    weights   global -> shared (cp.async, as stored) -> 16-byte loads -> decoded into B fragments

Arithmetic (what is decoded, how groups end, what is stored) is the strategy's; see `Arithmetic`.
The scheme of stages is that of CUTLASS's multistage GEMM: one barrier a turn, `stages` - 1 copies
under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from abqc.codegen.builder import Value

from ..arch import GpuArch
from ..atoms import MmaStep
from ..builder import POINTER, WEIGHT, GpuBuilder, kernel
from ..matmul.grid_block import grid_block
from ..matmul.loop_state import LoopState
from ..rolled_loops import keep_rolled, unknown
from ..weights.layout import BLOCKS, TILE_COLUMNS
from ..weights.pointers import PackedWeight
from .context import TileContext
from .copy import StageCopies, StageReads
from .plan import TilePlan


class Arithmetic(Protocol):
    """What a strategy does with fragments and accumulators."""

    def step(self, arch: GpuArch) -> MmaStep:
        """The MMA of 16 rows, 8 columns and 32 bytes of K."""
        ...

    def initial(self, b: GpuBuilder) -> Value:
        """An accumulator at the beginning of a group."""
        ...

    def prepare(self, context: TileContext) -> None:
        """Load what is needed throughout the K loop."""
        ...

    def zeros(self, context: TileContext, group: Value | int) -> list[Value]:
        """What decoding needs of a group: one value for each block of columns, or nothing."""
        ...

    def decode(
        self, b: GpuBuilder, words: Sequence[Value], register: int, zero: Value | None
    ) -> Value:
        """A register of a B fragment (i32) of a chunk's words."""
        ...

    def flush(
        self, context: TileContext, sums: list[Value], totals: list[Value], group: Value
    ) -> list[Value]:
        """The totals (f32) with the accumulators of a group added."""
        ...

    def finish(self, context: TileContext, values: list[Value]) -> None:
        """Store the accumulators, or the totals where there are several groups."""
        ...


@dataclass(frozen=True)
class State(LoopState):
    """What the K loop carries. `left`: units up to the end of the group."""

    sums: list[Value]
    totals: list[Value]
    zeros: list[Value]
    group: list[Value]
    left: list[Value]


def emit_tile_kernel(
    module: Any, arch: GpuArch, name: str, plan: TilePlan, arithmetic: Arithmetic
) -> None:
    """Add the kernel (q, w, bias, y or workspace, m, n) of docs/gpu.md to `module`."""
    arguments = [POINTER, WEIGHT, WEIGHT, POINTER, "i32", "i32"]
    s = plan.schedule
    with kernel(module, arch, name, arguments, threads=s.threads, shared=plan.shared_bytes) as (
        b,
        block,
        rows,
        packed,
        bias,
        target,
        m,
        n,
    ):
        row, column, split = grid_block(b, block, s, plan.group_m, m, n)
        context = TileContext(
            b,
            plan,
            rows,
            PackedWeight(b, plan.weights, packed, n),
            bias,
            target,
            m,
            n,
            first_row=row * s.block_m,
            first_tile=column * (s.block_n // TILE_COLUMNS),
            split=split,
        )
        loop = _TileLoop(context, arithmetic)
        arithmetic.finish(context, loop.run())


class _TileLoop:
    """The K loop of one block."""

    def __init__(self, context: TileContext, arithmetic: Arithmetic) -> None:
        self.context = context
        self.b = context.b
        self.plan = context.plan
        self.arithmetic = arithmetic
        self.step = arithmetic.step(self.b.arch)
        self.copies = StageCopies(
            self.b,
            self.plan,
            context.rows,
            context.weight,
            context.first_row,
            context.first_tile,
            context.m,
        )
        self.reads = StageReads(self.b, self.plan, context.warp_m, context.warp_n)

    def run(self) -> list[Value]:
        """All turns of this block's split: accumulators, or totals where there are groups."""
        b, plan = self.b, self.plan
        begin, end = self._turns()
        bytes_ = plan.stage_tile_bytes
        weight, first_tile = self.context.weight, self.context.first_tile
        weight.prefetch(first_tile, plan.block_tiles, begin * bytes_, end * bytes_)
        b.wait()
        ahead = plan.schedule.stages - 1
        for turn in range(ahead):
            stage = b.const(turn * plan.stage_bytes, "i32")
            self._copy(begin + turn, end, stage, stage)
        self.arithmetic.prepare(self.context)
        state = self._initial_state()
        buffer = b.const(0, "i32")
        with b.loop(begin, end, carry=[buffer, *state.values]) as loop:
            keep_rolled(loop)
            buffer, *values = loop.args
            if b.arch.cp_async:
                b.wait_copies(ahead - 1)
            b.barrier()
            free = self._previous(buffer)
            loaded = self._begin_copy(loop.i + ahead, end, free)
            state = self._stage(state.with_values(values), buffer)
            self._finish_copy(loaded, loop.i + ahead, end, free)
            loop.carry(self._next(buffer), *state.values)
        _, *values = loop.results
        state = self._last_flush(state.with_values(values))
        return state.totals if plan.grouped else state.sums

    def _turns(self) -> tuple[Value, Value]:
        """The turns of the K loop that are this split's."""
        b, plan = self.b, self.plan
        total = b.const(plan.iterations, "i32")
        if plan.schedule.split == 1:
            # Of so few, the loop would have nothing to copy: another one, for no gain.
            few = plan.iterations < plan.schedule.stages
            return b.const(0, "i32"), unknown(total, self.context.n) if few else total
        begin = b.index(self.context.split) * plan.split_iterations
        return begin, b.min(begin + plan.split_iterations, total)

    # Stages

    def _copy(self, turn: Value, end: Value, begin_at: Value, finish_at: Value) -> None:
        loaded = self._begin_copy(turn, end, begin_at)
        self._finish_copy(loaded, turn, end, finish_at)

    def _begin_copy(self, turn: Value, end: Value, stage: Value) -> list[Value]:
        """Start copying a turn's operands, if there is such a turn."""
        b = self.b
        if b.arch.cp_async:
            with b.when(turn < end):
                self.copies.begin(turn, stage)
            b.commit_copies()
            return []
        types = [self.copies.loaded_type] * len(self.copies.pieces)
        return b.either(
            turn < end,
            types,
            lambda: self.copies.begin(turn, stage),
            lambda: [b.const(0, self.copies.loaded_type) for _ in types],
        )

    def _finish_copy(self, loaded: list[Value], turn: Value, end: Value, stage: Value) -> None:
        if loaded:
            with self.b.when(turn < end):
                self.copies.finish(loaded, stage)

    def _next(self, buffer: Value) -> Value:
        """The byte of the buffer after this one."""
        following = buffer + self.plan.stage_bytes
        return self.b.select(following == self.plan.shared_bytes, self.b.const(0, "i32"), following)

    def _previous(self, buffer: Value) -> Value:
        """The byte of the buffer before this one, which all have read."""
        last = self.b.const(self.plan.shared_bytes - self.plan.stage_bytes, "i32")
        return self.b.select(buffer == 0, last, buffer - self.plan.stage_bytes)

    def _stage(self, state: State, buffer: Value) -> State:
        """Multiply what is in a buffer."""
        per_chunk = self.plan.weights.chunk_units
        for chunk in range(self.plan.stage_chunks):
            words = [self.reads.words(buffer, tile, chunk) for tile in range(self.plan.warp_tiles)]
            for unit in range(per_chunk):
                number = chunk * per_chunk + unit
                sums = self._unit(state, buffer, words, number, unit)
                state = self._end_of_unit(replace(state, sums=sums), number)
        return state

    def _unit(
        self, state: State, buffer: Value, words: list[list[Value]], number: int, in_chunk: int
    ) -> list[Value]:
        """The accumulators after unit `number` of a stage."""
        plan, sums = self.plan, list(state.sums)
        per_step = self.step.atom.b_registers
        steps = plan.weights.registers_per_block // per_step
        for step in range(steps):
            a = [
                self.reads.rows(buffer, row_block, number * steps + step)
                for row_block in range(plan.row_blocks)
            ]
            for block in range(plan.column_blocks):
                tile, inside = divmod(block, BLOCKS)
                first = (in_chunk * BLOCKS + inside) * plan.weights.registers_per_block
                zero = state.zeros[block] if state.zeros else None
                fragment = [
                    self.arithmetic.decode(self.b, words[tile], first + step * per_step + i, zero)
                    for i in range(per_step)
                ]
                for row_block in range(plan.row_blocks):
                    at = (row_block * plan.column_blocks + block) * 4
                    sums[at : at + 4] = self.step.emit(
                        self.b, a[row_block], fragment, sums[at : at + 4]
                    )
        return sums

    # Groups

    def _initial_state(self) -> State:
        b, plan = self.b, self.plan
        group: list[Value] = []
        left: list[Value] = []
        if plan.grouped:
            group = [b.index(self.context.split) * plan.split_groups]
            if any(plan.flush(unit) == "sometimes" for unit in range(plan.stage_units)):
                left = [b.const(plan.group_units, "i32")]
        zeros = self.arithmetic.zeros(self.context, group[0] if group else 0)
        totals = [b.const(0.0, "f32")] * (plan.accumulators if plan.grouped else 0)
        return State(self._empty_sums(), totals, zeros, group, left)

    def _empty_sums(self) -> list[Value]:
        return [self.arithmetic.initial(self.b)] * self.plan.accumulators

    def _end_of_unit(self, state: State, number: int) -> State:
        """Flush after a unit of a stage if its group ends there."""
        kind = self.plan.flush(number)
        if kind == "never":
            return state
        if kind == "always":
            return self._flushed(state)
        left = state.left[0] - self.plan.flush_step
        state = replace(state, left=[left])
        return self._flushed_if(left == 0, state)

    def _flushed_if(self, condition: Value, state: State) -> State:
        types = [value.type for value in state.values]
        values = self.b.either(
            condition, types, lambda: self._flushed(state).values, lambda: state.values
        )
        return state.with_values(values)

    def _flushed(self, state: State) -> State:
        """The state at the beginning of the next group."""
        b, plan = self.b, self.plan
        (group,) = state.group
        totals = self.arithmetic.flush(self.context, state.sums, state.totals, group)
        following = group + 1
        zeros: list[Value] = []
        if state.zeros:
            last = plan.weights.grouped.groups - 1
            zeros = self.arithmetic.zeros(self.context, b.min(following, last))
        left = [b.const(plan.group_units, "i32") for _ in state.left]
        return State(self._empty_sums(), totals, zeros, [following], left)

    def _last_flush(self, state: State) -> State:
        """Flush a group that ends with K in the middle of a stage."""
        if not self.plan.ends_inside:
            return state
        if self.plan.schedule.split == 1:
            return self._flushed(state)
        return self._flushed_if(state.left[0] != self.plan.group_units, state)
