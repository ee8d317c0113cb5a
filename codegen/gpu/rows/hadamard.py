"""Hadamard transforms of rows on the device, as `dialects.hadamard` defines them.

A block of bases * power elements is transformed in three parts, in this order: butterflies within
the four elements of a lane (distances 1, 2), among the lanes of a warp by exchanges (4 .. 64), and
for distances from 128 on, and for base matrices, through shared memory. There, elements are
strided columns: the second part leaves column c of chunk r at place (r, c), and whatever remains is
the same for all columns. Where shared memory holds no whole block, the columns are taken in slices.
Small bases are additions in registers; larger ones are sums whose signs come from a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from abqc.codegen.builder import Value
from abqc.dialects.hadamard import SMALL_BASE, split_block
from abqc.dialects.hadamard_bases import base_matrix
from abqc.errors import CompileError

from ..arch import WARP
from ..builder import GpuBuilder
from .sign_table import TILE, sign_table, tiles_of
from .threads import CHUNK, PER_LANE, Chunk, Place, RowShape, load_four, span_positions

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
        bases, power = split_block(block)
        assert shape.k % block == 0, f"blocks of {block} do not divide a row of {shape.k}"
        floats = shared // (4 * shape.threads.rows)
        staged = not shape.dense
        if staged:
            if not Rotation.can_stage(shape, shared):
                raise _too_large(block, shape.k, "groups are multiples of 32")
            return Rotation(shape, block, shape.k // block, 1, staged)
        in_span = -(-min(shape.k, shape.threads.span) // block)
        if block <= floats or (not bases and power <= CHUNK):
            return Rotation(shape, block, min(in_span, max(1, floats // block)), 1, staged)
        slices = 2
        while block > floats * slices:
            slices *= 2
        if slices * PER_LANE > min(power, CHUNK):
            raise _too_large(block, shape.k, "the block is smaller")
        return Rotation(shape, block, 1, slices, staged)

    @staticmethod
    def can_stage(shape: RowShape, shared: int) -> bool:
        """Whether so many bytes of shared memory hold whole rows of elements."""
        return shape.threads.spans == 1 and shape.k <= shared // (4 * shape.threads.rows)

    @property
    def _columns(self) -> int:
        """Neighbours that have the same left to do, as far as a chunk holds them."""
        return min(split_block(self.block)[1], CHUNK)

    @property
    def _floats(self) -> int:
        """Of one row in shared memory."""
        if self.staged:
            return self.shape.k
        return self.blocks * self.block // self.slices if self.strided else 0

    @property
    def strided(self) -> bool:
        """Whether something is left to do after the butterflies inside of chunks."""
        bases, power = split_block(self.block)
        return bool(bases) or power > CHUNK

    @property
    def shared_bytes(self) -> int:
        """Of all rows of a block of threads."""
        return 4 * self._floats * self.shape.threads.rows

    def turn(
        self, b: GpuBuilder, place: Place, shared: int, positions: list[Value], chunks: list[Chunk]
    ) -> list[Chunk]:
        """The rotated values at a lane's `positions`, of a span's `chunks` of elements; shared
        memory from byte `shared` on is used."""
        emit = _Emitter(self, b, place, shared)
        turn = emit.staged if self.staged else emit.span
        return turn(positions, chunks)


def _too_large(block: int, k: int, where: str) -> CompileError:
    return CompileError(
        f"a GPU's shared memory has no place for rotating rows of {k} in blocks of {block}",
        hint=f"leave the layer out of 'rotate', or quantize it so that {where}",
    )


@dataclass
class _Emitter:
    """Emits the transform of a span."""

    rotation: Rotation
    b: GpuBuilder
    place: Place
    offset: int

    def __post_init__(self) -> None:
        self.shape = self.rotation.shape
        self.bases, self.power = split_block(self.rotation.block)
        self.norm = 1 / math.sqrt(self.rotation.block)
        if self.rotation.shared_bytes:
            row = self.place.row * (4 * self.rotation._floats)
            self.shared = self.b.at(self.b.at(self.b.shared, self.offset), row)
        # The thread among those of its row.
        self.thread = self.place.warp * WARP + self.place.lane

    def span(self, positions: list[Value], chunks: list[Chunk]) -> list[Chunk]:
        """Values of dense rows, whose positions are elements."""
        chunks = [self._within(chunk) for chunk in chunks]
        if not self.rotation.strided:
            return chunks
        begin = positions[0] - self.place.first  # of the span
        reach = self.rotation.blocks * self.rotation.block
        span = min(self.shape.k, self.shape.threads.span)
        for at in range(0, span, reach):
            for part in range(self.rotation.slices):
                chunks = self._round(begin + at, part, positions, chunks)
        return chunks

    def staged(self, positions: list[Value], chunks: list[Chunk]) -> list[Chunk]:
        """Values of rows with padding: transformed as if there were none, then read by position."""
        b, k = self.b, self.shape.k
        firsts = span_positions(b, self.shape.unpadded, self.place, b.const(0, "i32"))
        for at, chunk in zip(firsts, chunks, strict=True):
            self._store(at, self._within(chunk), at < k, k - at)
        b.barrier()
        self._strided(b.const(k, "i32"))
        return [load_four(b, self.shape, self.shared, self.shape.elements(b, p)) for p in positions]

    # In registers

    def _within(self, chunk: Chunk) -> Chunk:
        """Butterflies inside of a chunk."""
        b, values, distance = self.b, list(chunk), 1
        while distance < min(self.power, PER_LANE):
            values = _between(values, distance)
            distance *= 2
        while distance < min(self.power, CHUNK):
            lanes = distance // PER_LANE
            upper = (self.place.lane & lanes) != 0
            sign = b.select(upper, b.const(-1.0, "f32"), 1.0)
            partners = [b.exchange(value, "bfly", lanes) for value in values]
            # A product with +-1 is exact.
            values = [b.fma(v, sign, p) for v, p in zip(values, partners, strict=True)]
            distance *= 2
        return values if self.rotation.strided else [value * self.norm for value in values]

    # In shared memory

    def _round(
        self, begin: Value, part: int, positions: list[Value], chunks: list[Chunk]
    ) -> list[Chunk]:
        """The strided part of the blocks from element `begin` on, in one slice of columns."""
        b, rotation = self.b, self.rotation
        end = b.min(begin + rotation.blocks * rotation.block, self.shape.k)
        columns = rotation._columns
        width = columns // rotation.slices
        places = []
        for position, chunk in zip(positions, chunks, strict=True):
            at = position - begin
            inside = (position >= begin) & (position < end)
            if rotation.slices > 1:
                column = (at & (columns - 1)) - part * width
                inside = inside & (column >= 0) & (column < width)
                at = at // columns * width + column
            self._store(at, chunk, inside, end - position)
            places.append((at, inside))
        b.barrier()
        self._strided((end - begin) // rotation.slices)
        result = []
        for (at, inside), chunk in zip(places, chunks, strict=True):
            result.append(self._reload(at, chunk, inside))
        b.barrier()  # before the next round writes
        return result

    def _store(self, at: Value, chunk: Chunk, inside: Value, count: Value) -> None:
        """A chunk's four values to place `at`, as far as there are `count`."""
        b = self.b
        if self.shape.k % PER_LANE == 0:
            with b.when(inside):
                b.store(b.vector(chunk), self.shared, at * 4)
            return
        for i, value in enumerate(chunk):
            with b.when(inside & (count > i)):
                b.store(value, self.shared, at * 4 + 4 * i)

    def _reload(self, at: Value, chunk: Chunk, inside: Value) -> Chunk:
        """What is at place `at` now; `chunk` where it is not `inside`."""
        b = self.b

        def four() -> list[Value]:
            return b.lanes_of(b.load(self.shared, "vector<4xf32>", at * 4))

        return b.either(inside, ["f32"] * PER_LANE, four, lambda: chunk)

    def _strided(self, elements: Value) -> None:
        """All transforms across rows of `columns` neighbouring elements, in the first `elements`
        of shared memory."""
        columns = self.rotation._columns
        rows = self.power // columns  # of Sylvester's matrix; a block has more by its bases
        columns //= self.rotation.slices
        passes: list[tuple[int, int, bool]] = []
        reach = 1
        while reach < rows:
            radix = min(RADIX, rows // reach)
            passes.append((reach * columns, radix, False))
            reach *= radix
        for base in reversed(self.bases):
            passes.append((reach * columns, base, True))
            reach *= base
        for i, (distance, count, by_base) in enumerate(passes):
            norm = self.norm if i == len(passes) - 1 else None
            if by_base and count > SMALL_BASE:
                self._by_table(elements, distance, count, norm)
            else:
                transform = partial(_multiply_base, count) if by_base else _butterflies
                self._pass(elements, distance, count, transform, norm)
            self.b.barrier()

    def _pass(
        self,
        elements: Value,
        distance: int,
        count: int,
        transform: Callable[[Chunk], Iterator[Value]],
        norm: float | None,
    ) -> None:
        """Transform each `count` elements that are `distance` apart."""
        b, threads = self.b, WARP * self.shape.threads.warps
        with b.loop(self.thread, elements // count, threads) as items:
            outer = items.i // distance
            first = (items.i + outer * (distance * (count - 1))) * 4
            values = [b.load(self.shared, "f32", first + 4 * distance * j) for j in range(count)]
            for j, value in enumerate(transform(values)):
                scaled = value if norm is None else value * norm
                b.store(scaled, self.shared, first + 4 * distance * j)

    def _by_table(self, elements: Value, distance: int, base: int, norm: float | None) -> None:
        """The same with a base matrix in a table: a thread makes `TILE` of the sums of one group,
        and all sums of a group are made before any is written."""
        b, tiles = self.b, tiles_of(base)
        threads = WARP * self.shape.threads.warps
        at_once = threads // tiles  # groups
        table = self.b.at(sign_table(base), (self.thread % tiles) * (4 * base))
        groups = elements // base
        first_row = (self.thread % tiles) * TILE
        with b.loop(b.const(0, "i32"), groups, at_once) as rounds:
            group = rounds.i + self.thread // tiles
            mine = (self.thread < at_once * tiles) & (group < groups)
            group = b.select(mine, group, 0)
            outer = group // distance
            first = (group + outer * (distance * (base - 1))) * 4
            zero = b.const(0.0, "f32")
            with b.loop(b.const(0, "i32"), b.const(base, "i32"), carry=[zero] * TILE) as j:
                value = b.to_bits(b.load(self.shared, "f32", first + j.i * (4 * distance)))
                signs = b.load(table, "i32", j.i * 4, cache="nc")
                sums = []
                for t, total in enumerate(j.args):
                    sign = (signs << (31 - t)) & -(2**31)
                    sums.append(total + b.from_bits(value ^ sign, "f32"))
                j.carry(*sums)
            b.barrier()
            for t, total in enumerate(j.results):
                with b.when(mine & (first_row + t < base)):
                    scaled = total if norm is None else total * norm
                    b.store(scaled, self.shared, first + (first_row + t) * (4 * distance))
            b.barrier()


def _multiply_base(base: int, values: Chunk) -> Iterator[Value]:
    for signs in base_matrix(base).tolist():
        total = values[0] if signs[0] > 0 else -values[0]
        for value, sign in zip(values[1:], signs[1:], strict=True):
            total = total + value if sign > 0 else total - value
        yield total


def _butterflies(values: Chunk) -> Iterator[Value]:
    """Butterflies among a power of two of values, neighbours first."""
    distance = 1
    while distance < len(values):
        values = _between(values, distance)
        distance *= 2
    return iter(values)


def _between(values: Chunk, distance: int) -> Chunk:
    """(x, y) to (x + y, x - y) for values that are `distance` apart."""
    result = list(values)
    for j in range(len(result)):
        if not j & distance:
            x, y = values[j], values[j + distance]
            result[j], result[j + distance] = x + y, x - y
    return result
