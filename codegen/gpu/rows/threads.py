"""How the threads of a packing kernel share rows, and how a row's values come into registers.

A row is cut into *chunks* of 128 positions, four neighbouring ones for each lane of a warp. The
warps of a row take chunks in turns; `held` chunks at a time stay in a warp's registers, which are a
*span* of the row. A row of one span is read once, longer ones are read again by every sweep.

Positions count codes with the padding of groups (packing/layout.py: GroupedK); elements count
without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from abqc.codegen.builder import Value
from abqc.errors import CompileError

from ..arch import WARP
from ..builder import Cache, GpuBuilder
from ..packing.layout import GroupedK

PER_LANE = 4  # neighbouring positions of a lane
CHUNK = WARP * PER_LANE
MAX_WARPS = 32  # of a row
ROTATING_WARPS = 16  # of a row that is rotated: a base matrix takes registers
MAX_CHUNKS = 256  # chunks in the registers of a row's warps: half of a multiprocessor's registers
SMALL_BLOCK = 4  # warps of a block whose rows need fewer
WARP_CHUNKS = 4  # of a row at least, before it gets more warps than a small block
ROTATED_CHUNKS = 2  # of a rotated row: it gets more warps rather than more chunks a warp than this

Chunk = list[Value]  # PER_LANE values of a lane


def power_of_two(at_least: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(0, at_least - 1).bit_length()


@dataclass(frozen=True)
class RowThreads:
    """`warps` (a power of two) work on a row, `rows` rows are in a block, `held` chunks are in a
    warp's registers, and `spans` times that are the row."""

    warps: int
    rows: int
    held: int
    spans: int

    @staticmethod
    def of(positions: int, *, rotated: int = 0) -> RowThreads:
        """For rows of so many positions, rotated in blocks of `rotated` (at most 32768): spans
        are whole blocks then, where there are several."""
        chunks = -(-positions // CHUNK)
        most = ROTATING_WARPS if rotated else MAX_WARPS
        warps = min(most, power_of_two(-(-chunks // ROTATED_CHUNKS)))
        if not rotated:
            # What all of a row's warps do alike, its scale above all, is issued once a warp: on one
            # multiprocessor this is most of what a row costs.
            few = 1 << max(0, (chunks // WARP_CHUNKS).bit_length() - 1)
            warps = min(warps, max(SMALL_BLOCK, few))
        held = -(-chunks // warps)
        if held > MAX_CHUNKS // warps:
            fitting = range(1, MAX_CHUNKS // warps + 1)
            held = max((h for h in fitting if h * warps * CHUNK % max(rotated, 1) == 0), default=0)
        if not held:
            raise CompileError(
                f"rows of {positions} cannot be rotated in blocks of {rotated} on a GPU",
                hint="leave the layer out of 'rotate'",
            )
        return RowThreads(warps, max(1, SMALL_BLOCK // warps), held, -(-chunks // (held * warps)))

    @property
    def threads(self) -> int:
        return WARP * self.warps * self.rows

    @property
    def span(self) -> int:
        """Positions of a span."""
        return self.held * self.warps * CHUNK


@dataclass(frozen=True)
class Place:
    """Where a thread is: `row` of the block, `warp` of the row, and the lane's first position in a
    chunk of the row's first span."""

    row: Value
    warp: Value
    lane: Value
    first: Value

    @staticmethod
    def of(b: GpuBuilder, threads: RowThreads) -> Place:
        if threads.warps == 1:
            row, warp = b.warp, b.const(0, "i32")
        elif threads.rows == 1:
            row, warp = b.const(0, "i32"), b.warp
        else:
            row, warp = b.warp // threads.warps, b.warp % threads.warps
        return Place(row, warp, b.lane, warp * CHUNK + b.lane * PER_LANE)


@dataclass(frozen=True)
class Row:
    """The row that a thread works on. Threads beyond the last row work on that one too, and write
    nothing, for they are not `active`: so all reach every barrier."""

    index: Value
    active: Value

    @staticmethod
    def of(b: GpuBuilder, threads: RowThreads, place: Place, block: Value, rows: Value) -> Row:
        index = block * threads.rows + place.row
        return Row(b.min(index, rows - 1), index < rows)

    def at(self, b: GpuBuilder, pointer: Value, bytes_: int) -> Value:
        """Where the row is in a buffer of rows of so many bytes."""
        return b.at(pointer, b.wide(self.index) * bytes_)


@dataclass(frozen=True)
class Elements:
    """The elements at a lane's four positions: the first one's index, and how many there are (may
    exceed four, or be negative). `all_there`: it is known that four are."""

    first: Value
    count: Value | None

    def there(self, b: GpuBuilder, i: int) -> Value | None:
        """Whether there is an i-th (i1); None: always."""
        return None if self.count is None else self.count > i


@dataclass(frozen=True)
class RowShape:
    """What is known of all rows while a kernel is emitted."""

    grouped: GroupedK
    threads: RowThreads

    @property
    def k(self) -> int:
        return self.grouped.k

    @property
    def dense(self) -> bool:
        """Whether positions are elements, but for those after the last element."""
        return self.grouped.groups == 1 or self.grouped.padded_group == self.grouped.group_size

    @property
    def unpadded(self) -> RowShape:
        """The row as it is before padding: its positions are elements."""
        if self.threads.spans > 1:
            assert self.dense, "padded rows of several spans have no such shape"
            return self
        held = -(-self.k // (self.threads.warps * CHUNK))
        return RowShape(GroupedK(self.k, self.k), replace(self.threads, held=held))

    @property
    def full(self) -> bool:
        """Whether every position of the spans is an element."""
        return self.dense and self.k == self.threads.spans * self.threads.span

    @property
    def by_four(self) -> bool:
        """Whether the elements at a lane's positions are four or none, and aligned to 16 bytes."""
        return self.k % PER_LANE == 0 and (self.dense or self.grouped.group_size % PER_LANE == 0)

    def elements(self, b: GpuBuilder, position: Value) -> Elements:
        """The elements at a lane's positions."""
        if self.full:
            return Elements(position, None)
        if self.dense:
            return Elements(position, self.k - position)
        size, pitch = self.grouped.group_size, self.grouped.padded_group
        group = position // pitch
        offset = position - group * pitch
        begin = group * size
        return Elements(begin + offset, b.min(self.k - begin, size) - offset)


Load = Callable[[Elements], Chunk]
Body = Callable[..., Sequence[Value]]


@dataclass
class RowSweep:
    """Goes through a row's chunks, once or several times.

    `load_span(begin)` gives a span's chunks, in order; chunk c of a warp is at position
    begin + place.first + c * warps * CHUNK.
    """

    b: GpuBuilder
    shape: RowShape
    place: Place
    load_span: Callable[[Value], list[Chunk]]
    _kept: list[Chunk] | None = None

    def __post_init__(self) -> None:
        if self.shape.threads.spans == 1:
            self._kept = self.load_span(self.b.const(0, "i32"))

    def run(self, body: Body, carry: Sequence[Value] = ()) -> list[Value]:
        """`carry = body(position, chunk, *carry)` for all chunks of the thread's warp."""
        threads = self.shape.threads
        if self._kept is not None:
            return self._span(body, self.b.const(0, "i32"), self._kept, carry)
        with self.b.loop(0, threads.spans, carry=carry) as loop:
            begin = loop.i * threads.span
            loop.carry(*self._span(body, begin, self.load_span(begin), loop.args))
        return loop.results

    def _span(
        self, body: Body, begin: Value, chunks: list[Chunk], carry: Sequence[Value]
    ) -> list[Value]:
        for c, chunk in enumerate(chunks):
            position = begin + (self.place.first + c * self.shape.threads.warps * CHUNK)
            carry = body(position, chunk, *carry)
        return list(carry)


def span_positions(b: GpuBuilder, shape: RowShape, place: Place, begin: Value) -> list[Value]:
    """The lane's position in each chunk of the span at `begin`."""
    step = shape.threads.warps * CHUNK
    return [begin + (place.first + c * step) for c in range(shape.threads.held)]


def load_four(
    b: GpuBuilder, shape: RowShape, pointer: Value, elements: Elements, *, cache: Cache = ""
) -> Chunk:
    """f32 values of a row (global or shared memory) at a lane's positions; 0 where there is no
    element."""
    zero = b.const(0.0, "f32")
    at = elements.first * 4
    if shape.by_four:

        def four() -> list[Value]:
            return b.lanes_of(b.load(pointer, "vector<4xf32>", at, cache=cache))

        if elements.count is None:
            return four()
        zeros = [zero] * PER_LANE
        return b.either(elements.count > 0, ["f32"] * PER_LANE, four, lambda: zeros)
    values = []
    for i in range(PER_LANE):
        there = elements.there(b, i)

        def one(i: int = i) -> list[Value]:
            return [b.load(pointer, "f32", at + 4 * i, cache=cache)]

        values += one() if there is None else b.either(there, ["f32"], one, lambda: [zero])
    return values


def load_codes(b: GpuBuilder, pointer: Value, elements: Elements, *, signed: bool) -> Chunk:
    """Codes (i32) of a row of bytes in global memory at a lane's positions; 0 where there is no
    element."""
    values = []
    for i in range(PER_LANE):
        there = elements.there(b, i)

        def one(i: int = i) -> list[Value]:
            byte = b.load(pointer, "i8", elements.first + i, cache="nc")
            return [b.sext(byte, "i32") if signed else b.zext(byte, "i32")]

        values += (
            one() if there is None else b.either(there, ["i32"], one, lambda: [b.const(0, "i32")])
        )
    return values
