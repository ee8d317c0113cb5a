"""Hadamard transforms of rows, as `dialects.hadamard` defines them, in vectors.

`emit_transform` works in place, inside any kernel; `hadamard_kernel` is a kernel of its own:

    kernel (i, x: memref<?xf32>, y: memref<?xf32>, m: index)      rows of x, m x k, to rows of y

A block of bases * 2^k elements takes few passes over memory: the first does all butterflies inside
runs of some vectors, further ones those between vectors that lie apart; then one for each base
multiplies by its matrix across the columns inside of it, and the last of all scales. Small bases
are additions in registers; larger ones are products with a table of +-1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.hadamard import SMALL_BASE, split_block
from abqc.dialects.hadamard_bases import base_matrix

from .sign_table import sign_table

ROWS = 4  # of one grid index
MAX_LANES = 16  # of f32 in a vector, in any instruction set


def hadamard_kernel(k: int, block: int) -> Kernel:
    """Rows of `k` elements, transformed in blocks of `block`, which divides k."""
    name = f"hadamard_k{k}_b{block}"
    return Kernel(name, (ROWS,), partial(_emit, name, k, block))


def _emit(name: str, k: int, block: int, module: Any, isa: Isa) -> None:
    with function(module, isa, name, [buffer("f32"), buffer("f32"), INDEX]) as (b, i, x, y, m):
        first = i * ROWS
        scratch = scratch_of(b, block)
        with b.loop(first, b.min(first + ROWS, m)) as rows:
            base = rows.i * k
            with b.loop(0, k) as copy:
                b.store(b.load(x, base + copy.i), y, base + copy.i)
            emit_transform(b, isa, y, k, block, base, scratch)


def scratch_of(b: Builder, block: int) -> Value | None:
    """The buffer on the stack that transforming blocks needs; call it outside of loops."""
    bases, _ = split_block(block)
    largest = max(bases, default=0)
    return b.alloca(largest * MAX_LANES, "f32") if largest > SMALL_BASE else None


def emit_transform(
    b: Builder,
    isa: Isa,
    row: Value,
    k: int,
    block: int,
    begin: Value | int = 0,
    scratch: Value | None = None,
) -> None:
    """Transform `k` elements of `row` (memref<?xf32>) from `begin` on, in place.

    Every run of `block` elements becomes H x / sqrt(block). `block` divides k and is a size that
    `dialects.hadamard` supports (ValueError otherwise). `scratch` is that of `scratch_of`.
    """
    bases, power = split_block(block)
    if k % block:
        raise ValueError(f"blocks of {block} do not divide a row of {k}")
    norm = 1 / math.sqrt(block)
    with b.loop(0, k, block) as blocks:
        start = blocks.i + begin
        runs = block // power
        _butterflies(b, isa, row, start, (runs, power), None if bases else norm)
        inner = power
        for number, base in reversed(list(enumerate(bases))):
            runs //= base
            shape, scale = (runs, base, inner), norm if number == 0 else None
            if base > SMALL_BASE:
                assert scratch is not None
                _by_table(b, isa, row, start, shape, scale, scratch)
            else:
                _across_runs(b, isa, row, start, shape, scale)
            inner *= base


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
    b: Builder,
    isa: Isa,
    row: Value,
    start: Value,
    shape: tuple[int, int, int],
    norm: float | None,
) -> None:
    """Multiply by a base matrix: of `(runs, base, inner)` elements, element j of all `base` inner
    runs at once, a vector of j at a time."""
    runs, base, inner = shape
    lanes = math.gcd(isa.lanes(32), inner)
    with b.loop(0, runs * base * inner, base * inner) as outer, b.loop(0, inner, lanes) as columns:
        places = [start + outer.i + columns.i + j * inner for j in range(base)]
        _pass(b, row, places, lanes, partial(_multiply_base, base), norm)


def _by_table(
    b: Builder,
    isa: Isa,
    row: Value,
    start: Value,
    shape: tuple[int, int, int],
    norm: float | None,
    scratch: Value,
) -> None:
    """The same with a loop over the matrix, whose `base` inputs are kept in `scratch`: the code of
    a large one in registers would take long to compile and not fit the caches."""
    runs, base, inner = shape
    lanes = math.gcd(isa.lanes(32), inner)
    tile = isa.registers // 2  # sums at a time
    table = sign_table(b, base, tile)
    with b.loop(0, runs * base * inner, base * inner) as outer, b.loop(0, inner, lanes) as columns:
        first = start + outer.i + columns.i
        with b.loop(0, base) as j:
            b.store(b.load(row, first + j.i * inner, lanes), scratch, j.i * lanes)
        whole = base // tile * tile
        with b.loop(0, whole, tile) as tiles:
            sums = _table_sums(b, scratch, table, tiles.i, (base, lanes, tile))
            _store_all(b, row, sums, first + tiles.i * inner, inner, norm)
        if whole < base:
            count = base - whole
            sums = _table_sums(b, scratch, table, b.index(whole), (base, lanes, count))
            _store_all(b, row, sums, first + whole * inner, inner, norm)


def _table_sums(
    b: Builder, scratch: Value, table: Value, begin: Value, shape: tuple[int, int, int]
) -> list[Value]:
    """Rows `begin` to `begin + count` of a matrix times the `base` vectors in `scratch`."""
    base, lanes, count = shape
    zero = b.splat(b.const(0.0, "f32"), lanes)
    with b.loop(0, base, carry=[zero] * count) as j:
        vector = b.load(scratch, j.i * lanes, lanes)
        sums = []
        for t, total in enumerate(j.args):
            signs = b.splat(b.load(table, begin * base + j.i * count + t), lanes)
            # A product with +-1 is exact, so that fusing it or not is the same.
            sums.append(b.fma(vector, signs, total) if b.isa.fma else vector * signs + total)
        j.carry(*sums)
    return j.results


def _store_all(
    b: Builder, row: Value, values: Sequence[Value], at: Value, step: int, norm: float | None
) -> None:
    for t, value in enumerate(values):
        b.store(value if norm is None else value * norm, row, at + t * step)


def _multiply_base(base: int, vectors: list[Value]) -> list[Value]:
    """`H_base` times a list of vectors, by additions and subtractions."""
    return [_signed_sum(vectors, signs) for signs in base_matrix(base).tolist()]


def _signed_sum(vectors: Sequence[Value], signs: Sequence[int]) -> Value:
    total = vectors[0] if signs[0] > 0 else -vectors[0]
    for vector, sign in zip(vectors[1:], signs[1:], strict=True):
        total = total + vector if sign > 0 else total - vector
    return total
