"""Which rows and columns of a product a grid index does."""

from __future__ import annotations

from typing import Protocol

from abqc.codegen.builder import Builder, Value

Span = tuple[Value, Value]  # begin, end


class Blocks(Protocol):
    """What says so: a product's kernel, or its schedule."""

    @property
    def block(self) -> tuple[int, ...]:
        """Rows and columns of a block."""
        ...

    @property
    def by_columns(self) -> bool:
        """Whether the next grid index does a neighbour in the same columns, or in the same rows."""
        ...


def grid_block(b: Builder, blocks: Blocks, i: Value, m: Value, n: Value) -> tuple[Span, Span]:
    """The rows and columns that grid index `i` does, of `m` and `n`."""
    height, width = blocks.block
    if blocks.by_columns:
        down = (m + (height - 1)) // height
        row, column = i % down * height, i // down * width
    else:
        across = (n + (width - 1)) // width
        row, column = i // across * height, i % across * width
    return (row, b.min(row + height, m)), (column, b.min(column + width, n))
