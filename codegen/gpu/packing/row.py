"""One row of f32 on its way into a packed row, for all kernels that pack.

A row is loaded (and rotated) into registers, looked at for its scale, and written in the layout of
the strategy. Buffers begin at multiples of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from abqc.codegen.builder import Value
from abqc.codegen.codes.block_rounding import magnitude_bits, rounded, shared_exponent
from abqc.dialects.formats import NumberFormat, Scheme

from ..builder import GpuBuilder
from ..planes.layout import PlaneRows
from ..rows.hadamard import Rotation
from ..rows.reduction import Combine, RowReduction, butterfly
from ..rows.threads import (
    CHUNK,
    PER_LANE,
    Chunk,
    Place,
    Row,
    RowShape,
    RowSweep,
    RowThreads,
    span_positions,
)
from .group_sums import ChunkSums, GroupSums, NoSums, OneSum, SharedSums
from .half import HalfWriter
from .int8 import Int8Writer
from .layout import CentredRows, FloatRows, Int8Rows, align
from .planes import PlaneWriter
from .quantize_row import RowRange, RowScale, code

RowLayout = Int8Rows | PlaneRows | FloatRows | CentredRows
_RANGES = 3  # scalars of a range, at most


class RowWriter(Protocol):
    """Stores a lane's four codes (or values) of a row; all lanes of a warp call it together."""

    @property
    def positions(self) -> int:
        """Positions of a row, padding included; a multiple of four."""
        ...

    def write(self, b: GpuBuilder, row: Value, position: Value, codes: Chunk, own: Value) -> None:
        """The codes at `position` .. + 3 of the row at `row`; where `own` does not hold, none."""
        ...


def writer_of(layout: RowLayout) -> RowWriter:
    """What writes rows of this layout."""
    if isinstance(layout, Int8Rows):
        return Int8Writer(layout)
    return PlaneWriter(layout) if isinstance(layout, PlaneRows) else HalfWriter(layout)


@dataclass(frozen=True)
class RowPacking:
    """What packed rows are made of. `format` is None where values stay float, or are rounded in
    `blocks`; `hadamard_block` 0: rows are not rotated. Rows that are `stored` are codes already."""

    format: NumberFormat | None
    layout: RowLayout
    hadamard_block: int
    threads: RowThreads
    blocks: Scheme | None = None
    stored: bool = False

    @staticmethod
    def of(
        format: NumberFormat | None,
        layout: RowLayout,
        hadamard_block: int,
        blocks: Scheme | None = None,
        *,
        stored: bool = False,
    ) -> RowPacking:
        """With the threads that suit such rows best."""
        threads = RowThreads.of(writer_of(layout).positions, rotated=hadamard_block)
        return RowPacking(format, layout, hadamard_block, threads, blocks, stored)

    @cached_property
    def writer(self) -> RowWriter:
        return writer_of(self.layout)

    @cached_property
    def shape(self) -> RowShape:
        return RowShape(self.layout.grouped, self.threads)

    @property
    def name(self) -> str:
        """Of all but the threads."""
        grouped = self.layout.grouped
        groups = f"_g{grouped.group_size}" if grouped.groups > 1 else ""
        turn = f"_h{self.hadamard_block}" if self.hadamard_block else ""
        return f"{self._row_name}_k{grouped.k}{groups}{turn}"

    @property
    def _row_name(self) -> str:
        if isinstance(self.layout, FloatRows):
            blocks = self.blocks
            rounded = f"_{blocks.format.name}_b{blocks.group_size}" if blocks is not None else ""
            return self.layout.element + rounded
        assert self.format is not None
        if isinstance(self.layout, CentredRows):
            return f"{self.layout.element}_{self.format.name}"
        kind = "planes" if isinstance(self.layout, PlaneRows) else "int8"
        return f"{kind}_{self.format.name}" + ("_sums" if self.layout.has_sums else "")

    @property
    def range_bytes(self) -> int:
        """Shared memory for the range of values, a multiple of 16."""
        if self.format is None:
            return 0
        return align(RowReduction.scratch_bytes(self.threads, _RANGES), 16)

    @property
    def sum_bytes(self) -> int:
        """Shared memory for sums of codes, a multiple of 16."""
        layout, threads = self.layout, self.threads
        if isinstance(layout, FloatRows) or not layout.has_sums:
            return 0
        if layout.grouped.groups == 1:
            return align(RowReduction.scratch_bytes(threads, 1), 16)
        if CHUNK % layout.grouped.padded_group == 0:
            return 0
        return align(SharedSums.scratch_bytes(threads, layout.grouped, self.writer.positions), 16)

    @property
    def scratch_bytes(self) -> int:
        """Shared memory besides that of a rotation."""
        return self.range_bytes + self.sum_bytes


@dataclass
class PackRow:
    """Emits the packing of a row into the one at `q`. `scratch` is where its `scratch_bytes` of
    shared memory begin. Where several blocks share a row, `of_row(ranges, combine)` gives the
    row's range by that of the block's part, and the scale is written by the block that `leads`."""

    packing: RowPacking
    b: GpuBuilder
    place: Place
    row: Row
    q: Value
    scratch: int
    of_row: Callable[[Sequence[Value], Sequence[Combine]], list[Value]] | None = None
    leads: Value | None = None

    def sweep(
        self, rotation: Rotation | None, shared: int, elements: Callable[[Value], list[Chunk]]
    ) -> RowSweep:
        """The values by position, rotated in shared memory from byte `shared` on. `elements(begin)`
        gives a span's chunks of `shape.unpadded`; without a rotation, positions are elements."""
        b, shape = self.b, self.packing.shape
        assert rotation is not None or shape.dense, "padding takes a rotation"

        def load_span(begin: Value) -> list[Chunk]:
            chunks = elements(begin)
            if shape.dense:
                zeros = [b.const(0.0, "f32")] * PER_LANE
                chunks = chunks + [zeros] * (shape.threads.held - len(chunks))
            if rotation is None:
                return chunks
            positions = span_positions(b, shape, self.place, begin)
            return rotation.turn(b, self.place, shared, positions, chunks)

        return RowSweep(b, shape, self.place, load_span)

    def run(self, sweep: RowSweep, scale: RowScale | None) -> None:
        """Pack the values, with `scale` where they are to be codes."""
        if self.packing.format is None:
            self._write_floats(sweep)
        else:
            assert scale is not None
            self._write_codes(sweep, self.packing.format, scale)

    def measure(self, sweep: RowSweep) -> RowScale | None:
        """The scale of the row's codes; None where there are none."""
        b, format = self.b, self.packing.format
        if format is None:
            return None
        ranges = RowRange(b, format)

        def widen(_position: Value, chunk: Chunk, *carry: Value) -> Sequence[Value]:
            for value in chunk:
                carry = tuple(ranges.widen(carry, value))
            return carry

        mine = sweep.run(widen, ranges.start())
        row = self._reduction(self.scratch).run(mine, ranges.combine())
        if self.of_row is not None:
            row = self.of_row(row, ranges.combine())
        return ranges.scale(row, b.const(float(self.packing.shape.k), "f32"))

    def _reduction(self, offset: int) -> RowReduction:
        return RowReduction.at(self.b, self.packing.threads, self.place, offset)

    def _own(self, position: Value) -> Value:
        """Whether the row is to be written, and has this position."""
        threads, positions = self.packing.threads, self.packing.writer.positions
        if positions == threads.spans * threads.span:
            return self.row.active
        return self.row.active & (position < positions)

    def _write_floats(self, sweep: RowSweep) -> None:
        def write(position: Value, chunk: Chunk) -> Sequence[Value]:
            chunk = self._in_blocks(chunk)
            self.packing.writer.write(self.b, self.q, position, chunk, self._own(position))
            return []

        sweep.run(write)

    def _in_blocks(self, chunk: Chunk) -> Chunk:
        """Four values rounded with those of their block, which neighbouring lanes have."""
        b, blocks = self.b, self.packing.blocks
        if blocks is None:
            return chunk
        assert blocks.group_size is not None and self.packing.shape.dense
        reach = b.const(0, "i32")
        for value in chunk:
            reach = b.max(magnitude_bits(b, value), reach)
        reach = butterfly(b, reach, blocks.group_size // PER_LANE, b.max)
        exponent = shared_exponent(b, blocks.format, reach)
        return [rounded(b, blocks.format, value, exponent, reach) for value in chunk]

    def _write_codes(self, sweep: RowSweep, format: NumberFormat, scale: RowScale) -> None:
        b, shape = self.b, self.packing.shape
        sums = self._sums()
        centres = isinstance(self.packing.layout, CentredRows)

        def write(position: Value, chunk: Chunk, *carry: Value) -> Sequence[Value]:
            own = self._own(position)
            elements = shape.elements(b, position)
            codes, total = [], b.const(0, "i32")
            for i, value in enumerate(chunk):
                q = value if self.packing.stored else code(b, format, scale, value)
                there = elements.there(b, i)
                centred = q - scale.zero
                stored = centred if centres else q
                codes.append(stored if there is None else b.select(there, stored, 0))
                total = total + (centred if there is None else b.select(there, centred, 0))
            self.packing.writer.write(b, self.q, position, codes, own)
            return sums.add(position, total, own, carry)

        sums.finish(sweep.run(write, sums.start()), self.row.active)
        self._write_scale(scale)

    def _write_scale(self, scale: RowScale) -> None:
        """Scale and zero point, and zeros in what is left of the row."""
        b, layout = self.b, self.packing.layout
        assert not isinstance(layout, FloatRows)
        first = (self.place.warp | self.place.lane) == 0
        if self.leads is not None:
            first = first & self.leads
        with b.when(self.row.active & first):
            b.store(scale.scale, self.q, layout.scale_offset)
            b.store(scale.zero, self.q, layout.zero_offset)
            end = layout.sums_offset + (4 * layout.grouped.groups if layout.has_sums else 0)
            for at in range(end, layout.row_bytes, 4):
                b.store(b.const(0, "i32"), self.q, at)

    def _sums(self) -> GroupSums:
        b, layout, threads = self.b, self.packing.layout, self.packing.threads
        if isinstance(layout, FloatRows) or not layout.has_sums:
            return NoSums()
        target = b.at(self.q, layout.sums_offset)
        scratch = self.scratch + self.packing.range_bytes
        if layout.grouped.groups == 1:
            return OneSum(b, target, self.place, self._reduction(scratch))
        if CHUNK % layout.grouped.padded_group == 0:
            return ChunkSums(b, target, layout.grouped)
        shared = b.at(b.shared, scratch)
        positions = self.packing.writer.positions
        return SharedSums(b, target, layout.grouped, positions, threads, self.place, shared)
