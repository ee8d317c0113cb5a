"""Stores of a tile kernel: only rows below m and columns below n."""

from __future__ import annotations

from collections.abc import Callable

from abqc.codegen.builder import Value

from .context import TileContext

Element = Callable[[int, int, int], Value]  # (row, column block, j) -> value to store


def store_tile(context: TileContext, plane: Value | int, element: Element) -> None:
    """Store 4-byte elements to the target, [planes][m][n], those of `plane` (i32).

    Where n is even, the two columns of a thread are one store of 8 bytes.
    """
    b, plan = context.b, context.plan
    pairs = [
        [[element(row, block, j) for j in range(2)] for block in range(plan.column_blocks)]
        for row in range(context.row_count)
    ]
    even = (context.n & 1) == 0

    def store_pair(line: Value, column: Value, pair: list[Value]) -> None:
        with b.when(column < context.n):
            b.store(b.vector(pair), line, column * 4)

    def store_each(line: Value, column: Value, pair: list[Value]) -> None:
        for j, value in enumerate(pair):
            with b.when(column + j < context.n):
                b.store(value, line, column * 4 + 4 * j)

    with b.when(even):
        _store_rows(context, plane, pairs, store_pair)
    with b.when(even == 0):
        _store_rows(context, plane, pairs, store_each)


def _store_rows(
    context: TileContext,
    plane: Value | int,
    pairs: list[list[list[Value]]],
    store: Callable[[Value, Value, list[Value]], None],
) -> None:
    b, m = context.b, context.m
    for i, blocks in enumerate(pairs):
        row = context.row(i)
        with b.when(row < m):
            line = b.wide(row)
            if isinstance(plane, Value):
                line = line + b.wide(plane) * b.wide(m)
            start = b.at(context.target, line * b.wide(context.n) * 4)
            for block, pair in enumerate(blocks):
                store(start, context.column(block), pair)


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
