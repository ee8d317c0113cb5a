"""Attention of many rows on tensor cores, with an online softmax (FlashAttention-2, Dao 2023).

Four warps have 16 rows of one head each, whose queries and sums of y stay in registers. Keys and
values come in tiles: from f32 in global memory through registers, in which they become halves, to
shared memory. Scores leave the first product in the layout in which the second one reads weights.

Precision `f16` rounds operands. `bf16x3` writes an f32 x as hi + lo, two bf16 (16 bits of its
mantissa in all), and adds hi hi + hi lo + lo hi: what is dropped is 2^-16 of the term. An infinite
operand then becomes NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel

from ..arch import WARP
from ..atoms import ATOMS
from ..builder import GpuBuilder
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

WARPS = 4
THREADS = WARPS * WARP
ROWS = 16 * WARPS
PAD = 16  # bytes between rows in shared memory: ldmatrix meets all banks
LOADS = 8  # chunks of a thread under way
SHARED_LIMIT = 48 * 1024  # wider heads get fewer keys a tile
REGISTER_LIMIT = 64  # of queries

HALF = {"bf16x3": "bf16", "f16": "f16"}


class _Shape:
    """Sizes of the tile; columns padded to the K of an MMA. Offsets in shared memory in bytes."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.parts = 2 if spec.precision == "bf16x3" else 1
        self.head = _up(spec.head, 16)
        self.value_head = _up(spec.value_head, 16)
        self.k_pitch = self.head * 2 + PAD
        self.v_pitch = self.value_head * 2 + PAD
        key_bytes = self.parts * (self.k_pitch + self.v_pitch)
        self.keys = 64 if 64 * key_bytes <= SHARED_LIMIT else 32
        self.k_part = self.keys * self.k_pitch
        self.v_part = self.keys * self.v_pitch
        self.values = self.parts * self.k_part
        self.bytes = self.values + self.parts * self.v_part
        self.query_registers = self.head // 4 * self.parts


def mma_unsupported(spec: AttentionSpec) -> str | None:
    """Why tensor cores cannot do `spec`, as a sentence; None if they can."""
    if spec.precision == "f32":
        return "tensor cores have no f32"
    if _Shape(spec).query_registers > REGISTER_LIMIT:
        return f"queries of {spec.head} columns do not fit into registers"
    return None


def mma_kernel(spec: AttentionSpec) -> Kernel:
    """Any number of rows, `block[0]` of them a block. See kernels.py for the arguments."""
    name = f"attention_{spec.precision}_{spec.name}"
    shared = _Shape(spec).bytes
    return tile_kernel(name, spec, _Tile, rows=ROWS, threads=THREADS, shared=shared)


class _Tile(AttentionTile):
    """A thread has, of every accumulator, columns 2 q and 2 q + 1 of the rows g and g + 8 of its
    warp (lane = 4 g + q)."""

    def __init__(
        self, b: GpuBuilder, spec: AttentionSpec, problem: Problem, number: Value, first: Value
    ) -> None:
        super().__init__(b, spec, problem, number, first)
        self.shape = _Shape(spec)
        self.half = _Halves(b, HALF[spec.precision], self.shape.parts)
        self.quad = b.lane % 4
        group = b.lane // 4 + b.warp * 16 + first
        self.rows = [group, group + 8]

    def emit(self) -> None:
        b, shape, problem = self.b, self.shape, self.problem
        queries = self._queries()
        state = [b.const(MINUS_INFINITY, "f32")] * 2
        state += [b.const(0.0, "f32")] * (2 + shape.value_head // 2)
        with b.loop(0, problem.keys, shape.keys, state) as loop:
            largest, totals, sums = loop.args[:2], loop.args[2:4], loop.args[4:]
            b.barrier()  # the tile before has been read
            self._fill(self.head.k, loop.i, shape.head, shape.k_pitch, 0, shape.k_part)
            self._fill(
                self.head.v, loop.i, shape.value_head, shape.v_pitch, shape.values, shape.v_part
            )
            b.barrier()
            scores = self._scores(queries, loop.i)
            largest, totals, sums = self._weigh(scores, largest, totals, sums)
            loop.carry(*largest, *totals, *self._add_values(scores, sums))
        self._store(loop.results[2:4], loop.results[4:])

    def _queries(self) -> list[list[list[Value]]]:
        """Fragments of A by step of 16 columns and part, scaled; rows past the last repeat it."""
        b, columns = self.b, self.spec.head
        last = self.problem.rows - 1
        rows = [self.head.q.row(b, b.min(row, last)) for row in self.rows]
        steps = []
        for step in range(self.shape.head // 16):
            pairs = []
            for half in range(2):
                column = self.quad * 2 + (step * 16 + half * 8)
                for row in rows:
                    loaded = _load2(b, row, column, columns)
                    pairs.append([value * self.problem.scale for value in loaded])
            steps.append(self.half.fragments(pairs))
        return steps

    def _fill(
        self, matrix: Matrix, first: Value, columns: int, pitch: int, place: int, part: int
    ) -> None:
        """Keys first .. of a matrix as halves; zeros past the last key and column."""
        b, shape = self.b, self.shape
        chunks = columns // 4
        last = self.problem.keys - 1
        total = shape.keys * chunks
        for begin in range(0, total, THREADS * LOADS):
            loaded = []
            for item in range(begin, min(begin + THREADS * LOADS, total), THREADS):
                at = b.thread + item
                row, column = at // chunks, at % chunks * 4
                pointer = matrix.row(b, b.min(row + first, last))
                values = _load4(b, matrix, pointer, column, columns)
                inside = row + first <= last
                loaded.append((row, column, [b.select(inside, v, 0.0) for v in values]))
            for row, column, values in loaded:
                words = self.half.fragments([values[:2], values[2:]])
                for i, pair in enumerate(words):
                    offset = row * pitch + column * 2 + (place + i * part)
                    b.store(b.vector(pair), b.shared, offset)

    def _scores(self, queries: list[list[list[Value]]], first_key: Value) -> list[list[Value]]:
        """Accumulators by 8 keys: scaled scores with the mask on them."""
        b, shape = self.b, self.shape
        tiles = shape.keys // 8
        scores = [[b.const(0.0, "f32")] * 4 for _ in range(tiles)]
        # Lanes of ldmatrix: 8 keys, the other 8 columns, the next 8 keys.
        key = b.lane % 8 + b.lane // 16 * 8
        column = b.lane // 8 % 2 * 8
        start = b.at(b.shared, key * shape.k_pitch + column * 2)
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
        return [self._masked(tile, i * 8 + first_key) for i, tile in enumerate(scores)]

    def _masked(self, tile: Sequence[Value], first_key: Value) -> list[Value]:
        masked = []
        for i, score in enumerate(tile):
            key = self.quad * 2 + (first_key + i % 2)
            masked.append(self.problem.masked_inside(self.head, score, self.rows[i // 2], key))
        return masked

    def _weigh(
        self,
        scores: list[list[Value]],
        largest: Sequence[Value],
        totals: Sequence[Value],
        sums: Sequence[Value],
    ) -> tuple[list[Value], list[Value], list[Value]]:
        """Scores become weights in place; maxima, totals and sums of y by the new maxima."""
        b = self.b
        new_largest, new_totals, kept = [], [], []
        for half in range(2):
            mine = [tile[2 * half + i] for tile in scores for i in range(2)]
            top = mine[0]
            for score in mine[1:]:
                top = b.max(top, score)
            top = b.max(b.warp_max(top, 4), largest[half])
            base = finite(b, top)
            factor = weight(b, largest[half], base)
            weights = [weight(b, score, base) for score in mine]
            total = weights[0]
            for value in weights[1:]:
                total = total + value
            for tile, i in ((t, i) for t in range(len(scores)) for i in range(2)):
                scores[tile][2 * half + i] = weights[2 * tile + i]
            new_largest.append(top)
            new_totals.append(b.fma(factor, totals[half], b.warp_sum(total, 4)))
            kept.append(factor)
        scaled = [s * kept[i // 2 % 2] for i, s in enumerate(sums)]
        return new_largest, new_totals, scaled

    def _add_values(self, weights: list[list[Value]], sums: Sequence[Value]) -> list[Value]:
        """Sums of y by 8 columns, with 16 keys at a time added."""
        b, shape = self.b, self.shape
        added = [list(sums[i : i + 4]) for i in range(0, len(sums), 4)]
        # Lanes of ldmatrix: 8 keys, the next 8, then both with the other 8 columns.
        key, column = b.lane % 16, b.lane // 16 * 8
        start = b.at(b.shared, key * shape.v_pitch + column * 2 + shape.values)
        for step in range(shape.keys // 16):
            low, high = weights[2 * step], weights[2 * step + 1]
            fragments = self.half.fragments([low[:2], low[2:], high[:2], high[2:]])
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

    def _store(self, totals: Sequence[Value], sums: Sequence[Value]) -> None:
        b, columns = self.b, self.spec.value_head
        for half, row in enumerate(self.rows):
            mine = [s for i, s in enumerate(sums) if i // 2 % 2 == half]
            values = quotients(b, self.spec, mine, totals[half], self.problem.keys)
            with b.when(row < self.problem.rows):
                y = self.head.y.row(b, row)
                for tile in range(self.shape.value_head // 8):
                    pair = values[2 * tile : 2 * tile + 2]
                    _store2(b, pair, y, self.quad * 2 + tile * 8, columns, tile)


class _Halves:
    """Fragments of f32 values in one or two parts, and their products."""

    def __init__(self, b: GpuBuilder, element: str, parts: int) -> None:
        self.b, self.element, self.parts = b, element, parts
        self.atom = ATOMS[f"{element}.m16n8k16"]

    def fragments(self, pairs: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """Registers (i32) of two values each, by part: hi, lo."""
        packed = [self._pack(pair) for pair in pairs]
        if self.parts == 1:
            return [packed]
        rest = []
        for word, (low, high) in zip(packed, pairs, strict=True):
            hi_low = self.b.bitcast(word << 16, "f32")
            hi_high = self.b.bitcast(word & 0xFFFF0000, "f32")
            rest.append(self._pack([low - hi_low, high - hi_high]))
        return [packed, rest]

    def _pack(self, pair: Sequence[Value]) -> Value:
        low, high = pair
        text = f"cvt.rn.{self.element}x2.f32 $0, $1, $2;"
        return self.b.asm(text, "=r,f,f", ["i32"], high, low)[0]

    def product(
        self, a: list[list[Value]], c: list[list[Value]], sums: Sequence[Value]
    ) -> list[Value]:
        """`sums` + a c, the small products first."""
        if self.parts == 2:
            sums = self.atom.emit(self.b, a[1], c[0], sums)
            sums = self.atom.emit(self.b, a[0], c[1], sums)
        return self.atom.emit(self.b, a[0], c[0], sums)


def _up(value: int, to: int) -> int:
    return -(-value // to) * to


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


def _load4(b: GpuBuilder, matrix: Matrix, row: Value, column: Value, padded: int) -> list[Value]:
    """Four elements; without a comparison where columns are not padded."""
    if matrix.rows.stored == "f32" and matrix.columns == padded:
        return b.lanes_of(b.load(row, "vector<4xf32>", column * 4))
    return matrix.load4(b, row, column)


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
