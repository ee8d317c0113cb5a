"""Attention of many rows on tensor cores, with an online softmax (FlashAttention-2, Dao 2023).

Four warps have 16 rows of one head each, whose queries and sums of y stay in registers. Keys and
values are halves in tiles (halves.py): while one is multiplied, the next is copied to shared
memory. Tiles that the mask hides from all rows of a block are skipped at the end, and rows that are
plain (limits.py) compare positions instead of reading the mask. Scores leave the first product in
the layout in which the second one reads weights.

Precision `f16` rounds operands. `bf16x3` writes an f32 x as hi + lo, two bf16 (16 bits of its
mantissa in all), and adds hi hi + hi lo + lo hi: what is dropped is 2^-16 of the term. An infinite
operand then becomes NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel

from ..arch import WARP
from ..builder import GpuBuilder
from .halves import HALF, Halves, TileShape
from .limits import RowLimits
from .spec import MINUS_INFINITY, AttentionSpec, Problem, Scale, quotients
from .tile import AttentionTile, tile_kernel
from .weights import Fragments, State, Weights

WARPS = 4
THREADS = WARPS * WARP
ROWS = 16 * WARPS
REGISTER_LIMIT = 64  # of queries
MOST_RESIDENT = 160  # registers of queries and sums
COPY_BYTES = 16


def mma_unsupported(spec: AttentionSpec) -> str | None:
    """Why tensor cores cannot do `spec`, as a sentence; None if they can."""
    if spec.precision == "f32":
        return "tensor cores have no f32"
    shape = TileShape(spec)
    if shape.head // 4 * shape.parts > REGISTER_LIMIT:
        return f"queries of {spec.head} columns do not fit into registers"
    return None


def mma_kernel(spec: AttentionSpec) -> Kernel:
    """Any number of rows, `block[0]` of them a block. See kernels.py for the arguments."""
    name = f"attention_{spec.precision}_{spec.name}"
    shared = 2 * TileShape(spec).bytes + WARPS * 4
    return tile_kernel(name, spec, MmaTile, rows=ROWS, threads=THREADS, shared=shared)


class MmaTile(AttentionTile):
    """A thread has, of every accumulator, columns 2 q and 2 q + 1 of the rows g and g + 8 of its
    warp (lane = 4 g + q)."""

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
        self.shape = self.shape_of(spec)
        self.half = Halves(b, HALF[spec.precision], self.shape.parts)
        self.scale = Scale.of(b, problem.scale)
        # Wide heads leave no registers for weights beside their scores.
        may_stay = self.shape.resident <= MOST_RESIDENT
        adds = self.shape.sum_columns == 0
        self.weights = Weights(b, self.half, may_stay, adds, self.scale, problem.keys)
        self.quad = b.lane % 4
        group = b.lane // 4 + self.warp * 16 + first
        self.rows = [group, group + 8]
        self.limits = self.row_limits(self.rows)
        self.seen = self._seen_by_all() if self.jumps else None

    def _seen_by_all(self) -> Value:
        """Where the last tile may begin all of whose keys all rows of the warp see, i32."""
        b = self.b
        end = self.problem.keys
        if self.limits is not None:
            end = -b.warp_max(-b.min(self.limits[0][0], self.limits[1][0]))
        return end - self.shape.keys

    @staticmethod
    def shape_of(spec: AttentionSpec) -> TileShape:
        return TileShape(spec)

    @property
    def jumps(self) -> bool:
        """Whether tiles before all ends are not compared with them. With several parts products
        take three times as long, and registers are few."""
        return self.shape.parts == 1

    @property
    def warp(self) -> Value:
        """Among those that multiply."""
        return self.b.warp

    def emit(self, last: Sequence[Value]) -> None:
        b, shape = self.b, self.shape
        tiles = self._tiles(*last)
        end = self.last_end(self.limits, 2 * shape.bytes)
        with b.when(end > 0):
            self._copy(tiles, b.const(0, "i32"))
        b.commit_copies()
        queries = self._queries()
        plain = self._all_plain()
        state = State.first(b, shape.value_head // 2)
        with b.loop(0, end, shape.keys, [b.const(0, "i32"), *state.values]) as loop:
            stage, state = loop.args[0], State.of(loop.args[1:])
            other = shape.bytes - stage
            b.wait_copies()
            b.barrier()  # this tile is there, the one before has been read
            upcoming = loop.i + shape.keys
            with b.when(upcoming < end):
                tile = b.wide(upcoming // shape.keys) * shape.bytes
                self._copy(b.at(tiles, tile), other)
            b.commit_copies()
            here = b.at(b.shared, stage)
            scores, factor = self._masked(self._scores(queries, here), loop.i, plain)
            weighed = self.weights.weigh(scores, factor, state)
            sums = self._add_values(here, weighed.weights, weighed.state.sums)
            loop.carry(other, *replace(weighed.state, sums=sums).values)
        b.wait_copies()
        self._store(State.of(loop.results[1:]))

    def _tiles(self, workspace: Value) -> Value:
        """The tiles of the keys and values that the head reads."""
        b, problem = self.b, self.problem
        heads = problem.heads // problem.group
        unit = self.number // problem.heads * heads
        unit = unit + self.number % problem.heads // problem.group
        count = b.ceil_div(problem.keys, self.shape.keys)
        return b.at(workspace, b.wide(unit) * b.wide(count) * self.shape.bytes)

    def _copy(self, tile: Value, stage: Value) -> None:
        """Begin to copy a tile to byte `stage` of shared memory."""
        b = self.b
        source = b.at(tile, b.thread * COPY_BYTES)
        to = b.at(b.shared, stage + b.thread * COPY_BYTES)
        step = THREADS * COPY_BYTES
        whole, rest = divmod(self.shape.bytes, step)
        for i in range(whole):
            self._copy_chunk(to, source, i * step)
        if rest:
            with b.when(b.thread < rest // COPY_BYTES):
                self._copy_chunk(to, source, whole * step)

    def _copy_chunk(self, to: Value, source: Value, offset: int) -> None:
        """16 bytes at a fixed offset, which the instruction has: no registers for addresses."""
        text = f"cp.async.cg.shared.global [$0 + {offset}], [$1 + {offset}], {COPY_BYTES};"
        self.b.asm(text, "r,l,~{memory}", [], to, source, effects=True)

    def _all_plain(self) -> Value | None:
        """Whether all rows of the warp are; None where their mask is not one that is added, and
        where registers do not suffice for both ways."""
        b = self.b
        if self.limits is None or self.shape.resident > MOST_RESIDENT:
            return None
        both = self.limits[0][1] & self.limits[1][1]
        return b.warp_max(1 - both) == 0

    def _queries(self) -> list[list[list[Value]]]:
        """Fragments of A by step of 16 columns and part, with their part of the scale; rows past
        the last repeat it."""
        b, columns = self.b, self.spec.head
        last = self.problem.rows - 1
        scale = self.scale.queries
        rows = [self.head.q.row(b, b.min(row, last)) for row in self.rows]
        steps = []
        for step in range(self.shape.head // 16):
            pairs = []
            for half in range(2):
                column = self.quad * 2 + (step * 16 + half * 8)
                for row in rows:
                    loaded = _load2(b, row, column, columns)
                    pairs.append([value * scale for value in loaded])
            steps.append(self.half.fragments(pairs))
        return steps

    def _scores(self, queries: list[list[list[Value]]], tile: Value) -> list[list[Value]]:
        """Accumulators by 8 keys of the tile in shared memory: scores."""
        b, shape = self.b, self.shape
        tiles = shape.keys // 8
        scores = [[b.const(0.0, "f32")] * 4 for _ in range(tiles)]
        # Lanes of ldmatrix: 8 keys, the other 8 columns, the next 8 keys.
        key = b.lane % 8 + b.lane // 16 * 8
        column = b.lane // 8 % 2 * 8
        start = b.at(tile, key * shape.k_pitch + column * 2)
        for step, query in enumerate(queries):
            for pair in range(0, tiles, 2):
                offset = pair * 8 * shape.k_pitch + step * 32
                parts = [
                    b.load_matrices(b.at(start, offset + i * shape.k_part), 4)
                    for i in range(shape.parts)
                ]
                for i in range(2):
                    fragments = [registers[2 * i : 2 * i + 2] for registers in parts]
                    scores[pair + i] = self.half.product(query, fragments, scores[pair + i])
        return scores

    def _masked(
        self, scores: list[list[Value]], first_key: Value, plain: Value | None
    ) -> tuple[list[list[Value]], Value]:
        """Scores with the mask on them, minus infinity past the last key, and the factor, above 0,
        that makes them exponents of 2: where a mask is read they are such."""
        b = self.b
        ends = [self.problem.keys] * 2
        if self.limits is not None:
            ends = [end for end, _ in self.limits]

        # Each way has its own numbers of keys: those of both would be made before, for all tiles.
        def read() -> list[Value]:
            first = self.quad * 2 + first_key
            values = [
                self.problem.masked_inside(
                    self.head,
                    score,
                    self.rows[i // 2],
                    first + (8 * tile + i % 2),
                    ends[i // 2],
                    of_two=self.scale.scores,
                )
                for tile, four in enumerate(scores)
                for i, score in enumerate(four)
            ]
            return values

        def cut() -> list[Value]:
            first = self.quad * 2 + first_key
            return [
                b.select(first + (8 * tile + i % 2) < ends[i // 2], score, MINUS_INFINITY)
                for tile, four in enumerate(scores)
                for i, score in enumerate(four)
            ]

        def unread() -> list[Value]:
            """Most tiles lie before all ends."""
            flat = [score for four in scores for score in four]
            if self.seen is None:
                return cut()
            whole = self.seen >= first_key
            return b.either(whole, ["f32"] * len(flat), lambda: flat, cut)

        factor, one = self.scale.scores, b.const(1.0, "f32")
        if self.spec.mask == "none":
            masked = unread()
        elif plain is None:
            masked, factor = read(), one
        else:
            masked = b.either(plain, ["f32"] * (4 * len(scores)), unread, read)
            factor = b.select(plain, factor, one)
        return [masked[i : i + 4] for i in range(0, len(masked), 4)], factor

    def _add_values(self, tile: Value, weights: Fragments, sums: Sequence[Value]) -> list[Value]:
        """Sums of y by 8 columns, with 16 keys at a time added."""
        b, shape = self.b, self.shape
        added = [list(sums[i : i + 4]) for i in range(0, len(sums), 4)]
        # Lanes of ldmatrix: 8 keys, the next 8, then both with the other 8 columns.
        key, column = b.lane % 16, b.lane // 16 * 8
        start = b.at(tile, key * shape.v_pitch + column * 2 + shape.values)
        for step, fragments in enumerate(weights):
            for pair in range(0, shape.value_head // 8, 2):
                offset = step * 16 * shape.v_pitch + pair * 16
                parts = [
                    b.load_matrices(b.at(start, offset + i * shape.v_part), 4, transposed=True)
                    for i in range(shape.parts)
                ]
                for i in range(2):
                    values = [registers[2 * i : 2 * i + 2] for registers in parts]
                    added[pair + i] = self.half.product(fragments, values, added[pair + i])
        return [value for tile in added for value in tile]

    def _store(self, state: State) -> None:
        b, columns = self.b, self.spec.value_head
        totals = self.weights.row_totals(state)
        for half, row in enumerate(self.rows):
            mine = [s for i, s in enumerate(state.sums) if i // 2 % 2 == half]
            values = quotients(b, self.spec, mine, totals[half], self.problem.keys)
            with b.when(row < self.problem.rows):
                y = self.head.y.row(b, row)
                for tile in range(self.shape.value_head // 8):
                    pair = values[2 * tile : 2 * tile + 2]
                    _store2(b, pair, y, self.quad * 2 + tile * 8, columns, tile)


def _load2(b: GpuBuilder, row: Value, column: Value, columns: int) -> list[Value]:
    """Two elements from the even `column` on, 0 past the row's end."""
    zero = b.const(0.0, "f32")
    if columns % 4 == 0:
        return b.either(
            column < columns,
            ["f32"] * 2,
            lambda: b.lanes_of(b.load(row, "vector<2xf32>", column * 4)),
            lambda: [zero] * 2,
        )
    return [
        b.either(
            column + i < columns,
            ["f32"],
            lambda i=i: [b.load(row, "f32", (column + i) * 4)],  # type: ignore[misc]
            lambda: [zero],
        )[0]
        for i in range(2)
    ]


def _store2(
    b: GpuBuilder, pair: Sequence[Value], row: Value, column: Value, columns: int, tile: int
) -> None:
    """Two elements from the even `column` of 8-column `tile` on, but those past the row's end."""
    if columns % 4 == 0:
        if (tile + 1) * 8 <= columns:
            b.store(b.vector(pair), row, column * 4)
            return
        with b.when(column < columns):
            b.store(b.vector(pair), row, column * 4)
        return
    for i, value in enumerate(pair):
        with b.when(column + i < columns):
            b.store(value, row, (column + i) * 4)
