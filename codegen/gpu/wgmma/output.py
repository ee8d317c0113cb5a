"""Stores of a kernel by wgmma: only rows below m and columns below n.

Eight lanes store eight neighbouring columns of a row, a whole sector of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from abqc.codegen.builder import Value

from ..weights.layout import BLOCK_COLUMNS
from .context import BlockContext, WgmmaContext

RowValues = Callable[[int, int], list[Value]]  # (j, e) -> what elements of a row need
Element = Callable[[int, int, int, int, list[Value]], Value]  # (half, i, j, e, these) -> an element


def store_block(
    context: BlockContext, plane: Value | int, row_values: RowValues, element: Element
) -> None:
    """Store 4-byte elements to the target, [planes][m][n], those of `plane` (i32).

    Row by row, so that values of a few rows are in registers at a time."""
    b, schedule = context.b, context.plan.schedule
    rows_end = context.first_row + schedule.block_m
    columns_end = context.column(context.plan.halves - 1, 1) + BLOCK_COLUMNS
    whole = (rows_end <= context.m) & (columns_end <= context.n)
    with b.when(whole):
        _store(context, plane, row_values, element, checked=False)
    with b.when(whole == 0):
        _store(context, plane, row_values, element, checked=True)


def store_sums(context: BlockContext, plane: Value | int, values: list[Value]) -> None:
    """Store accumulators as they are."""
    store_block(
        context,
        plane,
        lambda _j, _e: [],
        lambda half, i, j, e, _: values[context.accumulator(half, i, j, e)],
    )


def _store(
    context: BlockContext,
    plane: Value | int,
    row_values: RowValues,
    element: Element,
    *,
    checked: bool,
) -> None:
    b = context.b
    line = b.wide(context.row(0, 0))
    if isinstance(plane, Value):
        line = line + b.wide(plane) * b.wide(context.m)
    start = b.at(context.target, line * b.wide(context.n) * 4)
    step = b.wide(context.n) * 4
    for j in range(context.row_pairs):
        for e in range(2):
            at = b.at(start, step * (8 * j + e))
            with _where(context, context.row(j, e) < context.m if checked else None):
                values = row_values(j, e)
                for half, i in context.places():
                    column = context.column(half, i)
                    with _where(context, column < context.n if checked else None):
                        b.store(element(half, i, j, e, values), at, column * 4)


def _where(context: BlockContext, condition: Value | None) -> AbstractContextManager[None]:
    return nullcontext() if condition is None else context.b.when(condition)


def load_bias(context: WgmmaContext) -> list[Value]:
    """The bias of the thread's columns; beyond the last column, that one's."""
    b = context.b
    return [
        b.load(context.bias, "f32", b.min(context.column(*place), context.n - 1) * 4, cache="nc")
        for place in context.places()
    ]
