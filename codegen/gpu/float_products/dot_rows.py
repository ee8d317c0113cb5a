"""Dot products of one or a few f32 rows with rows of a matrix that is read once.

Eight lanes share a row of the matrix: each takes 16 bytes of every 128. Their partial sums are
added by a butterfly, in an order that does not depend on scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.codegen.builder import Value

from ..arch import WARP
from ..builder import GpuBuilder

LANES = 8  # that share a row of the matrix
UNROLL = 4  # loads in flight of a thread
THREADS = 128
COLUMNS = THREADS // LANES  # of a block

# The values of the matrix's row, and of each x row, from term `at` on: as many on each side.
Load = Callable[[Value], tuple[list[Value], list[list[Value]]]]


def lane_place(b: GpuBuilder) -> tuple[Value, Value]:
    """The thread's row of the matrix among those of the block, and its lane among eight."""
    return b.thread // LANES, b.thread % LANES


def dot_products(b: GpuBuilder, k: Value | int, rows: int, width: int, load: Load) -> list[Value]:
    """Sums over `k` terms for each of `rows` rows of x, in all eight lanes.

    `load(at)` gives `width` terms; it is called where all of them exist, but for the last
    `k % width`, which must be 0.
    """
    lane = b.thread % LANES
    step = LANES * width
    zeros = [b.const(0.0, "f32")] * rows
    end = b.index(k)
    whole = end - end % (step * UNROLL)
    with b.loop(0, whole, step * UNROLL, zeros) as loop:
        at = loop.i + lane * width
        loaded = [load(at + step * j) for j in range(UNROLL)]
        loop.carry(*_accumulate(b, loaded, loop.args))
    with b.loop(whole + lane * width, end, step, loop.results) as rest:
        rest.carry(*_accumulate(b, [load(rest.i)], rest.args))
    return [b.warp_sum(total, LANES) for total in rest.results]


def _accumulate(
    b: GpuBuilder, loaded: Sequence[tuple[list[Value], list[list[Value]]]], sums: Sequence[Value]
) -> list[Value]:
    result = list(sums)
    for weights, rows in loaded:
        for r, values in enumerate(rows):
            for weight, value in zip(weights, values, strict=True):
                result[r] = b.fma(weight, value, result[r])
    return result


assert WARP % LANES == 0
