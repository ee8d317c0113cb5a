"""A tile of `y = a b` in f32 on CUDA cores, 64 x 64, for any sizes and alignments.

A block of 128 threads goes through K in steps of 16. Both operands lie in shared memory with K
outermost, `[16][68]`, so that a thread reads its 8 rows of `a` and 4 columns of `b` as vectors;
elements are copied one by one (`cp.async` of 4 bytes, where there is one), which transposes on the
way and asks nothing of alignment; those of 16 bits are widened and stored. While a step is
multiplied the next one is copied. The pitch of 68 keeps both directions free of bank conflicts:
lanes that copy 4 rows x 8 of K hit 32 banks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from abqc.codegen.builder import Value, vec
from abqc.dialects.formats import FLOAT_BYTES, Float

from ..builder import GpuBuilder
from .layout import widen_pair

TILE = 64  # rows, and columns
DEPTH = 16
THREADS = 128
THREAD_ROWS, THREAD_COLUMNS = 8, 4
STAGES = 2

_COLUMN_THREADS = TILE // THREAD_COLUMNS
_PITCH = TILE + 4
_OPERAND_BYTES = 4 * DEPTH * _PITCH
_STAGE_BYTES = 2 * _OPERAND_BYTES
SHARED_BYTES = STAGES * _STAGE_BYTES


@dataclass(frozen=True)
class Operand:
    """The block's 64 rows of `a`, or columns of `b`, at `pointer`; `extent` (i32) of them exist.

    Neighbours lie `pitch` elements (i64) apart and K runs by 1; where `k_outer`, the reverse. They
    are stored as `element`.
    """

    pointer: Value
    pitch: Value
    extent: Value
    k_outer: bool = False
    element: Float = "f32"

    def copy(self, b: GpuBuilder, to: Value, first: Value, k: Value) -> None:
        """Start copying terms `first` .. + 16 of K, zeros from `k` on, to `[16][pitch]` at `to`."""
        outer, depth = self._place(b)
        outer_step, depth_step = (0, 2) if self.k_outer else (TILE // 4, DEPTH // 2)
        for j in range(DEPTH // depth_step):
            at_k = depth + j * depth_step
            for i in range(TILE // outer_step if outer_step else 1):
                row = outer + i * outer_step
                valid = (row < self.extent) & (first + at_k < k)
                target = b.at(to, (at_k * _PITCH + row) * 4)
                offset = self._offset(b, row, first + at_k)
                if self.element == "f32":
                    copy_word(b, target, self.pointer, offset, valid)
                else:
                    copy_half(b, target, self.pointer, offset, valid, self.element)

    def _place(self, b: GpuBuilder) -> tuple[Value, Value]:
        """The thread's first row (or column) and term."""
        if self.k_outer:
            return b.thread % TILE, b.thread // TILE
        return b.thread // 32 * 4 + b.lane // 8, b.lane % 8

    def _offset(self, b: GpuBuilder, row: Value, term: Value) -> Value:
        """Bytes from `pointer` on, i64."""
        strided, dense = (term, row) if self.k_outer else (row, term)
        return (b.wide(strided) * self.pitch + b.wide(dense)) * FLOAT_BYTES[self.element]


def copy_word(b: GpuBuilder, to: Value, source: Value, offset: Value, valid: Value) -> None:
    """4 bytes at `source` + `offset` to shared memory, 0 where not `valid`; asynchronous if it can
    be. Nothing is read where not `valid`."""
    if b.arch.cp_async:
        at = b.at(source, b.select(valid, offset, 0))
        b.copy_async(to, at, 4, b.select(valid, b.const(4, "i32"), 0))
        return
    word = b.either(
        valid,
        ["i32"],
        lambda: [b.load(source, "i32", offset)],
        lambda: [b.const(0, "i32")],
    )
    b.store(word[0], to)


def copy_half(
    b: GpuBuilder, to: Value, source: Value, offset: Value, valid: Value, element: Float
) -> None:
    """The 2 bytes at `source` + `offset` to shared memory as f32, 0 where not `valid`."""
    (half,) = b.either(
        valid,
        ["i16"],
        lambda: [b.load(source, "i16", offset)],
        lambda: [b.const(0, "i16")],
    )
    b.store(widen_pair(b, b.zext(half, "i32"), element)[0], to)


# Store (row, column, values): columns `column` .. of row `row` of the tile.
Store = Callable[[Value, Value, Sequence[Value]], None]


def multiply(b: GpuBuilder, left: Operand, right: Operand, k: Value) -> list[list[Value]]:
    """The thread's 8 x 4 sums over `k` (i32) terms; rows and columns from `thread_place` on."""
    with b.when(k > 0):
        _copy_stage(b, left, right, b.const(0, "i32"), k)
    _commit(b)
    zeros = [b.const(0.0, "f32")] * (THREAD_ROWS * THREAD_COLUMNS)
    with b.loop(0, k, DEPTH, zeros) as loop:
        following = loop.i + DEPTH
        with b.when(following < k):
            _copy_stage(b, left, right, following, k)
        _commit(b)
        _wait(b, 1)
        b.barrier()
        sums = _add_products(b, _stage(b, loop.i), loop.args)
        b.barrier()
        loop.carry(*sums)
    _wait(b, 0)
    rows = range(0, len(zeros), THREAD_COLUMNS)
    return [loop.results[i : i + THREAD_COLUMNS] for i in rows]


def thread_place(b: GpuBuilder) -> tuple[Value, Value]:
    """The first row and column of the thread's sums, in the tile."""
    return (
        b.thread // _COLUMN_THREADS * THREAD_ROWS,
        b.thread % _COLUMN_THREADS * THREAD_COLUMNS,
    )


def store_sums(
    b: GpuBuilder,
    y: Value,
    n: Value,
    extents: tuple[Value, Value],
    sums: Sequence[Sequence[Value]],
) -> None:
    """Write the thread's sums to the tile at `y`, whose rows lie `n` (i32) elements apart.

    Rows and columns from `extents` on are left. Rows of whole 16 bytes are stored as vectors.
    """
    first, column = thread_place(b)
    aligned = (n % THREAD_COLUMNS == 0) & (column < extents[1])
    for i, values in enumerate(sums):
        row = first + i
        pointer = b.at(y, (b.wide(row) * b.wide(n) + b.wide(column)) * 4)
        with b.when(row < extents[0]):
            with b.when(aligned):
                b.store(b.vector(values), pointer)
            with b.when(aligned ^ 1):
                for j, value in enumerate(values):
                    with b.when(column + j < extents[1]):
                        b.store(value, pointer, j * 4)


def extent(b: GpuBuilder, size: Value, first: Value) -> Value:
    """How many of the tile's rows or columns from `first` on there are."""
    return b.min(size - first, b.const(TILE, "i32"))


def _stage(b: GpuBuilder, first: Value) -> Value:
    """The shared memory of the step that begins at term `first`."""
    return b.at(b.shared, first // DEPTH % STAGES * _STAGE_BYTES)


def _copy_stage(b: GpuBuilder, left: Operand, right: Operand, first: Value, k: Value) -> None:
    stage = _stage(b, first)
    left.copy(b, stage, first, k)
    right.copy(b, b.at(stage, _OPERAND_BYTES), first, k)


def _commit(b: GpuBuilder) -> None:
    if b.arch.cp_async:
        b.commit_copies()


def _wait(b: GpuBuilder, pending: int) -> None:
    if b.arch.cp_async:
        b.wait_copies(pending)


def _add_products(b: GpuBuilder, stage: Value, sums: Sequence[Value]) -> list[Value]:
    """The sums after the 16 terms in shared memory, in the order of K."""
    row, column = thread_place(b)
    rows, columns = b.at(stage, row * 4), b.at(stage, column * 4)
    result = list(sums)
    for term in range(DEPTH):
        at = 4 * term * _PITCH
        load = partial(b.load, type_=vec(4, "f32"))
        left = [*b.lanes_of(load(rows, offset=at)), *b.lanes_of(load(rows, offset=at + 16))]
        right = b.lanes_of(load(columns, offset=at + _OPERAND_BYTES))
        result = [
            b.fma(left[i // THREAD_COLUMNS], right[i % THREAD_COLUMNS], total)
            for i, total in enumerate(result)
        ]
    return result
