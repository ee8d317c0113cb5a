"""Attention of many rows in f32 on CUDA cores, with an online softmax.

A block has a tile of rows of one head, whose queries stay in shared memory, and goes over the keys
32 at a time: scores, new maximum, weights, and the sums of y scaled to that maximum (Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018). Eight neighbouring lanes share the
rows of a thread, so that only loads of keys and values need the whole block.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel

from ..builder import GpuBuilder
from ..rows.chunks import store4
from .limits import RowLimits
from .spec import (
    MINUS_INFINITY,
    AttentionSpec,
    Matrix,
    Problem,
    finite,
    quotients,
    weight,
)
from .tile import AttentionTile, tile_kernel

THREADS = 128
LANES = 8  # threads that share rows
GROUPS = THREADS // LANES
KEYS = 32
PAD = 4  # floats between rows in shared memory, against bank conflicts


class _Shape:
    """Sizes of the tile; places in shared memory in bytes."""

    def __init__(self, spec: AttentionSpec) -> None:
        widest = max(spec.head, spec.value_head)
        self.rows_each = 2 if widest <= 128 else 1
        self.rows = GROUPS * self.rows_each
        self.q_chunks = -(-spec.head // 4)
        self.v_chunks = -(-spec.value_head // 4)
        self.q_pitch = (self.q_chunks * 4 + PAD) * 4
        self.v_pitch = (self.v_chunks * 4 + PAD) * 4
        self.p_pitch = (KEYS + PAD) * 4
        self.tile = self.rows * self.q_pitch
        self.weights = self.tile + KEYS * max(self.q_pitch, self.v_pitch)
        self.bytes = self.weights + self.rows * self.p_pitch
        self.y_steps = -(-self.v_chunks // LANES)


def simt_kernel(spec: AttentionSpec) -> Kernel:
    """Any number of rows, `block[0]` of them a block. See kernels.py for the arguments."""
    shape, name = _Shape(spec), f"attention_simt_{spec.name}"
    return tile_kernel(name, spec, _Tile, rows=shape.rows, threads=THREADS, shared=shape.bytes)


class _Tile(AttentionTile):
    """A group of lanes has `rows` of the tile."""

    def __init__(
        self,
        b: GpuBuilder,
        spec: AttentionSpec,
        problem: Problem,
        number: Value,
        first: Value,
        limits: RowLimits | None,
    ) -> None:
        super().__init__(b, spec, problem, number, first, limits)
        self.shape = _Shape(spec)
        self.lane, group = b.thread % LANES, b.thread // LANES
        self.rows = [group + i * GROUPS for i in range(self.shape.rows_each)]  # in the tile
        self.limits = self.row_limits([row + first for row in self.rows])

    def emit(self, last: Sequence[Value]) -> None:
        b, shape, problem = self.b, self.shape, self.problem
        end = self.last_end(self.limits, shape.weights)
        if self.limits is not None:
            b.barrier()
        self._load_tile(self.head.q, self.first, problem.rows, shape.rows, 0, shape.q_pitch)
        largest = [b.const(MINUS_INFINITY, "f32")] * shape.rows_each
        zeros = [b.const(0.0, "f32")] * (shape.rows_each * (1 + 4 * shape.y_steps))
        with b.loop(0, end, KEYS, [*largest, *zeros]) as loop:
            state = loop.args
            n = shape.rows_each
            largest, totals, sums = state[:n], state[n : 2 * n], state[2 * n :]
            self._load_tile(self.head.k, loop.i, problem.keys, KEYS, shape.tile, shape.q_pitch)
            b.barrier()
            scores = self._scores(loop.i)
            largest, totals, sums = self._weigh(scores, largest, totals, sums)
            b.barrier()
            self._load_tile(self.head.v, loop.i, problem.keys, KEYS, shape.tile, shape.v_pitch)
            b.barrier()
            sums = self._add_values(sums)
            b.barrier()
            loop.carry(*largest, *totals, *sums)
        n = shape.rows_each
        self._store(loop.results[n : 2 * n], loop.results[2 * n :])

    def _load_tile(
        self, matrix: Matrix, first: Value, end: Value, rows: int, place: int, pitch: int
    ) -> None:
        """Rows first .. first + rows to shared memory, zeros past `end` and the last column."""
        b = self.b
        chunks = -(-matrix.columns // 4)
        with b.loop(b.thread, rows * chunks, THREADS) as loop:
            row, column = loop.i // chunks, loop.i % chunks * 4
            zeros = [b.const(0.0, "f32")] * 4

            def load(row: Value = row, column: Value = column) -> list[Value]:
                return matrix.load4(b, matrix.row(b, row + first), column)

            values = b.either(row + first < end, ["f32"] * 4, load, lambda: zeros)
            b.store(b.vector(values), b.shared, row * pitch + column * 4 + place)

    def _scores(self, first_key: Value) -> list[list[Value]]:
        """Of each of the thread's rows, with keys lane, lane + 8, ...; scaled and masked."""
        b, shape = self.b, self.shape
        keys = [self.lane + j * LANES for j in range(KEYS // LANES)]
        zeros = [b.const(0.0, "f32")] * (len(self.rows) * len(keys))
        with b.loop(0, shape.q_chunks, 1, zeros) as loop:
            at = loop.i * 16
            q = [self._shared4(row * shape.q_pitch + at) for row in self.rows]
            k = [self._shared4(key * shape.q_pitch + shape.tile + at) for key in keys]
            sums = list(loop.args)
            for i, x in enumerate(q):
                for j, y in enumerate(k):
                    for a, c in zip(x, y, strict=True):
                        sums[i * len(keys) + j] = b.fma(a, c, sums[i * len(keys) + j])
            loop.carry(*sums)
        return [
            [
                self.problem.masked_inside(
                    self.head,
                    loop.results[i * len(keys) + j] * self.problem.scale,
                    row + self.first,
                    key + first_key,
                    self.limits[i][0] if self.limits is not None else None,
                )
                for j, key in enumerate(keys)
            ]
            for i, row in enumerate(self.rows)
        ]

    def _shared4(self, offset: Value) -> list[Value]:
        return self.b.lanes_of(self.b.load(self.b.shared, "vector<4xf32>", offset))

    def _weigh(
        self,
        scores: Sequence[Sequence[Value]],
        largest: Sequence[Value],
        totals: Sequence[Value],
        sums: Sequence[Value],
    ) -> tuple[list[Value], list[Value], list[Value]]:
        """Weights to shared memory; maxima, totals and sums of y by the new maxima."""
        b, shape = self.b, self.shape
        new_largest, new_totals, new_sums = [], [], []
        each = 4 * shape.y_steps
        for i, row in enumerate(self.rows):
            top = scores[i][0]
            for score in scores[i][1:]:
                top = b.max(top, score)
            top = b.max(b.warp_max(top, LANES), largest[i])
            base = finite(b, top)
            kept = weight(b, largest[i], base)
            total = b.const(0.0, "f32")
            for j, score in enumerate(scores[i]):
                p = weight(b, score, base)
                key = self.lane + j * LANES
                b.store(p, b.shared, row * shape.p_pitch + key * 4 + shape.weights)
                total = total + p
            new_largest.append(top)
            new_totals.append(b.fma(kept, totals[i], b.warp_sum(total, LANES)))
            new_sums += [kept * s for s in sums[i * each : (i + 1) * each]]
        return new_largest, new_totals, new_sums

    def _add_values(self, sums: Sequence[Value]) -> list[Value]:
        """Weights times values, 4 keys at a time; a lane has columns 4 lane, 4 lane + 32, ..."""
        b, shape = self.b, self.shape
        # Lanes past the last chunk add up whatever stands there; they store nothing.
        chunks = [b.min(self.lane + j * LANES, shape.v_chunks - 1) for j in range(shape.y_steps)]
        with b.loop(0, KEYS, 4, sums) as loop:
            p = [
                self._shared4(row * shape.p_pitch + loop.i * 4 + shape.weights) for row in self.rows
            ]
            added = list(loop.args)
            for u in range(4):
                key = (loop.i + u) * shape.v_pitch + shape.tile
                for j, chunk in enumerate(chunks):
                    v = self._shared4(key + chunk * 16)
                    for i in range(len(self.rows)):
                        for e in range(4):
                            at = (i * shape.y_steps + j) * 4 + e
                            added[at] = b.fma(p[i][u], v[e], added[at])
            loop.carry(*added)
        return loop.results

    def _store(self, totals: Sequence[Value], sums: Sequence[Value]) -> None:
        b, shape, problem = self.b, self.shape, self.problem
        for i, row in enumerate(self.rows):
            each = 4 * shape.y_steps
            mine = sums[i * each : (i + 1) * each]
            values = quotients(b, self.spec, mine, totals[i], problem.keys)
            with b.when(row + self.first < problem.rows):
                y = self.head.y.row(b, row + self.first)
                for j in range(shape.y_steps):
                    column = (self.lane + j * LANES) * 4
                    store4(b, values[4 * j : 4 * j + 4], y, column, self.spec.value_head)
