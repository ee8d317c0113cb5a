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

from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, Variant

from .cache_rows import CacheRows
from .matrix import Matrix, Stored, copy_transposed, dot_products, element_of, row_bases
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
    return [buffer("f32"), buffer(element_of(stored)), buffer("f32"), *[INDEX] * 5]


def _block(i: Value, m: Value, n: Value, rows: int, columns: int) -> tuple[Value, Value, Value]:
    """Batch, first row and first column of grid index `i`."""
    across, down = ceil_div(n, columns), ceil_div(m, rows)
    return i // across // down, i // across % down * rows, i % across * columns


# One row


def _emit_sum_of_rows(name: str, stored: Stored, module: Any, isa: Isa) -> None:
    """`y = sum over k of a[k] * b[k, :]`, 64 columns at a time.

    What lies behind the last column is masked: every column has its terms added in one order.
    """
    with function(module, isa, name, _arguments(stored)) as opened:
        b, i, left, right, y, m, n, k, group, pitch = opened
        batch, row, column = _block(i, m, n, 1, ONE_ROW_COLUMNS)
        a = (batch * m + row) * k
        matrix = Matrix.of(right, batch // group * pitch, n, stored)
        y_base = (batch * m + row) * n
        for p, total in enumerate(_sum_rows(b, left, a, k, matrix, column)):
            store_columns(b, total, y, y_base, column + p * PANEL, n)


def _sum_rows(
    b: Builder, left: Value, a: Value, k: Value, matrix: Matrix, column: Value
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
        matrix = Matrix.of(right, batch // group * pitch, k, stored)
        lanes = matrix.lanes(isa)
        with b.loop(column, b.min(column + ONE_ROW_COLUMNS, n), lanes) as columns:
            bases = row_bases(b, matrix, columns.i, lanes, n)
            total = dot_products(b, left, a_base, matrix, bases)
            b.store(total, y, y_base + columns.i, b.mask(lanes, n - columns.i))


# Many rows


def _emit_many_rows(name: str, transposed: bool, stored: Stored, module: Any, isa: Isa) -> None:
    """Blocks of 128 rows and 48 columns, 256 terms at a time; sums wait in `y` meanwhile."""
    copy = copy_transposed if transposed else _copy
    with function(module, isa, name, _arguments(stored)) as opened:
        b, i, left, right, y, m, n, k, group, pitch = opened
        block = b.alloca(DEPTH_BLOCK * COLUMN_BLOCK, "f32")
        batch, row, column = _block(i, m, n, ROW_BLOCK, COLUMN_BLOCK)
        first = batch * m
        rows = first + row, first + b.min(row + ROW_BLOCK, m)
        columns = column, b.min(column + COLUMN_BLOCK, n)
        width = k if transposed else n
        matrix = Matrix.of(right, batch // group * pitch, width, stored)
        product = Product(b, left, y, n, k)
        # A sum over no terms is zero too, so that there is one turn at least.
        with b.loop(0, b.max(k, 1), DEPTH_BLOCK) as depth:
            piece = depth.i, b.min(k - depth.i, DEPTH_BLOCK)
            copy(b, matrix, block, piece, column, n)
            known = b.select(depth.i == 0, b.index(0), n)
            product.add(rows, columns, piece, stack_block(b, block), known)


def _copy(
    b: Builder, source: Matrix, block: Value, depth: tuple[Value, Value], column: Value, n: Value
) -> None:
    """Rows of a k x n matrix to `[terms][48]`; columns behind the last one are not used."""
    begin, terms = depth
    with b.loop(0, terms) as loop:
        base = source.row(begin + loop.i)
        for p in range(TILE_PANELS):
            # A panel that lies behind the matrix has an empty mask.
            vector = source.panel(b, base, column + p * PANEL)
            b.store(vector, block, loop.i * COLUMN_BLOCK + p * PANEL)
