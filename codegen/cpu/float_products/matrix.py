"""Matrices that kernels read: rows of floats or of quantized caches, with any distance between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value
from abqc.codegen.isa import Isa
from abqc.dialects.formats import Float

from .cache_rows import CacheRows
from .tile import COLUMN_BLOCK, PANEL, multiply_add

Stored = Float | CacheRows  # how a matrix is stored


def element_of(stored: Stored) -> str:
    """The element type of its buffer."""
    if isinstance(stored, CacheRows):
        return "i8"
    return stored if stored == "f32" else "i16"  # LLVM has no masked loads of bf16


@dataclass(frozen=True)
class Matrix:
    """A row-major matrix of `columns` columns that begins at element `base` of `data`; `pitch`
    elements are between rows. Elements are bytes where rows are those of a quantized cache."""

    data: Value
    base: Value
    columns: Value
    pitch: Value | int
    stored: Stored = "f32"

    @staticmethod
    def of(data: Value, base: Value, columns: Value, stored: Stored) -> Matrix:
        pitch = stored.row_bytes if isinstance(stored, CacheRows) else columns
        return Matrix(data, base, columns, pitch, stored)

    def lanes(self, isa: Isa) -> int:
        """Elements of a row that are loaded at a time."""
        return PANEL if isinstance(self.stored, CacheRows) else isa.lanes(32)

    def load(self, b: Builder, row: Value, column: Value) -> Value:
        """An element of the row that begins at `row`, as f32."""
        if isinstance(self.stored, CacheRows):
            return self.stored.load_one(b, self.data, row, column)
        value = b.load(self.data, row + column)
        return value if self.stored == "f32" else b.extend(b.bitcast(value, self.stored))

    def load_lanes(
        self, b: Builder, row: Value, column: Value, lanes: int, mask: Value | None = None
    ) -> Value:
        """`lanes` elements from `column` on, a multiple of `lanes`, as f32.

        Those off the mask are any number where rows are those of a quantized cache, else 0.
        """
        if isinstance(self.stored, CacheRows):
            assert lanes == PANEL
            return self.stored.load(b, self.data, row, column)
        value = b.load(self.data, row + column, lanes, mask)
        if self.stored == "f32":
            return value
        return b.extend(b.bitcast(value, f"vector<{lanes}x{self.stored}>"))

    def panel(self, b: Builder, row: Value, column: Value) -> Value:
        """Columns `column` .. `column` + 16 of a row; those behind the last one as above."""
        return self.load_lanes(b, row, column, PANEL, b.mask(PANEL, self.columns - column))

    def row(self, i: Value) -> Value:
        """The element where row `i` begins."""
        return self.base + i * self.pitch


def row_bases(b: Builder, matrix: Matrix, row: Value, count: int, rows: Value) -> list[Value]:
    """Where rows `row` .. `row + count` begin; the last of all `rows` for those behind it."""
    return [matrix.row(b.min(row + j, rows - 1)) for j in range(count)]


def dot_products(b: Builder, left: Value, at: Value, matrix: Matrix, bases: list[Value]) -> Value:
    """The row of `left` that begins at `at` times those of the matrix that begin at `bases`, of
    which there are as many as a register has lanes."""
    k, lanes = matrix.columns, len(bases)
    whole = k // lanes * lanes
    sums = [b.const(0.0, f"vector<{lanes}xf32>")] * lanes

    def multiply(column: Value, sums: list[Value], mask: Value | None) -> list[Value]:
        factor = b.load(left, at + column, lanes, mask)
        return [
            multiply_add(b, factor, matrix.load_lanes(b, base, column, lanes, mask), total)
            for base, total in zip(bases, sums, strict=True)
        ]

    with b.loop(0, whole, lanes, sums) as loop:
        loop.carry(*multiply(loop.i, loop.args, None))
    with b.loop(whole, k, lanes, loop.results) as rest:
        rest.carry(*multiply(rest.i, rest.args, b.mask(lanes, k - rest.i)))
    return sum_lanes(b, rest.results)


def sum_lanes(b: Builder, vectors: Sequence[Value]) -> Value:
    """Lane j of the result is the sum over the lanes of `vectors[j]`; as many vectors as lanes."""
    lanes = vectors[0].lanes
    even, odd = range(0, 2 * lanes, 2), range(1, 2 * lanes, 2)
    while len(vectors) > 1:
        vectors = [
            b.shuffle(x, y, even) + b.shuffle(x, y, odd)
            for x, y in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


def copy_transposed(
    b: Builder, source: Matrix, block: Value, depth: tuple[Value, Value], column: Value, n: Value
) -> None:
    """Rows of an n x k matrix to columns of `[terms][48]`; the last row repeated behind the end."""
    begin, terms = depth
    lanes = source.lanes(b.isa)
    with b.loop(0, b.min(n - column, COLUMN_BLOCK), lanes) as columns:
        bases = row_bases(b, source, column + columns.i, lanes, n)
        whole = terms // lanes * lanes
        with b.loop(0, whole, lanes) as loop:
            rows = [source.load_lanes(b, base, begin + loop.i, lanes) for base in bases]
            for j, vector in enumerate(transpose(b, rows)):
                b.store(vector, block, (loop.i + j) * COLUMN_BLOCK + columns.i)
        with b.loop(whole, terms) as rest:
            for j, base in enumerate(bases):
                value = source.load(b, base, begin + rest.i)
                b.store(value, block, rest.i * COLUMN_BLOCK + columns.i + j)


def transpose(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """The transposes of square matrices side by side, by exchanging ever smaller off-diagonal
    blocks; as many lanes as rows are one matrix."""
    rows, lanes = list(rows), rows[0].lanes
    distance = len(rows) // 2
    while distance:
        low = [lane if not lane & distance else lane - distance + lanes for lane in range(lanes)]
        high = [lane + distance if not lane & distance else lane + lanes for lane in range(lanes)]
        for j in range(len(rows)):
            if not j & distance:
                upper, lower = rows[j], rows[j + distance]
                rows[j] = b.shuffle(upper, lower, low)
                rows[j + distance] = b.shuffle(upper, lower, high)
        distance //= 2
    return rows
