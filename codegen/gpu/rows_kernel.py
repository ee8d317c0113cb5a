"""Kernels for a few rows on CUDA cores: packed weights are streamed once, at memory speed.

A warp streams tiles of 32 columns, 512 contiguous bytes a load; the loads of the next turn of the
loop are under way while a turn is multiplied. Activations are read through the L1 cache, which the
weights pass by: all blocks of an SM share them. `warps_k` warps and `split` blocks share the K of
a tile; warps are added in shared memory, blocks by a second kernel, both in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..builder import Value
from .arch import WARP, GpuArch
from .builder import POINTER, GpuBuilder, kernel
from .rows_plan import RowsPlan
from .rows_products import RowProducts, lane_column, transpose_sums
from .weight_pointers import PackedWeight
from .weights import BLOCKS, TILE_COLUMNS

ARGUMENTS = [POINTER] * 4 + ["i32"] * 2
REDUCE_ARGUMENTS = [POINTER] * 5 + ["i32"] * 2
REDUCE_THREADS = 128


def shared_bytes(plan: RowsPlan) -> int:
    """For the sums of the warps that share K."""
    schedule = plan.schedule
    return 4 * schedule.threads * schedule.block_m if schedule.warps_k > 1 else 0


def emit_rows_kernel(
    name: str, products: RowProducts, plan: RowsPlan, module: Any, arch: GpuArch
) -> None:
    """The matmul, or split matmul, of docs/gpu.md."""
    schedule = plan.schedule
    with kernel(
        module, arch, name, ARGUMENTS, threads=schedule.threads, shared=shared_bytes(plan)
    ) as (b, block, q, w, bias, y, m, n):
        weight = PackedWeight(b, plan.layout, w, n)
        blocks_m, blocks_n = b.ceil_div(m, schedule.block_m), b.ceil_div(n, schedule.block_n)
        first_row = block // blocks_n % blocks_m * schedule.block_m
        split = block // blocks_n // blocks_m
        tile = block % blocks_n * schedule.warps_n + b.warp % schedule.warps_n
        row_pointers = [
            b.at(q, b.wide(b.min(first_row + r, m - 1)) * products.row_bytes)
            for r in range(schedule.block_m)
        ]
        # A warp behind the last tile reads that one, and stores nothing.
        known = b.min(tile, weight.tiles - 1)
        part = split * schedule.warps_k + b.warp // schedule.warps_n
        stream = _Stream(b, products, plan, weight, known, row_pointers)
        sums = stream.run(part)

        def store(row: int, column: Value, value: Value) -> None:
            number = first_row + row
            with b.when((number < m) & (column < n)):
                if schedule.split > 1:
                    line = b.wide(split) * b.wide(m) + b.wide(number)
                else:
                    line = b.wide(number)
                    offset = b.load(bias, "f32", b.wide(column) * 4, cache="nc")
                    value = products.finish(b, value, row_pointers[row], weight, column, offset)
                b.store(value, y, (line * b.wide(n) + b.wide(column)) * 4)

        _combine(b, plan, tile, sums, store)


def emit_reduce_kernel(
    name: str, products: RowProducts, split: int, module: Any, arch: GpuArch
) -> None:
    """Adds the parts of a split in order; a thread makes one element of y."""
    with kernel(module, arch, name, REDUCE_ARGUMENTS, threads=REDUCE_THREADS) as (
        b,
        block,
        workspace,
        q,
        w,
        bias,
        y,
        m,
        n,
    ):
        blocks_n = b.ceil_div(n, REDUCE_THREADS)
        row, column = block // blocks_n, block % blocks_n * REDUCE_THREADS + b.thread
        with b.when(column < n):
            at = (b.wide(row) * b.wide(n) + b.wide(column)) * 4
            plane = b.wide(m) * b.wide(n) * 4
            type_ = "f32" if products.layout.grouped.groups > 1 else products.accumulator
            parts = [b.load(workspace, type_, at + plane * s, cache="nc") for s in range(split)]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            weight = PackedWeight(b, products.layout, w, n)
            offset = b.load(bias, "f32", b.wide(column) * 4, cache="nc")
            pointer = b.at(q, b.wide(row) * products.row_bytes)
            b.store(products.finish(b, total, pointer, weight, column, offset), y, at)


def _combine(b: GpuBuilder, plan: RowsPlan, tile: Value, sums: Sequence[Value], store: Any) -> None:
    """Add the sums of the warps that share a tile, and `store(row, column, value)` them."""
    schedule = plan.schedule
    if schedule.warps_k == 1:
        for row, value in enumerate(sums):
            store(row, tile * TILE_COLUMNS + lane_column(b), value)
        return
    # [warp of K][warp of N][row][column]; b.warp counts warps of N first.
    place = b.warp * (schedule.block_m * TILE_COLUMNS)
    for row, value in enumerate(sums):
        b.store(value, b.shared, (place + lane_column(b) + row * TILE_COLUMNS) * 4)
    b.barrier()
    warp_k, warp_n = b.warp // schedule.warps_n, b.warp % schedule.warps_n
    warp_bytes = 4 * schedule.block_m * TILE_COLUMNS
    for row, value in enumerate(sums):
        with b.when(warp_k == row % schedule.warps_k):
            at = warp_n * warp_bytes + b.lane * 4
            parts = [
                b.load(
                    b.shared,
                    value.type,
                    at + (warp_bytes * schedule.warps_n * w + row * TILE_COLUMNS * 4),
                )
                for w in range(schedule.warps_k)
            ]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            store(row, tile * TILE_COLUMNS + b.lane, total)


@dataclass(frozen=True)
class _State:
    """What turns carry: sums [row][block] of the group at hand, and what is known of it; totals
    [row], where there are several groups; words [chunk][word] of the turn."""

    sums: list[Value]
    totals: list[Value]
    group: list[Value]
    words: list[list[Value]]

    def flat(self) -> list[Value]:
        return [*self.sums, *self.totals, *self.group, *(w for chunk in self.words for w in chunk)]

    def like(self, values: Sequence[Value]) -> _State:
        """Values in the order of `flat`."""
        rest = list(values)

        def take(count: int) -> list[Value]:
            taken = rest[:count]
            del rest[:count]
            return taken

        return _State(
            take(len(self.sums)),
            take(len(self.totals)),
            take(len(self.group)),
            [take(len(chunk)) for chunk in self.words],
        )


@dataclass(frozen=True)
class _Stream:
    """A warp's way through its part of K of one tile."""

    b: GpuBuilder
    products: RowProducts
    plan: RowsPlan
    weight: PackedWeight
    tile: Value
    rows: list[Value]

    def run(self, part: Value) -> list[Value]:
        """For each row, the lane's column: the total of the part's groups, or of the one's sum."""
        b, plan = self.b, self.plan
        begin = b.min(part * plan.run, b.const(plan.layout.chunks, "i32"))
        end = b.min(begin + plan.run, b.const(plan.layout.chunks, "i32"))
        state = self._initial(begin, end)
        with b.loop(begin, end, plan.ahead, state.flat()) as loop:
            turn = state.like(loop.args)
            for number in range(plan.ahead):
                turn = self._chunk(turn, number, loop.i + number, end)
            loop.carry(*turn.flat())
        state = state.like(loop.results)
        if plan.grouped:
            return state.totals
        return self._whole_sums(state.sums)

    def _initial(self, begin: Value, end: Value) -> _State:
        b, plan, products = self.b, self.plan, self.products
        words = [self._load(begin + number, end) for number in range(plan.ahead)]
        totals = [b.const(0.0, "f32")] * len(self.rows) if plan.grouped else []
        first = self._group(begin) if plan.grouped else 0
        group = products.group_values(self.weight, first, self.tile)
        return _State(self._zeros(), totals, group, words)

    def _zeros(self) -> list[Value]:
        return [self.b.const(0, self.products.accumulator)] * (len(self.rows) * BLOCKS)

    def _load(self, chunk: Value, end: Value) -> list[Value]:
        """The words of a chunk; zeros from `end` on."""
        b, layout = self.b, self.plan.layout
        count = layout.chunk_words

        def load() -> list[Value]:
            at = b.at(self.weight.tile(self.tile), b.wide(chunk) * layout.chunk_bytes)
            return self.weight.chunk_words(at, cache="stream")

        return b.either(chunk < end, ["i32"] * count, load, lambda: [b.const(0, "i32")] * count)

    def _chunk(self, state: _State, number: int, chunk: Value, end: Value) -> _State:
        """Chunk `number` of a turn: multiply it, then load the one of the next turn."""
        plan = self.plan
        if plan.guarded and number:
            state = self._if(chunk < end, state, lambda s: self._multiply(s, number, chunk))
        else:
            state = self._multiply(state, number, chunk)
        words = list(state.words)
        words[number] = self._load(chunk + plan.ahead, end)
        return replace(state, words=words)

    def _if(self, condition: Value, state: _State, change: Any) -> _State:
        """`change(state)` where the condition holds; words stay as they are."""
        fixed = replace(state, words=[])
        types = [value.type for value in fixed.flat()]
        values = self.b.either(
            condition, types, lambda: replace(change(state), words=[]).flat(), fixed.flat
        )
        return replace(fixed.like(values), words=state.words)

    def _multiply(self, state: _State, number: int, chunk: Value) -> _State:
        """Add the products of a chunk; scale the sums of groups that end in it."""
        b, products, layout = self.b, self.products, self.plan.layout
        words = state.words[number]
        per_chunk = layout.chunk_units
        for unit in range(per_chunk):
            x = self._activations(chunk, unit)
            sums = list(state.sums)
            for block in range(BLOCKS):
                mine = slice(block, None, BLOCKS)  # of all rows
                place = unit * BLOCKS + block
                sums[mine] = products.multiply(b, words, place, x, sums[mine], state.group)
            state = replace(state, sums=sums)
            state = self._end_of_unit(state, number, chunk, unit)
        return state

    def _activations(self, chunk: Value, unit: int) -> list[list[Value]]:
        """The lane's words of a unit, of all rows; zeros for units behind the last."""
        b, products, layout = self.b, self.products, self.plan.layout
        per_chunk, units = layout.chunk_units, layout.grouped.units
        offset = chunk * (per_chunk * products.unit_bytes)
        at = unit * products.unit_bytes

        def load() -> list[Value]:
            return [word for row in self.rows for word in products.load(b, row, offset, at)]

        if units % per_chunk == 0 or unit < units % per_chunk:
            flat = load()
        else:
            zero = b.const(0, products.accumulator)
            types = [products.accumulator] * (len(self.rows) * self._words_per_unit)
            inside = chunk * per_chunk + unit < units
            flat = b.either(inside, types, load, lambda: [zero] * len(types))
        size = self._words_per_unit
        return [flat[i : i + size] for i in range(0, len(flat), size)]

    @property
    def _words_per_unit(self) -> int:
        """Values that `products.load` gives."""
        registers = self.plan.layout.registers_per_block
        return registers if self.products.accumulator == "i32" else 2 * registers

    def _group(self, chunk: Value, unit: int = 0) -> Value:
        """The group of a unit of a chunk; the last one for what is behind it."""
        layout = self.plan.layout
        group = (chunk * layout.chunk_units + unit) // layout.grouped.group_units
        return self.b.min(group, self.b.const(layout.grouped.groups - 1, "i32"))

    def _end_of_unit(self, state: _State, number: int, chunk: Value, unit: int) -> _State:
        ends = self._group_ends(number, chunk, unit)
        if ends is False:
            return state

        def flush(state: _State) -> _State:
            return self._flush(state, self._group(chunk, unit))

        return flush(state) if ends is True else self._if(ends, state, flush)

    def _group_ends(self, number: int, chunk: Value, unit: int) -> Value | bool:
        """Whether a group ends with a unit of chunk `number` of a turn; known now, if it can be.

        Turns begin at multiples of `base` units: runs begin where groups do.
        """
        plan, layout = self.plan, self.plan.layout
        if not plan.grouped:
            return False
        size, units, per_chunk = (
            layout.grouped.group_units,
            layout.grouped.units,
            layout.chunk_units,
        )
        turn = plan.ahead * per_chunk
        base = math.gcd(turn, plan.step * per_chunk)
        after = number * per_chunk + unit + 1  # units of the turn so far
        may_end = after % math.gcd(base, size) == 0
        may_be_last = units % size != 0 and (units - after) % base == 0
        behind = units % per_chunk != 0 and unit >= units % per_chunk
        if not may_end and not may_be_last:
            return False
        if may_end and base % size == 0 and not behind:
            return True
        position = chunk * per_chunk + (unit + 1)
        ends = (position % size == 0) | (position == units)
        return ends & (position <= units) if behind else ends

    def _flush(self, state: _State, group: Value) -> _State:
        """Scale the sums of `group`, and fetch what is to know of the next one."""
        b, products = self.b, self.products
        sums = self._whole_sums(state.sums)
        totals = products.scaled(b, sums, state.group, state.totals, self.rows, group)
        following = b.min(group + 1, b.const(self.plan.layout.grouped.groups - 1, "i32"))
        known = products.group_values(self.weight, following, self.tile)
        return replace(state, sums=self._zeros(), totals=totals, group=known)

    def _whole_sums(self, sums: Sequence[Value]) -> list[Value]:
        """For each row, the sum of the lane's column over all quarters."""
        return [transpose_sums(self.b, sums[i : i + BLOCKS]) for i in range(0, len(sums), BLOCKS)]


assert TILE_COLUMNS == WARP
