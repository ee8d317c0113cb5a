"""Hadamard transforms of rows, as `dialects.hadamard` defines them, in vectors.

`emit_transform` works in place, inside any kernel; `hadamard_kernel` is a kernel of its own:

    kernel (i, x: memref<?xf32>, y: memref<?xf32>, m: index)      rows of x, m x k, to rows of y

A block of base * 2^k elements takes few passes over memory: the first does all butterflies inside
runs of some vectors, further ones those between vectors that lie apart, the last one multiplies by
the base matrix across the 2^k columns and scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...dialects.hadamard import base_matrix, split_block
from ..builder import INDEX, Builder, Value, buffer, function
from ..isa import Isa
from ..strategy import Kernel

ROWS = 4  # of one grid index


def hadamard_kernel(k: int, block: int) -> Kernel:
    """Rows of `k` elements, transformed in blocks of `block`, which divides k."""
    name = f"hadamard_k{k}_b{block}"
    return Kernel(name, (ROWS,), partial(_emit, name, k, block))


def _emit(name: str, k: int, block: int, module: Any, isa: Isa) -> None:
    with function(module, isa, name, [buffer("f32"), buffer("f32"), INDEX]) as (b, i, x, y, m):
        first = i * ROWS
        with b.loop(first, b.min(first + ROWS, m)) as rows:
            base = rows.i * k
            with b.loop(0, k) as copy:
                b.store(b.load(x, base + copy.i), y, base + copy.i)
            emit_transform(b, isa, y, k, block, base)


def emit_transform(
    b: Builder, isa: Isa, row: Value, k: int, block: int, begin: Value | int = 0
) -> None:
    """Transform `k` elements of `row` (memref<?xf32>) from `begin` on, in place.

    Every run of `block` elements becomes H x / sqrt(block). `block` divides k and is a size that
    `dialects.hadamard` supports (ValueError otherwise).
    """
    base, power = split_block(block)
    if k % block:
        raise ValueError(f"blocks of {block} do not divide a row of {k}")
    norm = 1 / math.sqrt(block)
    with b.loop(0, k, block) as blocks:
        start = blocks.i + begin
        _butterflies(b, isa, row, start, (base, power), norm if base == 1 else None)
        if base > 1:
            _across_runs(b, isa, row, start, (base, power), norm)


def _butterflies(
    b: Builder, isa: Isa, row: Value, start: Value, shape: tuple[int, int], norm: float | None
) -> None:
    """Multiply each of `base` runs of `power` elements by Sylvester's matrix, and by `norm`."""
    base, power = shape
    lanes = min(isa.lanes(32), power)
    radix = isa.registers // 2  # vectors at a time; the other registers hold differences
    count = min(radix, power // lanes)
    reach = count * lanes

    def inside(vectors: list[Value]) -> list[Value]:
        return _between([_within(b, vector) for vector in vectors])

    with b.loop(0, base * power, reach) as runs:
        places = [start + runs.i + j * lanes for j in range(count)]
        _pass(b, row, places, lanes, inside, norm if reach == power else None)
    while reach < power:
        count = min(radix, power // reach)
        last = reach * count == power
        with b.loop(0, base * power, reach * count) as outer, b.loop(0, reach, lanes) as inner:
            places = [start + outer.i + inner.i + j * reach for j in range(count)]
            _pass(b, row, places, lanes, _between, norm if last else None)
        reach *= count


def _pass(
    b: Builder,
    row: Value,
    places: Sequence[Value],
    lanes: int,
    transform: Callable[[list[Value]], list[Value]],
    norm: float | None,
) -> None:
    """Load a vector at each place, transform them, scale if asked, and store them back."""
    vectors = transform([b.load(row, place, lanes) for place in places])
    for vector, place in zip(vectors, places, strict=True):
        b.store(vector if norm is None else vector * norm, row, place)


def _within(b: Builder, vector: Value) -> Value:
    """Butterflies among the lanes of one vector: (x, y) to (x + y, x - y)."""
    lanes, distance = vector.lanes, 1
    while distance < lanes:
        partner = b.shuffle(vector, vector, [lane ^ distance for lane in range(lanes)])
        signs = b.consts([-1.0 if lane & distance else 1.0 for lane in range(lanes)], "f32")
        # A product with +-1 is exact, so that fusing it or not is the same.
        vector = b.fma(vector, signs, partner) if b.isa.fma else vector * signs + partner
        distance *= 2
    return vector


def _between(vectors: list[Value]) -> list[Value]:
    """Butterflies among a power of two of vectors, neighbours first."""
    result, distance = list(vectors), 1
    while distance < len(result):
        for j in range(len(result)):
            if not j & distance:
                x, y = result[j], result[j + distance]
                result[j], result[j + distance] = x + y, x - y
        distance *= 2
    return result


def _across_runs(
    b: Builder, isa: Isa, row: Value, start: Value, shape: tuple[int, int], norm: float
) -> None:
    """Multiply by the base matrix: element j of all runs at once, a vector of j at a time."""
    base, power = shape
    lanes = min(isa.lanes(32), power)
    with b.loop(0, power, lanes) as columns:
        places = [start + columns.i + j * power for j in range(base)]
        _pass(b, row, places, lanes, partial(_multiply_base, base), norm)


def _multiply_base(base: int, vectors: list[Value]) -> list[Value]:
    """`H_base` times a list of vectors, by additions and subtractions."""
    return [_signed_sum(vectors, signs) for signs in base_matrix(base).tolist()]


def _signed_sum(vectors: Sequence[Value], signs: Sequence[int]) -> Value:
    total = vectors[0] if signs[0] > 0 else -vectors[0]
    for vector, sign in zip(vectors[1:], signs[1:], strict=True):
        total = total + vector if sign > 0 else total - vector
    return total
