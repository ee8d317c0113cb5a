"""Rows of f32 in chunks of 4 columns, whatever their number."""

from __future__ import annotations

from collections.abc import Sequence

from abqc.codegen.builder import Value

from ..builder import GpuBuilder


def load4(b: GpuBuilder, pointer: Value, column: Value, columns: int) -> list[Value]:
    """Elements column .. column + 4 of the row of `columns` at `pointer`; 0 past its end.

    `column` (i32) is a multiple of 4.
    """
    zero = b.const(0.0, "f32")
    if columns % 4 == 0:
        zeros = [zero] * 4
        return b.either(
            column < columns,
            ["f32"] * 4,
            lambda: b.lanes_of(b.load(pointer, "vector<4xf32>", column * 4)),
            lambda: zeros,
        )
    values = []
    for i in range(4):
        at = column + i
        load = b.either(
            at < columns,
            ["f32"],
            lambda at=at: [b.load(pointer, "f32", at * 4)],  # type: ignore[misc]
            lambda: [zero],
        )
        values += load
    return values


def store4(
    b: GpuBuilder, values: Sequence[Value], pointer: Value, column: Value, columns: int
) -> None:
    """Store 4 elements from `column` on, but those past the row's end."""
    if columns % 4 == 0:
        with b.when(column < columns):
            b.store(b.vector(values), pointer, column * 4)
        return
    for i, value in enumerate(values):
        with b.when(column + i < columns):
            b.store(value, pointer, (column + i) * 4)
