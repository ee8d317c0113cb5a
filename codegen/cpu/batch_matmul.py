"""Products of two activations in f32: `y[b] = a[b] * B[b / group]`, as attention needs them.

    kernel (i, a: memref<?xf32>, b: memref<?xELEMENT>, y: memref<?xf32>, m, n, k, group,
            pitch: index)

ELEMENT is f32, f16 or bf16: a cache may be stored in 16 bits. `a` is batch x m x k, `y` batch x m
x n, both contiguous. `b` is `ceil(batch / group)` matrices, k x n, or n x k where `transposed`;
`group` consecutive matrices of `a` share one of them (grouped queries; 1 where each has its own);
they begin `pitch` elements apart (k * n where they are packed, more in a cache with room to grow).
All sizes are known at run time only. The grid is `kernel.grid(batch, m, n)`, its index running over
columns first, then rows, then batches.

With one row every element of `b` is used once, so that it is read in place and in order. With more,
a block of 256 x 48 elements is copied, transposed if need be, to the stack and shared by up to
128 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...dialects.formats import Float
from ..builder import INDEX, Builder, Value, buffer, function
from ..isa import Isa
from ..strategy import Kernel, Variant
from .float_tile import (
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


def batch_matmul_kernels(transposed: bool, element: Float = "f32") -> tuple[Variant, ...]:
    """Kernels by ranges of m; `transposed` says that `b` is n x k, of type `element`."""
    name = "batch_matmul_transposed" if transposed else "batch_matmul"
    if element != "f32":
        name += f"_{element}"
    emit_one = _emit_dot_products if transposed else _emit_sum_of_rows
    one = Kernel(
        f"{name}_one_row",
        (1, 1, ONE_ROW_COLUMNS),
        partial(emit_one, f"{name}_one_row", element),
    )
    many = Kernel(
        name, (1, ROW_BLOCK, COLUMN_BLOCK), partial(_emit_many_rows, name, transposed, element)
    )
    return (Variant(one, 1, 1), Variant(many, 2, None))


def _arguments(element: Float) -> list[Any]:
    stored = element if element == "f32" else "i16"  # LLVM has no masked loads of bf16
    return [buffer("f32"), buffer(stored), buffer("f32"), *[INDEX] * 5]


def _block(i: Value, m: Value, n: Value, rows: int, columns: int) -> tuple[Value, Value, Value]:
    """Batch, first row and first column of grid index `i`."""
    across, down = ceil_div(n, columns), ceil_div(m, rows)
    return i // across // down, i // across % down * rows, i % across * columns


@dataclass(frozen=True)
class _Matrix:
    """A row-major matrix of `columns` columns that begins at element `base` of `data`."""

    data: Value
    base: Value
    columns: Value
    element: Float = "f32"

    def load(self, b: Builder, at: Value, lanes: int = 0, mask: Value | None = None) -> Value:
        """Element `at` of the buffer, or `lanes` from there on, as f32; 0 off the mask."""
        value = b.load(self.data, at, lanes, mask)
        if self.element == "f32":
            return value
        type_ = self.element if not lanes else f"vector<{lanes}x{self.element}>"
        return b.extend(b.bitcast(value, type_))

    def columns_from(self, b: Builder, base: Value, column: Value) -> Value:
        """Columns `column` .. `column` + 16 of the row at `base`; zeros behind the last one."""
        return self.load(b, column + base, PANEL, b.mask(PANEL, self.columns - column))

    def row(self, i: Value) -> Value:
        """The element where row `i` begins."""
        return self.base + i * self.columns


# One row


def _emit_sum_of_rows(name: str, element: Float, module: Any, isa: Isa) -> None:
    """`y = sum over k of a[k] * b[k, :]`, 64 columns at a time.

    What lies behind the last column is masked: every column has its terms added in one order.
    """
    with function(module, isa, name, _arguments(element)) as opened:
        b, i, left, right, y, m, n, k, group, pitch = opened
        batch, row, column = _block(i, m, n, 1, ONE_ROW_COLUMNS)
        a = _Matrix(left, (batch * m + row) * k, k)
        matrix = _Matrix(right, batch // group * pitch, n, element)
        y_base = (batch * m + row) * n
        for p, total in enumerate(_sum_rows(b, a, matrix, column)):
            store_columns(b, total, y, y_base, column + p * PANEL, n)


def _sum_rows(b: Builder, a: _Matrix, matrix: _Matrix, column: Value) -> list[Value]:
    """The sums of the panels that begin at `column`."""
    sums = [b.const(0.0, f"vector<{PANEL}xf32>")] * ONE_ROW_PANELS
    with b.loop(0, a.columns, 1, sums) as loop:
        factor = broadcast(b, a.data, a.base + loop.i)
        row = matrix.row(loop.i)
        vectors = [matrix.columns_from(b, row, column + p * PANEL) for p in range(ONE_ROW_PANELS)]
        loop.carry(
            *(
                multiply_add(b, factor, vector, total)
                for vector, total in zip(vectors, loop.args, strict=True)
            )
        )
    return loop.results


def _emit_dot_products(name: str, element: Float, module: Any, isa: Isa) -> None:
    """`y[j] = a . b[j, :]`: as many dot products at a time as a register has lanes."""
    lanes = isa.lanes(32)
    with function(module, isa, name, _arguments(element)) as opened:
        b, i, left, right, y, m, n, k, group, pitch = opened
        batch, row, column = _block(i, m, n, 1, ONE_ROW_COLUMNS)
        a_base, y_base = (batch * m + row) * k, (batch * m + row) * n
        matrix = _Matrix(right, batch // group * pitch, k, element)
        with b.loop(column, b.min(column + ONE_ROW_COLUMNS, n), lanes) as columns:
            bases = _row_bases(b, matrix, columns.i, lanes, n)
            whole = k // lanes * lanes
            zeros = [b.const(0.0, f"vector<{lanes}xf32>")] * lanes
            with b.loop(0, whole, lanes, zeros) as loop:
                factor = b.load(left, a_base + loop.i, lanes)
                sums = [
                    multiply_add(b, factor, matrix.load(b, base + loop.i, lanes), total)
                    for base, total in zip(bases, loop.args, strict=True)
                ]
                loop.carry(*sums)
            with b.loop(whole, k, lanes, loop.results) as rest:
                mask = b.mask(lanes, k - rest.i)
                factor = b.load(left, a_base + rest.i, lanes, mask)
                sums = [
                    multiply_add(b, factor, matrix.load(b, base + rest.i, lanes, mask), total)
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


def _emit_many_rows(name: str, transposed: bool, element: Float, module: Any, isa: Isa) -> None:
    """Blocks of 128 rows and 48 columns, 256 terms at a time; sums wait in `y` meanwhile."""
    copy = _copy_transposed if transposed else _copy
    with function(module, isa, name, _arguments(element)) as opened:
        b, i, left, right, y, m, n, k, group, pitch = opened
        block = b.alloca(DEPTH_BLOCK * COLUMN_BLOCK, "f32")
        batch, row, column = _block(i, m, n, ROW_BLOCK, COLUMN_BLOCK)
        first = batch * m
        rows = first + row, first + b.min(row + ROW_BLOCK, m)
        columns = column, b.min(column + COLUMN_BLOCK, n)
        matrix = _Matrix(right, batch // group * pitch, k if transposed else n, element)
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
    """Rows of a k x n matrix to `[terms][48]`, filled up with zeros."""
    begin, terms = depth
    with b.loop(0, terms) as loop:
        base = source.row(begin + loop.i)
        for p in range(TILE_PANELS):
            # A panel that lies behind the matrix has an empty mask.
            vector = source.columns_from(b, base, column + p * PANEL)
            b.store(vector, block, loop.i * COLUMN_BLOCK + p * PANEL)


def _copy_transposed(
    b: Builder, source: _Matrix, block: Value, depth: tuple[Value, Value], column: Value, n: Value
) -> None:
    """Rows of an n x k matrix to columns of `[terms][48]`; the last row repeated behind the end."""
    begin, terms = depth
    lanes = b.isa.lanes(32)
    with b.loop(0, b.min(n - column, COLUMN_BLOCK), lanes) as columns:
        bases = [base + begin for base in _row_bases(b, source, column + columns.i, lanes, n)]
        whole = terms // lanes * lanes
        with b.loop(0, whole, lanes) as loop:
            rows = [source.load(b, base + loop.i, lanes) for base in bases]
            for j, vector in enumerate(transpose(b, rows)):
                b.store(vector, block, (loop.i + j) * COLUMN_BLOCK + columns.i)
        with b.loop(whole, terms) as rest:
            for j, base in enumerate(bases):
                value = source.load(b, base + rest.i)
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
