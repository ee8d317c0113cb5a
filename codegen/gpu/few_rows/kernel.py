"""Kernels for a few rows: packed weights are streamed once, at memory speed.

A warp streams tiles of 32 columns, 512 contiguous bytes a load; the loads of the next turn of the
loop, and those of the scales of its groups, are under way while a turn is multiplied. Activations
come through the L1 cache, which the weights pass by: all blocks of an SM share them. `warps_k`
warps and `split` blocks share the K of a tile; warps are added in shared memory, blocks by a second
kernel, both in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from abqc.codegen.builder import Value
from abqc.dialects.mlir import ir

from ..arch import WARP, GpuArch
from ..atoms import MmaStep, mma_step
from ..builder import POINTER, WEIGHT, GpuBuilder, kernel
from ..matmul.reduction import Finish, Finisher
from ..weights.layout import TILE_COLUMNS
from ..weights.pointers import PackedWeight
from .lanes import DotLanes, Lanes, MmaLanes, RowPointers
from .plan import MMA_ROWS, RowsPlan
from .staging import StagedRows
from .values import HalfValues, Int8Values, RowValues

ARGUMENTS = [POINTER, WEIGHT, WEIGHT, POINTER, "i32", "i32"]
ROW_PITCH = TILE_COLUMNS + 4  # of sums in shared memory: rows 2 apart begin 8 banks apart


def shared_bytes(plan: RowsPlan, unit_bytes: int) -> int:
    """For the rows of warps that multiply by MMAs, and then for the sums of those that share K."""
    schedule = plan.schedule
    warps = schedule.warps_n * schedule.warps_k
    sums = 4 * warps * schedule.block_m * ROW_PITCH if schedule.warps_k > 1 else 0
    staged = schedule.block_m == MMA_ROWS
    return max(sums, warps * StagedRows.shared_bytes(plan, unit_bytes) if staged else 0)


def emit_rows_kernel(
    name: str, values: RowValues, plan: RowsPlan, by_mma: bool, module: Any, arch: GpuArch
) -> None:
    """The matmul, or split matmul, of docs/gpu.md."""
    schedule = plan.schedule
    with kernel(
        module,
        arch,
        name,
        ARGUMENTS,
        threads=schedule.threads,
        shared=shared_bytes(plan, values.unit_bytes),
        registers=plan.registers,
    ) as (b, block, q, w, bias, y, m, n):
        # From one lane, so that ptxas knows that a warp's branches are those of all its lanes.
        warp = b.exchange(b.warp, "idx", 0)
        weight = PackedWeight(b, plan.layout, w, n)
        blocks_m, blocks_n = b.ceil_div(m, schedule.block_m), b.ceil_div(n, schedule.block_n)
        first_row = block // blocks_n % blocks_m * schedule.block_m
        split = block // blocks_n // blocks_m
        tile = block % blocks_n * schedule.warps_n + warp % schedule.warps_n
        pointers = RowPointers(b, values, q, first_row, m)
        lanes = _lanes(arch, values, pointers, schedule.block_m, by_mma)
        # A warp behind the last tile reads that one, and stores nothing.
        known = b.min(tile, weight.tiles - 1)
        if schedule.split == 1:  # else the reduction adds the bias
            b.prefetch_line(b.at(bias, b.wide(b.min(tile * TILE_COLUMNS + b.lane, n - 1)) * 4))
        staged = None
        if by_mma and arch.cp_async:
            mine = warp * StagedRows.shared_bytes(plan, values.unit_bytes)
            staged = StagedRows(b, plan, values, pointers, mine)
        stream = _Stream(b, lanes, staged, values, plan, weight, known)
        sums = stream.run(split * schedule.warps_k + warp // schedule.warps_n)

        def store(row: Value | int, column: Value, value: Value) -> None:
            number = first_row + row
            with b.when(pointers.exists(row) & (column < n)):
                if schedule.split > 1:
                    line = b.wide(split) * b.wide(m) + b.wide(number)
                else:
                    line = b.wide(number)
                    offset = b.load(bias, "f32", b.wide(column) * 4, cache="nc")
                    value = values.finish(b, value, pointers.at(row), weight, column, offset)
                b.store(value, y, (line * b.wide(n) + b.wide(column)) * 4)

        _combine(plan, tile, lanes, pointers, sums, store)


def _lanes(
    arch: GpuArch, values: RowValues, pointers: RowPointers, rows: int, by_mma: bool
) -> Lanes:
    if not by_mma:
        return DotLanes(values, pointers, rows)
    step = rows_mma_step(values, arch)
    assert step is not None, f"{arch.name} has no MMA for {values.name}"
    return MmaLanes(values, pointers, step)


def rows_mma_step(values: RowValues, arch: GpuArch) -> MmaStep | None:
    """The MMA of weights (A) and rows (B); None where it is not native."""
    if isinstance(values, Int8Values):
        rows, weights = values.signs
        return mma_step(arch, "s8", (weights, rows))  # type: ignore[arg-type]
    assert isinstance(values, HalfValues)
    return mma_step(arch, values.element)


def finisher(values: RowValues) -> Finisher:
    """How the sums of a split become y."""

    def of(b: GpuBuilder, q: Value, w: Value, bias: Value, _m: Value, n: Value) -> Finish:
        weight = PackedWeight(b, values.layout, w, n)

        def finish(total: Value, row: Value, column: Value) -> Value:
            offset = b.load(bias, "f32", b.wide(column) * 4, cache="nc")
            pointer = b.at(q, b.wide(row) * values.row_bytes)
            return values.finish(b, total, pointer, weight, column, offset)

        return finish

    return of


def _combine(
    plan: RowsPlan,
    tile: Value,
    lanes: Lanes,
    pointers: RowPointers,
    sums: Sequence[Value],
    store: Callable[[Value | int, Value, Value], None],
) -> None:
    """Add the sums of the warps that share a tile, and `store(row, column, value)` them."""
    b, schedule = pointers.b, plan.schedule
    first = tile * TILE_COLUMNS
    if schedule.warps_k == 1:
        for (row, column), value in zip(lanes.places(), sums, strict=True):
            store(row, first + column, value)
        return
    # [warp of K][warp of N][row][column]; b.warp counts warps of N first.
    warp_words = schedule.block_m * ROW_PITCH
    for (row, column), value in zip(lanes.places(), sums, strict=True):
        at = b.warp * warp_words + (b.index(row) * ROW_PITCH + column)
        b.store(value, b.shared, at * 4)
    b.barrier()
    warp_k, warp_n = b.warp // schedule.warps_n, b.warp % schedule.warps_n
    step = 4 * warp_words * schedule.warps_n
    for row in range(schedule.block_m):
        with b.when((warp_k == row % schedule.warps_k) & pointers.exists(row)):
            at = warp_n * (4 * warp_words) + (b.lane * 4 + row * ROW_PITCH * 4)
            type_ = sums[0].type
            parts = [b.load(b.shared, type_, at + step * w) for w in range(schedule.warps_k)]
            store(row, first + b.lane, _sum(parts))


def _sum(parts: Sequence[Value]) -> Value:
    """In order."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@dataclass(frozen=True)
class _State:
    """What units change: sums [row][block] of the group at hand and, where there are several
    groups, totals [row]."""

    sums: list[Value]
    totals: list[Value]

    def flat(self) -> list[Value]:
        return [*self.sums, *self.totals]

    def like(self, values: Sequence[Value]) -> _State:
        """Values in the order of `flat`."""
        count = len(self.sums)
        return _State(list(values[:count]), list(values[count:]))


@dataclass(frozen=True)
class _Stream:
    """A warp's way through its part of K of one tile."""

    b: GpuBuilder
    lanes: Lanes
    staged: StagedRows | None
    values: RowValues
    plan: RowsPlan
    weight: PackedWeight
    tile: Value

    def run(self, part: Value) -> list[Value]:
        """For each row, the lane's column: the total of the part's groups, or of the one's sum."""
        b, plan = self.b, self.plan
        begin = b.min(part * plan.run, b.const(plan.layout.chunks, "i32"))
        end = b.min(begin + plan.run, b.const(plan.layout.chunks, "i32"))
        totals = [b.const(0.0, "f32")] * self.lanes.totals if plan.grouped else []
        self._prefetch(begin, end)
        state = _State(self._zeros(), totals)
        only = [] if plan.grouped else self.lanes.group(self.weight, 0, self.tile)
        words = self._load_turn(begin, end)
        tables = self._load_groups(begin, end)
        b.wait()
        rows = [] if self.staged is None else [self.staged.start()]
        if self.staged is not None:
            self.staged.copy(begin, end, rows[0])
        count, known = len(state.flat()), len(state.flat()) + len(words)
        kept = known + len(tables)
        with b.loop(begin, end, plan.ahead, [*state.flat(), *words, *tables, *rows]) as loop:
            following = self._load_turn(loop.i + plan.ahead, end)
            following += self._load_groups(loop.i + plan.ahead, end)
            rows = loop.args[kept:]
            # Behind it ptxas moves no load, though it would save registers.
            b.warp_barrier()
            if self.staged is not None:
                self.staged.wait()
                following.append(self.staged.other(rows[0]))
                self.staged.copy(loop.i + plan.ahead, end, following[-1])
            groups = self._groups_of_turn(loop.args[known:kept])
            words = loop.args[count:known]
            made = self._turn(state.like(loop.args[:count]), words, loop.i, end, groups, only, rows)
            loop.carry(*made.flat(), *following)
        if self.staged is not None:
            b.wait_copies(0)
            if plan.schedule.warps_k > 1:
                b.barrier()  # sums take the place of rows
        state = state.like(loop.results[:count])
        return state.totals if plan.grouped else self.lanes.whole(state.sums)

    def _prefetch(self, begin: Value, end: Value) -> None:
        """The first chunks of the part."""
        b, size = self.b, self.plan.layout.chunk_bytes
        with b.when((b.lane == 0) & (begin < end)):
            first = b.at(self.weight.tile(self.tile), b.wide(begin) * size)
            b.prefetch(first, (end - begin) * size)

    def _zeros(self) -> list[Value]:
        return [self.b.const(0, self.values.accumulator)] * self.lanes.sums

    def _load_turn(self, first: Value, end: Value) -> list[Value]:
        """The words of the turn that begins with chunk `first`; zeros where it is `end` or later.

        Chunks of a turn behind the last one of all repeat that one.
        """
        b, plan, layout = self.b, self.plan, self.plan.layout
        codes = self.weight.tile(self.tile)

        def load() -> list[Value]:
            words: list[Value] = []
            pointer = b.at(codes, b.wide(first) * layout.chunk_bytes)
            for number in range(plan.ahead):
                at, offset = pointer, number * layout.chunk_bytes
                if plan.guarded and number:
                    known = b.min(first + number, b.const(layout.chunks - 1, "i32"))
                    at, offset = b.at(codes, b.wide(known) * layout.chunk_bytes), 0
                words += self.weight.chunk_words(at, offset, cache="stream")
            return words

        count = plan.ahead * layout.chunk_words
        zeros = [b.const(0, "i32")] * count
        return b.either(first < end, ["i32"] * count, load, lambda: zeros)

    def _turn(
        self,
        state: _State,
        words: Sequence[Value],
        first: Value,
        end: Value,
        groups: dict[int, list[Value]],
        only: list[Value],
        rows: Sequence[Value],
    ) -> _State:
        """Multiply the chunks of a turn; `rows`: where its rows are staged, if they are."""
        plan, count = self.plan, self.plan.layout.chunk_words
        for number in range(plan.ahead):
            chunk = first + number
            mine = words[number * count : (number + 1) * count]

            def multiply(before: _State, number=number, chunk=chunk, mine=mine) -> _State:  # type: ignore[no-untyped-def]
                return self._multiply(before, mine, number, chunk, groups, only, rows)

            if plan.guarded and number:
                state = self._if(chunk < end, state, multiply)
            else:
                state = multiply(state)
        return state

    def _if(self, condition: Value, state: _State, change: Callable[[_State], _State]) -> _State:
        """`change(state)` where the condition holds."""
        types = [value.type for value in state.flat()]
        values = self.b.either(condition, types, lambda: change(state).flat(), state.flat)
        return state.like(values)

    def _multiply(
        self,
        state: _State,
        words: Sequence[Value],
        number: int,
        chunk: Value,
        groups: dict[int, list[Value]],
        only: list[Value],
        rows: Sequence[Value],
    ) -> _State:
        """Add the products of a chunk; scale the sums of groups that end in it."""
        per_chunk = self.plan.layout.chunk_units
        for unit in range(per_chunk):
            if self.staged is not None:
                x = self.staged.load(rows[0], number, unit)
            else:
                x = self._activations(chunk, unit)
            group = groups.get(number * per_chunk + unit, only)
            sums = self.lanes.multiply(words, unit, x, state.sums, group)
            state = _State(sums, state.totals)
            state = self._end_of_unit(state, number, chunk, unit, group)
        return state

    def _activations(self, chunk: Value, unit: int) -> list[Value]:
        """The lane's values of a unit, of all rows; zeros for units behind the last."""
        b, lanes, layout = self.b, self.lanes, self.plan.layout
        per_chunk, units = layout.chunk_units, layout.grouped.units
        unit_bytes = self.values.unit_bytes
        offset, at = chunk * (per_chunk * unit_bytes), unit * unit_bytes
        if units % per_chunk == 0 or unit < units % per_chunk:
            return lanes.load(offset, at)
        inside = chunk * per_chunk + unit < units
        zeros = [b.const(0, lanes.x_type)] * lanes.x_values
        types = [lanes.x_type] * lanes.x_values
        return b.either(inside, types, lambda: lanes.load(offset, at), lambda: zeros)

    def _load_groups(self, first: Value, end: Value) -> list[Value]:
        """What is stored of the groups of the turn that begins with chunk `first`; those of chunks
        from `end` on are the last one's again."""
        b, loaded = self.b, []

        def load(pointer: Value, type_: ir.Type, offset: Value | int) -> Value:
            loaded.append(b.load(pointer, type_, offset, cache="nc"))
            return loaded[-1]

        weight = self.weight.loading(load)
        for place in self._groups_begin:
            number, unit = divmod(place, self.plan.layout.chunk_units)
            group = self._group(b.min(first + number, end - 1), unit)
            self.lanes.group(weight, group, self.tile)
        return loaded

    def _groups_of_turn(self, loaded: Sequence[Value]) -> dict[int, list[Value]]:
        """What is known of the group of each unit of a turn, from what `_load_groups` gave."""
        left = iter(loaded)
        weight = self.weight.loading(lambda _pointer, _type, _offset: next(left))
        groups: dict[int, list[Value]] = {}
        for place in range(self.plan.ahead * self.plan.layout.chunk_units):
            if place in self._groups_begin:
                known = self.lanes.group(weight, 0, self.tile)
            if self._groups_begin:
                groups[place] = known
        return groups

    @property
    def _groups_begin(self) -> list[int]:
        """Units of a turn that may be of another group than those before; none with one group."""
        plan = self.plan
        units = range(plan.ahead * plan.layout.chunk_units)
        return [place for place in units if plan.grouped and plan.may_begin_group(place)]

    def _group(self, chunk: Value, unit: int) -> Value:
        """The group of a unit of a chunk; the last one for what is behind it."""
        layout = self.plan.layout
        group = (chunk * layout.chunk_units + unit) // layout.grouped.group_units
        if not self.plan.guarded and layout.grouped.units % layout.chunk_units == 0:
            return group
        return self.b.min(group, self.b.const(layout.grouped.groups - 1, "i32"))

    def _end_of_unit(
        self, state: _State, number: int, chunk: Value, unit: int, group: list[Value]
    ) -> _State:
        layout = self.plan.layout
        ends = self.plan.ends_group(number * layout.chunk_units + unit)
        if ends == "never":
            return state

        def flush(state: _State) -> _State:
            sums = self.lanes.whole(state.sums)
            number = self._group(chunk, unit)
            totals = self.lanes.scaled(sums, group, number, state.totals)
            return _State(self._zeros(), totals)

        if ends == "always":
            return flush(state)
        position = chunk * layout.chunk_units + (unit + 1)
        size, units = layout.grouped.group_units, layout.grouped.units
        condition = ((position % size == 0) & (position <= units)) | (position == units)
        return self._if(condition, state, flush)


assert TILE_COLUMNS == WARP
