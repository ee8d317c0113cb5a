"""Attention of few rows (decoding): blocks share the keys, and a second kernel merges.

A block takes SPLIT_KEYS keys of one head and all its rows, and in three steps has everything that
is proportional to the keys read once, in runs of 16 bytes a lane:

1. groups of lanes compute scores, a key each, into shared memory;
2. a warp a row turns them into weights and keeps their maximum and sum;
3. threads own 4 columns of y and some of the keys; their sums are added in order.

With one split the block divides and writes y; otherwise it leaves sums, maximum and total in the
workspace. Nothing depends on the order in which blocks run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel

from ..arch import GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from ..rows.chunks import load4, store4
from .spec import (
    LOG2_E,
    MINUS_INFINITY,
    AttentionSpec,
    Head,
    Problem,
    argument_types,
    finite,
    quotients,
    weight,
)

SPLIT_KEYS = 128
THREADS = 128
WARPS = THREADS // 32
UNROLL = 4


def partial_pitch(spec: AttentionSpec) -> int:
    """Floats of one row of one split in the workspace: sums, maximum, total; a multiple of 4."""
    return -(-spec.value_head // 4) * 4 + 4


def rows_kernel(spec: AttentionSpec, rows: int) -> Kernel:
    """Up to `rows` (at most 8) rows a head. See the file's head and kernels.py."""
    name = f"attention_rows{rows}_{spec.name}"
    return Kernel(name, (1,), partial(_emit_rows, name, spec, rows))


def _emit_rows(name: str, spec: AttentionSpec, rows: int, module: Any, arch: GpuArch) -> None:
    types = [*argument_types(spec), POINTER, "i32"]
    shared = _Shared(spec, rows)
    with kernel(module, arch, name, types, threads=THREADS, shared=shared.bytes) as (
        b,
        block,
        *arguments,
        workspace,
        splits,
    ):
        problem = Problem(b, spec, arguments)
        _Block(b, spec, rows, shared, problem, block // splits, block % splits).emit(
            workspace, splits
        )


class _Shared:
    """Offsets in shared memory, in bytes: scores [rows][SPLIT_KEYS], totals [rows][2], and the
    sums of the threads [subset][rows][columns]."""

    def __init__(self, spec: AttentionSpec, rows: int) -> None:
        self.chunks = -(-spec.value_head // 4)
        self.subsets = THREADS // self.chunks
        self.totals = rows * SPLIT_KEYS * 4
        self.sums = self.totals + rows * 16
        self.bytes = self.sums + self.subsets * rows * self.chunks * 16


class _Block:
    """One block's work: `head` number, `split` number."""

    def __init__(
        self,
        b: GpuBuilder,
        spec: AttentionSpec,
        rows: int,
        shared: _Shared,
        problem: Problem,
        number: Value,
        split: Value,
    ) -> None:
        self.b, self.spec, self.rows, self.shared = b, spec, rows, shared
        self.problem, self.number, self.split = problem, number, split
        self.head: Head = problem.head(number)
        self.begin = split * SPLIT_KEYS
        self.count = b.min(problem.keys - self.begin, SPLIT_KEYS)

    def emit(self, workspace: Value, splits: Value) -> None:
        self._scores()
        self.b.barrier()
        self._weights()
        self.b.barrier()
        self._partial_sums()
        self.b.barrier()
        self._finish(workspace, splits)

    def _scores(self) -> None:
        b, columns = self.b, self.spec.head
        lanes = min(32, 1 << (-(-columns // 4) - 1).bit_length())
        steps = -(-columns // (4 * lanes))
        at_once = THREADS // lanes
        # A turn's keys stay in a row of scores: narrow heads have few lanes a key and many keys.
        unroll = min(UNROLL, SPLIT_KEYS // at_once)
        lane, group = b.thread % lanes, b.thread // lanes
        at = [lane * 4 + step * lanes * 4 for step in range(steps)]
        q = [self._query(row, at) for row in range(self.rows)]
        last = self.problem.keys - 1
        with b.loop(0, self.count, at_once * unroll) as loop:
            keys = [loop.i + (group + u * at_once) for u in range(unroll)]
            pointers = [self.head.k.row(b, b.max(b.min(key + self.begin, last), 0)) for key in keys]
            loaded = [[v for c in at for v in self.head.k.load4(b, p, c)] for p in pointers]
            for key, k in zip(keys, loaded, strict=True):
                scores = [b.warp_sum(_dot(b, row, k), lanes) for row in q]
                with b.when(lane == 0):
                    for row, score in enumerate(scores):
                        b.store(score, b.shared, key * 4 + row * SPLIT_KEYS * 4)

    def _query(self, row: int, at: Sequence[Value]) -> list[Value]:
        """The lane's columns of a row of q, scaled; rows past the last repeat it."""
        b = self.b
        pointer = self.head.q.row(b, b.min(b.const(row, "i32"), self.problem.rows - 1))
        loaded = [v for c in at for v in load4(b, pointer, c, self.spec.head)]
        return [value * self.problem.scale for value in loaded]

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
        base = b.at(b.shared, row * (SPLIT_KEYS * 4))
        mask_row = b.min(row, problem.rows - 1)
        scores = []
        for i in range(SPLIT_KEYS // 32):
            key = b.lane + 32 * i
            # What lies past the last key was not written by anybody.
            (score,) = b.either(
                key < self.count,
                ["f32"],
                lambda key=key: [b.load(base, "f32", key * 4)],  # type: ignore[misc]
                lambda: [b.const(MINUS_INFINITY, "f32")],
            )
            scores.append(problem.masked(self.head, score, mask_row, key + self.begin))
        largest = scores[0]
        for score in scores[1:]:
            largest = b.max(largest, score)
        largest = b.warp_max(largest)
        base_score = finite(b, largest)
        total = b.const(0.0, "f32")
        for i, score in enumerate(scores):
            value = weight(b, score, base_score)
            b.store(value, base, (b.lane + 32 * i) * 4)
            total = total + value
        total = b.warp_sum(total)
        with b.when(b.lane == 0):
            b.store(b.vector([largest, total]), b.at(b.shared, row * 8 + self.shared.totals))

    def _partial_sums(self) -> None:
        b, shared = self.b, self.shared
        chunk, subset = b.thread % shared.chunks, b.thread // shared.chunks
        if shared.subsets * shared.chunks == THREADS:
            self._sum_keys(chunk, subset)
        else:
            with b.when(subset < shared.subsets):
                self._sum_keys(chunk, subset)

    def _sum_keys(self, chunk: Value, subset: Value) -> None:
        b, shared = self.b, self.shared
        step = shared.subsets

        def add(sums: Sequence[Value], keys: Sequence[Value]) -> list[Value]:
            rows = [self.head.v.row(b, key + self.begin) for key in keys]
            loaded = [self.head.v.load4(b, row, chunk * 4) for row in rows]
            sums = list(sums)
            for key, v in zip(keys, loaded, strict=True):
                for row in range(self.rows):
                    p = b.load(b.shared, "f32", key * 4 + row * SPLIT_KEYS * 4)
                    for i in range(4):
                        sums[4 * row + i] = b.fma(p, v[i], sums[4 * row + i])
            return sums

        zeros = [b.const(0.0, "f32")] * (4 * self.rows)
        sums = _unrolled(b, subset, self.count, step, zeros, add)
        for row in range(self.rows):
            place = ((subset * self.rows + row) * shared.chunks + chunk) * 16
            b.store(b.vector(sums[4 * row : 4 * row + 4]), b.at(b.shared, place + shared.sums))

    def _finish(self, workspace: Value, splits: Value) -> None:
        """Add the subsets' sums; a thread has 4 columns of a row."""
        b, shared = self.b, self.shared
        for first in range(0, self.rows * shared.chunks, THREADS):
            item = b.thread + first
            row, chunk = item // shared.chunks, item % shared.chunks
            wanted = b.min(self.problem.rows, self.rows)
            with b.when(row < wanted):
                self._finish_chunk(item, row, chunk, workspace, splits)

    def _finish_chunk(
        self, item: Value, row: Value, chunk: Value, workspace: Value, splits: Value
    ) -> None:
        b, shared, problem = self.b, self.shared, self.problem
        sums = [b.const(0.0, "f32")] * 4
        for subset in range(shared.subsets):
            place = (item + subset * self.rows * shared.chunks) * 16 + shared.sums
            loaded = b.lanes_of(b.load(b.shared, "vector<4xf32>", place))
            sums = [s + value for s, value in zip(sums, loaded, strict=True)]
        largest, total = b.lanes_of(b.load(b.shared, "vector<2xf32>", row * 8 + shared.totals))

        def divide() -> list[Value]:
            values = quotients(b, self.spec, sums, total, problem.keys)
            store4(b, values, self.head.y.row(b, row), chunk * 4, self.spec.value_head)
            return []

        def leave() -> list[Value]:
            pitch = partial_pitch(self.spec) * 4
            place = (self.number * splits + self.split) * problem.rows + row
            at = b.at(workspace, b.wide(place) * pitch)
            b.store(b.vector(sums), at, chunk * 16)
            with b.when(chunk == 0):
                b.store(b.vector([largest, total]), at, shared.chunks * 16)
            return []

        b.either(splits == 1, [], divide, leave)


def _dot(b: GpuBuilder, x: Sequence[Value], y: Sequence[Value]) -> Value:
    total = x[0] * y[0]
    for a, c in zip(x[1:], y[1:], strict=True):
        total = b.fma(a, c, total)
    return total


def _unrolled(
    b: GpuBuilder,
    begin: Value,
    end: Value,
    step: int,
    carry: Sequence[Value],
    body: Callable[[Sequence[Value], Sequence[Value]], list[Value]],
) -> list[Value]:
    """`for i in range(begin, end, step)`, UNROLL turns at a time while there are as many."""
    distance = (UNROLL - 1) * step
    with b.loop(begin, end - distance, UNROLL * step, carry) as loop:
        turns = [loop.i + u * step for u in range(UNROLL)]
        loop.carry(*body(loop.args, turns))
    left = b.max(end - distance - begin + (UNROLL * step - 1), 0)
    first = begin + left // (UNROLL * step) * (UNROLL * step)
    with b.loop(first, end, step, loop.results) as tail:
        tail.carry(*body(tail.args, [tail.i]))
    return tail.results


def merge_kernel(spec: AttentionSpec) -> Kernel:
    """The splits of a row into a row of y; a block a row. See kernels.py for the arguments."""
    name = f"attention_merge_{spec.output_name}"
    return Kernel(name, (1,), partial(_emit_merge, name, spec))


def _emit_merge(name: str, spec: AttentionSpec, module: Any, arch: GpuArch) -> None:
    types = [POINTER, POINTER, "i32", "i32", "i32", "i32", "i64", "i64", "i64"]
    with kernel(module, arch, name, types, threads=64) as (b, block, workspace, y, *numbers):
        rows, keys, heads, splits, *strides = numbers
        number, row = block // rows, block % rows
        pitch = partial_pitch(spec) * 4
        stats = spec.value_head + 3 & ~3
        first = b.wide(number) * b.wide(splits) * b.wide(rows) + b.wide(row)
        start, step = b.at(workspace, first * pitch), b.wide(rows) * pitch

        def split_at(i: Value) -> Value:
            return b.at(start, b.wide(i) * step)

        with b.loop(0, splits, 1, [b.const(MINUS_INFINITY, "f32")]) as loop:
            loop.carry(b.max(b.load(split_at(loop.i), "f32", stats * 4), loop.args[0]))
        largest = finite(b, loop.results[0])
        chunk = b.thread
        zeros = [b.const(0.0, "f32")] * 5
        with b.when(chunk < stats // 4):
            with b.loop(0, splits, 1, zeros) as loop:
                at = split_at(loop.i)
                top, total = b.lanes_of(b.load(at, "vector<2xf32>", stats * 4))
                factor = b.exp2((top - largest) * LOG2_E)
                sums = b.lanes_of(b.load(at, "vector<4xf32>", chunk * 16))
                added = zip([*sums, total], loop.args, strict=True)
                loop.carry(*(b.fma(factor, value, old) for value, old in added))
            *sums, total = loop.results
            values = quotients(b, spec, sums, total, keys)
            where = b.wide(number // heads) * strides[0] + b.wide(number % heads) * strides[1]
            at = b.at(y, (where + b.wide(row) * strides[2]) * 4)
            store4(b, values, at, chunk * 4, spec.value_head)
