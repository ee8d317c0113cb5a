"""Attention of few rows (decoding): blocks share the keys and the heads that read the same.

A block takes some keys of one unit (spec.py) and up to 8 of its rows, and in three steps has all
that is proportional to the keys read once for all of these rows:

1. groups of lanes compute scores, a key each, into shared memory;
2. a warp a row turns them into weights and keeps their maximum and sum;
3. groups of lanes add up weighted values, a key each.

Steps 1 and 3 load a turn's keys while they compute with those of the turn before, and step 3 its
first ones before step 2. With one split the block divides and writes y. Otherwise it leaves sums,
maximum and total in the workspace, and the last block of a unit's rows to do so, which a counter
tells, adds up all splits in order (merge.py) and sets the counter back to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from abqc.codegen.builder import Value, vec
from abqc.codegen.strategy import Kernel

from ..arch import WARP, GpuArch
from ..builder import GpuBuilder, kernel
from ..rows.chunks import load4, store4
from .merge import Merge, chunks_of, partial_pitch, split_types
from .row_lanes import THREADS, WARPS, RowLanes, spread_sums
from .spec import (
    MINUS_INFINITY,
    AttentionSpec,
    Problem,
    argument_types,
    finite,
    quotients,
    weight,
)
from .stored_rows import StoredRows

UNROLL = 4  # scores of a lane in a turn of step 2


def most_keys(rows: int) -> int:
    """Of a block of so many rows: their scores are in shared memory."""
    return 1024 if rows <= 4 else 512


def rows_kernel(spec: AttentionSpec, rows: int) -> Kernel:
    """`rows` (at most 8) rows of a unit a block. See the file's head and kernels.py."""
    name = f"attention_rows{rows}_{spec.name}"
    return Kernel(name, (rows,), partial(_emit_rows, name, spec, rows))


def _emit_rows(name: str, spec: AttentionSpec, rows: int, module: Any, arch: GpuArch) -> None:
    types = [*argument_types(spec), *split_types()]
    shared = _Shared(spec, rows)
    with kernel(module, arch, name, types, threads=THREADS, shared=shared.bytes) as (
        b,
        block,
        *arguments,
    ):
        problem = Problem(b, spec, arguments[: -len(split_types())])
        workspace, counters, first_counter, splits, keys = arguments[-len(split_types()) :]
        number, split = block // splits, block % splits
        work = _Block(b, spec, rows, shared, problem, number, split * keys, keys)
        work.emit(b.at(workspace, b.wide(block) * (rows * partial_pitch(spec) * 4)), splits)
        with b.when((splits > 1) & (first_counter >= 0)):
            b.fence()
            b.barrier()
            at = b.at(counters, b.wide(first_counter + number) * 4)
            with b.when(b.thread == 0):
                b.store(b.atomic("add", at, b.const(1, "i32")), b.shared, shared.totals)
            b.barrier()
            done = b.load(b.shared, "i32", shared.totals)
            with b.when(done == splits - 1):
                b.fence()
                merge = Merge(b, spec, problem, rows, b.at(b.shared, shared.sums))
                merge.emit(workspace, number, splits)
                with b.when(b.thread == 0):
                    b.store(b.const(0, "i32"), at)


class _Shared:
    """Offsets in shared memory, in bytes: scores [keys][rows], totals [rows][2], and the sums of
    the warps, [warp][values of a lane][lanes of a row]."""

    def __init__(self, spec: AttentionSpec, rows: int) -> None:
        self.keys = RowLanes(StoredRows(spec.keys, spec.head), rows)
        self.values = RowLanes(StoredRows(spec.values, spec.value_head), rows)
        self.totals = most_keys(rows) * rows * 4
        self.sums = self.totals + rows * 8 + 8 & ~15
        self.warp_sums = rows * self.values.columns * self.values.lanes * 4
        self.bytes = self.sums + max(WARPS * self.warp_sums, rows * 4)


class _Block:
    """`count` keys from `begin` on, of block of rows `number`, counted through all units."""

    def __init__(
        self,
        b: GpuBuilder,
        spec: AttentionSpec,
        rows: int,
        shared: _Shared,
        problem: Problem,
        number: Value,
        begin: Value,
        keys: Value,
    ) -> None:
        self.b, self.spec, self.rows, self.shared, self.problem = b, spec, rows, shared, problem
        blocks = b.ceil_div(problem.unit_rows, rows)
        self.unit, self.first = number // blocks, number % blocks * rows
        self.k, self.v = problem.shared(self.unit)
        self.begin, self.count = begin, b.min(problem.keys - begin, keys)

    def emit(self, partial_sums: Value, splits: Value) -> None:
        b = self.b
        with b.when(self.count > 0):
            self._scores()
        loaded = self._first_values()
        b.barrier()
        self._weights()
        b.barrier()
        self._sum_values(loaded)
        b.barrier()
        self._finish(partial_sums, splits)

    # Scores

    def _scores(self) -> None:
        b, lanes = self.b, self.shared.keys
        lane, group = b.thread % lanes.lanes, b.thread // lanes.lanes
        at = lanes.at(lane)
        q = [self._query(row, at) for row in range(self.rows)]

        def load(first: Value) -> list[Value]:
            return self._load(self.k, lanes, at, first + group)

        with b.loop(0, self.count, lanes.turn, load(b.const(0, "i32"))) as loop:
            upcoming = load(loop.i + lanes.turn)
            each = len(loop.args) // lanes.unroll
            scores = []
            for u in range(lanes.unroll):
                k = lanes.decode(b, loop.args[u * each : (u + 1) * each], at)
                scores += [_dot(b, row, k) for row in q]
            sums = spread_sums(b, scores, inner=1, outer=lanes.lanes)
            for i, score in enumerate(sums.values):
                number = sums.first + i
                key = loop.i + group + number // self.rows * lanes.groups
                b.store(score, b.shared, (key * self.rows + number % self.rows) * 4)
            loop.carry(*upcoming)

    def _query(self, row: int, at: Sequence[Value]) -> list[Value]:
        """The lane's columns of a row of q, scaled; rows past the last repeat it."""
        b, width = self.b, self.shared.keys.stored.width
        number = b.min(self.first + row, self.problem.unit_rows - 1)
        q = self.problem.query_row(self.unit, number).q
        columns = [column + i for column in at for i in range(0, width, 4)]
        loaded = [v for column in columns for v in load4(b, q, column, self.spec.head)]
        return [value * self.problem.scale for value in loaded]

    def _load(self, matrix: Any, lanes: RowLanes, at: Sequence[Value], first: Value) -> list[Value]:
        """A turn's rows from key `first` of the block on; keys past the last repeat it."""
        b = self.b
        last = self.count - 1
        keys = [b.min(first + u * lanes.groups, last) + self.begin for u in range(lanes.unroll)]
        return [word for key in keys for word in lanes.load(b, matrix.row(b, key), at)]

    # Weights

    def _weights(self) -> None:
        b = self.b
        for row in range(0, self.rows, WARPS):
            mine = b.warp + row
            if row + WARPS <= self.rows:
                self._weights_of(mine)
            else:
                with b.when(mine < self.rows):
                    self._weights_of(mine)

    def _weights_of(self, row: Value) -> None:
        """Scores of one row become weights; one warp."""
        b, problem = self.b, self.problem
        number = b.min(row + self.first, problem.unit_rows - 1)
        query = problem.query_row(self.unit, number)
        low = b.const(MINUS_INFINITY, "f32")

        def at(key: Value) -> Value:
            return (key * self.rows + row) * 4

        def masked(key: Value) -> list[Value]:
            score = b.load(b.shared, "f32", at(key))
            if query.mask is None:
                return [score]
            score = problem.with_mask(query.mask, score, query.row, key + self.begin)
            b.store(score, b.shared, at(key))
            return [score]

        def weighed(key: Value, base: Value) -> list[Value]:
            value = weight(b, b.load(b.shared, "f32", at(key)), base)
            b.store(value, b.shared, at(key))
            return [value]

        with b.loop(0, self.count, UNROLL * WARP, [low]) as loop:
            keys = [loop.i + (b.lane + u * WARP) for u in range(UNROLL)]
            found = [
                b.either(key < self.count, ["f32"], partial(masked, key), lambda: [low])[0]
                for key in keys
            ]
            top = loop.args[0]
            for score in found:
                top = b.max(top, score)
            loop.carry(top)
        largest = b.warp_max(loop.results[0])
        base, zero = finite(b, largest), b.const(0.0, "f32")
        with b.loop(0, self.count, UNROLL * WARP, [zero]) as loop:
            keys = [loop.i + (b.lane + u * WARP) for u in range(UNROLL)]
            found = [
                b.either(key < self.count, ["f32"], partial(weighed, key, base), lambda: [zero])[0]
                for key in keys
            ]
            total = loop.args[0]
            for value in found:
                total = total + value
            loop.carry(total)
        total = b.warp_sum(loop.results[0])
        with b.when(b.lane == 0):
            b.store(b.vector([largest, total]), b.shared, row * 8 + self.shared.totals)

    # Sums of values

    def _first_values(self) -> list[Value]:
        b, lanes = self.b, self.shared.values
        at, group = lanes.at(b.thread % lanes.lanes), b.thread // lanes.lanes
        zeros = [b.const(0, type_) for type_ in self._loaded_types()]
        return b.either(
            self.count > 0,
            [value.type for value in zeros],
            lambda: self._load(self.v, lanes, at, group),
            lambda: zeros,
        )

    def _loaded_types(self) -> list[Any]:
        lanes = self.shared.values
        return lanes.stored.loaded_types() * (lanes.steps * lanes.unroll)

    def _sum_values(self, loaded: Sequence[Value]) -> None:
        """Weighted values to shared memory, by warps."""
        b, lanes = self.b, self.shared.values
        lane, group = b.thread % lanes.lanes, b.thread // lanes.lanes
        at = lanes.at(lane)
        each = len(loaded) // lanes.unroll
        zeros = [b.const(0.0, "f32")] * (self.rows * lanes.columns)

        def add(sums: Sequence[Value], words: Sequence[Value], key: Value) -> list[Value]:
            weights = self._weights_at(key)
            values = lanes.decode(b, words, at)
            return [
                b.fma(weights[i // lanes.columns], values[i % lanes.columns], old)
                for i, old in enumerate(sums)
            ]

        def keys_of(first: Value) -> list[Value]:
            return [first + (group + u * lanes.groups) for u in range(lanes.unroll)]

        whole = b.max(self.count, 0) // lanes.turn * lanes.turn
        with b.loop(0, whole, lanes.turn, [*loaded, *zeros]) as loop:
            words, sums = loop.args[: len(loaded)], loop.args[len(loaded) :]
            upcoming = self._load(self.v, lanes, at, loop.i + lanes.turn + group)
            for u, key in enumerate(keys_of(loop.i)):
                sums = add(sums, words[u * each : (u + 1) * each], key)
            loop.carry(*upcoming, *sums)
        words, sums = loop.results[: len(loaded)], loop.results[len(loaded) :]
        for u, key in enumerate(keys_of(whole)):
            mine = words[u * each : (u + 1) * each]
            kept = sums
            sums = b.either(
                key < self.count,
                ["f32"] * len(kept),
                partial(add, kept, mine, key),
                lambda kept=kept: kept,  # type: ignore[misc]
            )
        spread = spread_sums(b, sums, inner=lanes.lanes, outer=WARP)
        base = b.at(b.shared, b.warp * self.shared.warp_sums + self.shared.sums)
        for i, value in enumerate(spread.values):
            b.store(value, base, ((spread.first + i) * lanes.lanes + lane) * 4)

    def _weights_at(self, key: Value) -> list[Value]:
        """Of all rows."""
        b, at = self.b, key * (self.rows * 4)
        wide = min(self.rows, 4)
        return [
            value
            for row in range(0, self.rows, wide)
            for value in b.lanes_of(b.load(b.shared, vec(wide, "f32"), at + row * 4))
        ]

    # Output

    def _finish(self, partial_sums: Value, splits: Value) -> None:
        """Add up the warps' sums; a thread has 4 columns of a row."""
        b, chunks = self.b, chunks_of(self.spec)
        for first in range(0, self.rows * chunks, THREADS):
            item = b.thread + first
            row, chunk = item // chunks, item % chunks
            wanted = b.min(self.problem.unit_rows - self.first, self.rows)
            with b.when(row < wanted):
                self._finish_chunk(row, chunk, partial_sums, splits)

    def _finish_chunk(self, row: Value, chunk: Value, partial_sums: Value, splits: Value) -> None:
        b, shared, problem = self.b, self.shared, self.problem
        largest, total = b.lanes_of(b.load(b.shared, vec(2, "f32"), row * 8 + shared.totals))
        sums = [self._sum(row, chunk * 4 + i) for i in range(4)]

        def divide() -> list[Value]:
            values = quotients(b, self.spec, sums, total, problem.keys)
            y = problem.query_row(self.unit, row + self.first).y
            store4(b, values, y, chunk * 4, self.spec.value_head)
            return []

        def leave() -> list[Value]:
            at = b.at(partial_sums, row * (partial_pitch(self.spec) * 4))
            b.store(b.vector(sums), at, chunk * 16)
            with b.when(chunk == 0):
                b.store(b.vector([largest, total]), at, chunks_of(self.spec) * 16)
            return []

        b.either(splits == 1, [], divide, leave)

    def _sum(self, row: Value, column: Value) -> Value:
        b, lanes = self.b, self.shared.values
        width = lanes.stored.width
        chunk, inner = column // width, column % width
        number = row * lanes.columns + chunk // lanes.lanes * width + inner
        at = (number * lanes.lanes + chunk % lanes.lanes) * 4 + self.shared.sums
        total = b.load(b.shared, "f32", at)
        for warp in range(1, WARPS):
            total = total + b.load(b.shared, "f32", at + warp * self.shared.warp_sums)
        return total


def _dot(b: GpuBuilder, x: Sequence[Value], y: Sequence[Value]) -> Value:
    total = x[0] * y[0]
    for a, c in zip(x[1:], y[1:], strict=True):
        total = b.fma(a, c, total)
    return total
