"""Products of two activations in f32: `y[b] = a[b] * B[b / group]`, as attention needs them.

    kernel (i, a: memref<?xf32>, b: memref<?xELEMENT>, y: memref<?xf32>, m, n, k, group,
            pitch: index)

ELEMENT is f32, f16 or bf16: a cache may be stored in 16 bits. Or it is i8: rows of a quantized
cache (cache_rows.py), which are decoded on their way to registers; `pitch` then counts bytes. `a`
is batch x m x k, `y` batch x m x n, both contiguous. `b` is `ceil(batch / group)` matrices, k x n,
or n x k where `transposed`; `group` consecutive matrices of `a` share one of them (grouped queries;
1 where each has its own); they begin `pitch` elements apart (k * n where they are packed, more in a
cache with room to grow). All sizes are known at run time only. The grid is
`kernel.grid(batch, m, n)`, its index running over columns first, then rows, then batches.

With one row every element of `b` is used once, so that it is read in place and in order. With more,
a block of 256 x 48 elements is copied, transposed if need be, to the stack and shared by up to
128 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, Variant
from abqc.dialects.formats import Float

from .cache_rows import CacheRows
from .tile import (
    COLUMN_BLOCK,
    DEPTH_BLOCK,
    PANEL,
    TILE_PANELS,
    Product,
    broadcast,
    ceil_div,
    multiply_add,
    stack_block,
    store_columns,
)

ROW_BLOCK = 128
ONE_ROW_PANELS = 4
ONE_ROW_COLUMNS = ONE_ROW_PANELS * PANEL


Stored = Float | CacheRows  # how the second operand is stored


def batch_matmul_kernels(transposed: bool, stored: Stored = "f32") -> tuple[Variant, ...]:
    """Kernels by ranges of m; `transposed` says that `b` is n x k."""
    name = "batch_matmul_transposed" if transposed else "batch_matmul"
    if stored != "f32":
        name += f"_{stored.name if isinstance(stored, CacheRows) else stored}"
    emit_one = _emit_dot_products if transposed else _emit_sum_of_rows
    one = Kernel(
        f"{name}_one_row",
        (1, 1, ONE_ROW_COLUMNS),
        partial(emit_one, f"{name}_one_row", stored),
    )
    many = Kernel(
        name, (1, ROW_BLOCK, COLUMN_BLOCK), partial(_emit_many_rows, name, transposed, stored)
    )
    return (Variant(one, 1, 1), Variant(many, 2, None))


def _arguments(stored: Stored) -> list[Any]:
    if isinstance(stored, CacheRows):
        element = "i8"
    else:
        element = stored if stored == "f32" else "i16"  # LLVM has no masked loads of bf16
    return [buffer("f32"), buffer(element), buffer("f32"), *[INDEX] * 5]


def _block(i: Value, m: Value, n: Value, rows: int, columns: int) -> tuple[Value, Value, Value]:
    """Batch, first row and first column of grid index `i`."""
    across, down = ceil_div(n, columns), ceil_div(m, rows)
    return i // across // down, i // across % down * rows, i % across * columns


@dataclass(frozen=True)
class _Matrix:
    """A row-major matrix of `columns` columns that begins at element `base` of `data`; `pitch`
    elements are between rows. Elements are bytes where rows are those of a quantized cache."""

    data: Value
    base: Value
    columns: Value
    pitch: Value | int
    stored: Stored = "f32"

    @staticmethod
    def of(data: Value, base: Value, columns: Value, stored: Stored) -> _Matrix:
        pitch = stored.row_bytes if isinstance(stored, CacheRows) else columns
        return _Matrix(data, base, columns, pitch, stored)

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


# One row


def _emit_sum_of_rows(name: str, stored: Stored, module: Any, isa: Isa) -> None:
    """`y = sum over k of a[k] * b[k, :]`, 64 columns at a time.

    What lies behind the last column is masked: every column has its terms added in one order.
    """
    with function(module, isa, name, _arguments(stored)) as opened:
        b, i, left, right, y, m, n, k, group, pitch = opened
        batch, row, column = _block(i, m, n, 1, ONE_ROW_COLUMNS)
        a = (batch * m + row) * k
        matrix = _Matrix.of(right, batch // group * pitch, n, stored)
        y_base = (batch * m + row) * n
        for p, total in enumerate(_sum_rows(b, left, a, k, matrix, column)):
            store_columns(b, total, y, y_base, column + p * PANEL, n)


def _sum_rows(
    b: Builder, left: Value, a: Value, k: Value, matrix: _Matrix, column: Value
) -> list[Value]:
    """The sums of the panels that begin at `column`; the row of `left` begins at `a`."""
    sums = [b.const(0.0, f"vector<{PANEL}xf32>")] * ONE_ROW_PANELS
    with b.loop(0, k, 1, sums) as loop:
        factor = broadcast(b, left, a + loop.i)
        row = matrix.row(loop.i)
        vectors = [matrix.panel(b, row, column + p * PANEL) for p in range(ONE_ROW_PANELS)]
        loop.carry(
            *(
                multiply_add(b, factor, vector, total)
                for vector, total in zip(vectors, loop.args, strict=True)
            )
        )
    return loop.results


def _emit_dot_products(name: str, stored: Stored, module: Any, isa: Isa) -> None:
    """`y[j] = a . b[j, :]`: as many dot products at a time as a register has lanes."""
    with function(module, isa, name, _arguments(stored)) as opened:
        b, i, left, right, y, m, n, k, group, pitch = opened
        batch, row, column = _block(i, m, n, 1, ONE_ROW_COLUMNS)
        a_base, y_base = (batch * m + row) * k, (batch * m + row) * n
        matrix = _Matrix.of(right, batch // group * pitch, k, stored)
        lanes = matrix.lanes(isa)
        with b.loop(column, b.min(column + ONE_ROW_COLUMNS, n), lanes) as columns:
            bases = _row_bases(b, matrix, columns.i, lanes, n)
            whole = k // lanes * lanes
            zeros = [b.const(0.0, f"vector<{lanes}xf32>")] * lanes
            with b.loop(0, whole, lanes, zeros) as loop:
                factor = b.load(left, a_base + loop.i, lanes)
                sums = [
                    multiply_add(b, factor, matrix.load_lanes(b, base, loop.i, lanes), total)
                    for base, total in zip(bases, loop.args, strict=True)
                ]
                loop.carry(*sums)
            with b.loop(whole, k, lanes, loop.results) as rest:
                mask = b.mask(lanes, k - rest.i)
                factor = b.load(left, a_base + rest.i, lanes, mask)
                sums = [
                    multiply_add(b, factor, matrix.load_lanes(b, base, rest.i, lanes, mask), total)
                    for base, total in zip(bases, rest.args, strict=True)
                ]
                rest.carry(*sums)
            total = sum_lanes(b, rest.results)
            b.store(total, y, y_base + columns.i, b.mask(lanes, n - columns.i))


def _row_bases(b: Builder, matrix: _Matrix, row: Value, count: int, rows: Value) -> list[Value]:
    """Where rows `row` .. `row + count` begin; the last of all `rows` for those behind it."""
    return [matrix.row(b.min(row + j, rows - 1)) for j in range(count)]


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


# Many rows


def _emit_many_rows(name: str, transposed: bool, stored: Stored, module: Any, isa: Isa) -> None:
    """Blocks of 128 rows and 48 columns, 256 terms at a time; sums wait in `y` meanwhile."""
    copy = _copy_transposed if transposed else _copy
    with function(module, isa, name, _arguments(stored)) as opened:
        b, i, left, right, y, m, n, k, group, pitch = opened
        block = b.alloca(DEPTH_BLOCK * COLUMN_BLOCK, "f32")
        batch, row, column = _block(i, m, n, ROW_BLOCK, COLUMN_BLOCK)
        first = batch * m
        rows = first + row, first + b.min(row + ROW_BLOCK, m)
        columns = column, b.min(column + COLUMN_BLOCK, n)
        width = k if transposed else n
        matrix = _Matrix.of(right, batch // group * pitch, width, stored)
        product = Product(b, left, y, n, k)
        # A sum over no terms is zero too, so that there is one turn at least.
        with b.loop(0, b.max(k, 1), DEPTH_BLOCK) as depth:
            piece = depth.i, b.min(k - depth.i, DEPTH_BLOCK)
            copy(b, matrix, block, piece, column, n)
            known = b.select(depth.i == 0, b.index(0), n)
            product.add(rows, columns, piece, stack_block(b, block), known)


def _copy(
    b: Builder, source: _Matrix, block: Value, depth: tuple[Value, Value], column: Value, n: Value
) -> None:
    """Rows of a k x n matrix to `[terms][48]`; columns behind the last one are not used."""
    begin, terms = depth
    with b.loop(0, terms) as loop:
        base = source.row(begin + loop.i)
        for p in range(TILE_PANELS):
            # A panel that lies behind the matrix has an empty mask.
            vector = source.panel(b, base, column + p * PANEL)
            b.store(vector, block, loop.i * COLUMN_BLOCK + p * PANEL)


def _copy_transposed(
    b: Builder, source: _Matrix, block: Value, depth: tuple[Value, Value], column: Value, n: Value
) -> None:
    """Rows of an n x k matrix to columns of `[terms][48]`; the last row repeated behind the end."""
    begin, terms = depth
    lanes = source.lanes(b.isa)
    with b.loop(0, b.min(n - column, COLUMN_BLOCK), lanes) as columns:
        bases = _row_bases(b, source, column + columns.i, lanes, n)
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
    """The transpose of a square matrix, by exchanging ever smaller off-diagonal blocks."""
    rows, lanes = list(rows), len(rows)
    distance = lanes // 2
    while distance:
        low = [lane if not lane & distance else lane - distance + lanes for lane in range(lanes)]
        high = [lane + distance if not lane & distance else lane + lanes for lane in range(lanes)]
        for j in range(lanes):
            if not j & distance:
                upper, lower = rows[j], rows[j + distance]
                rows[j] = b.shuffle(upper, lower, low)
                rows[j + distance] = b.shuffle(upper, lower, high)
        distance //= 2
    return rows
