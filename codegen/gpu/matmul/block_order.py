"""The order in which the blocks of a matmul take their places in the output.

Blocks run in about the order of their numbers. In rows of the output, those in flight would share
activations and stream over all weights, again for every row of blocks. Here `group` rows of blocks
are taken together, column by column, so that the blocks in flight are a patch of the output, and
what they read for one step of K is little and stays in L2 (the threadblock swizzle of CUTLASS, the
grouped order of Triton's matmul):

    group 2, 3 x 4 blocks:    0  2  4  6
                              1  3  5  7
                              8  9 10 11
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

IN_FLIGHT = 256  # blocks that a large GPU runs at once: 108 to 132 multiprocessors, two on each


def group_rows(row_bits: int, column_bits: int) -> int:
    """Rows of blocks of a group, for blocks that read so many bits of rows and of columns for each
    code of K: a patch of IN_FLIGHT blocks then reads as much of the one as of the other."""
    return max(1, round(math.sqrt(IN_FLIGHT * column_bits / row_bits)))


def place(
    index: Any,
    blocks_m: Any,
    blocks_n: Any,
    group: int,
    smaller: Callable[[Any, Any], Any] = np.minimum,
) -> tuple[Any, Any]:
    """Row and column of block `index` of blocks_m x blocks_n: numbers, arrays, or values of a
    kernel, of which `smaller` gives the smaller one. The last group may have fewer rows."""
    first = index // (blocks_n * group) * group
    rows = smaller(blocks_m - first, group)
    inside = index - blocks_n * first
    return first + inside % rows, inside // rows


def index_of(row: Any, column: Any, blocks_m: Any, blocks_n: Any, group: int) -> Any:
    """The inverse of `place`."""
    first = row // group * group
    rows = np.minimum(blocks_m - first, group)
    return first * blocks_n + column * rows + row - first
