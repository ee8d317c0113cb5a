"""Stores of a tile kernel: only rows below m and columns below n."""

from __future__ import annotations

from collections.abc import Callable

from ..builder import Value
from .tile_context import TileContext

Element = Callable[[int, int, int], Value]  # (row, column block, j) -> value to store


def store_tile(context: TileContext, plane: Value | int, element: Element) -> None:
    """Store 4-byte elements to the target, [planes][m][n], those of `plane` (i32)."""
    b, m, n = context.b, context.m, context.n
    for i in range(context.row_count):
        row = context.row(i)
        with b.when(row < m):
            line = b.wide(row)
            if not (isinstance(plane, int) and plane == 0):
                line = line + b.wide(b.index(plane)) * b.wide(m)
            start = b.at(context.target, line * b.wide(n) * 4)
            for block in range(context.plan.column_blocks):
                for j in range(2):
                    column = context.column(block) + j
                    with b.when(column < n):
                        b.store(element(i, block, j), start, column * 4)


def load_bias(context: TileContext) -> list[list[Value]]:
    """The bias of the thread's two columns in every block; beyond the last column, that one's."""
    b = context.b
    last = context.n - 1
    return [
        [
            b.load(context.bias, "f32", b.min(context.column(block) + j, last) * 4, cache="nc")
            for j in range(2)
        ]
        for block in range(context.plan.column_blocks)
    ]
