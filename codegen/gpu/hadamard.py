"""Hadamard transforms of rows on the device, as `dialects.hadamard` defines them.

A block of base * power elements is transformed in three parts, in this order: butterflies within
the four elements of a lane (distances 1, 2), among the lanes of a warp by exchanges (4 .. 64), and
for distances from 128 on, and for the base matrix, through shared memory. There, elements are
strided columns: the second part leaves column c of chunk r at place (r, c), and whatever remains is
the same for all columns. Where shared memory holds no whole block, the columns are taken in slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ...dialects.hadamard import base_matrix, split_block
from ..builder import Value
from .arch import WARP
from .builder import GpuBuilder
from .row_threads import CHUNK, PER_LANE, Chunk, Place, RowShape, load_four

RADIX = 16  # strided elements that a thread transforms at a time


@dataclass(frozen=True)
class Rotation:
    """Rows of `shape` in blocks of `block` elements. `slices` parts of each block's columns, and
    `blocks` blocks of them, are in shared memory at a time."""

    shape: RowShape
    block: int
    blocks: int
    slices: int
    staged: bool  # rows with padding between groups are read from shared memory by position

    @staticmethod
    def of(shape: RowShape, block: int, shared: int) -> Rotation:
        """The rotation that needs at most `shared` bytes of shared memory."""
        base, power = split_block(block)
        assert shape.k % block == 0, f"blocks of {block} do not divide a row of {shape.k}"
        floats = shared // (4 * shape.threads.rows)
        staged = not shape.dense
        if staged:
            assert shape.threads.spans == 1 and shape.k <= floats, "row too long to be staged"
            return Rotation(shape, block, shape.k // block, 1, staged)
        in_span = -(-min(shape.k, shape.threads.span) // block)
        if block <= floats or (base == 1 and power <= CHUNK):
            return Rotation(shape, block, min(in_span, max(1, floats // block)), 1, staged)
        assert power >= CHUNK, f"shared memory has no place for a block of {block}"
        slices = 2
        while block > floats * slices:
            slices *= 2
        return Rotation(shape, block, 1, slices, staged)
