"""Kernels that turn rows of f32 into packed rows, for all strategies (docs/gpu.md).

    pack          (x f32, q, m)                                   grid ceil(m / block[0])
    scaled pack   (x f32, scale f32, zero i32, q, m, rows_per_scale)

A row is loaded (and rotated) into registers, looked at for its scale, and written in the layout of
the strategy. Buffers begin at multiples of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

from ...dialects.formats import NumberFormat
from ..builder import Value
from ..strategy import Kernel, MatmulSpec
from .arch import GpuArch
from .builder import POINTER, GpuBuilder, kernel
from .group_sums import ChunkSums, GroupSums, NoSums, OneSum, SharedSums
from .hadamard import Rotation
from .pack_half import HalfWriter
from .pack_int8 import Int8Writer
from .pack_planes import PlaneWriter
from .planes_layout import PlaneRows
from .quantize_row import RowRange, RowScale, code, given_scale
from .reduce_row import RowReduction
from .row_threads import (
    CHUNK,
    Chunk,
    Place,
    RowShape,
    RowSweep,
    RowThreads,
    load_four,
    span_positions,
)
from .rows_layout import FloatRows, Int8Rows, align

RowLayout = Int8Rows | PlaneRows | FloatRows
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


def pack_kernel(spec: MatmulSpec, layout: RowLayout) -> Kernel:
    """Rows of `layout`, each with its own scale, rotated before if `spec` asks for it."""
    body = PackKernel(_format(spec, layout), layout, spec.hadamard_block)
    return Kernel(body.name, (body.threads.rows,), partial(_emit, body))


def scaled_pack_kernel(spec: MatmulSpec, layout: RowLayout) -> Kernel:
    """Rows of `layout` with scales that were measured before."""
    body = PackKernel(_format(spec, layout), layout, 0, given=True)
    return Kernel(body.name, (body.threads.rows,), partial(_emit, body))


def _format(spec: MatmulSpec, layout: RowLayout) -> NumberFormat | None:
    if isinstance(layout, FloatRows):
        return None
    assert spec.activation is not None
    return spec.activation.format


def _emit(body: PackKernel, module: Any, arch: Any) -> None:
    body.emit(module, arch)


@dataclass(frozen=True)
class PackKernel:
    """See the module. `format` is None where values stay float, `given` says that scales are
    arguments."""

    format: NumberFormat | None
    layout: RowLayout
    hadamard_block: int
    given: bool = False

    @cached_property
    def writer(self) -> RowWriter:
        return writer_of(self.layout)

    @cached_property
    def threads(self) -> RowThreads:
        return RowThreads.of(self.writer.positions, rotated=self.hadamard_block)

    @cached_property
    def shape(self) -> RowShape:
        return RowShape(self.layout.grouped, self.threads)

    @property
    def name(self) -> str:
        grouped = self.layout.grouped
        groups = f"_g{grouped.group_size}" if grouped.groups > 1 else ""
        turn = f"_h{self.hadamard_block}" if self.hadamard_block else ""
        what = "scaled_pack" if self.given else "pack"
        return f"{what}_{self._row_name}_k{grouped.k}{groups}{turn}"

    @property
    def _row_name(self) -> str:
        if isinstance(self.layout, FloatRows):
            return self.layout.element
        assert self.format is not None
        kind = "planes" if isinstance(self.layout, PlaneRows) else "int8"
        return f"{kind}_{self.format.name}" + ("_sums" if self.layout.has_sums else "")

    def emit(self, module: Any, arch: GpuArch) -> None:
        rotation = self._rotation(arch)
        scratch = _Scratch.of(self, rotation)
        arguments = [POINTER, *([POINTER, POINTER] if self.given else []), POINTER, "i32"]
        arguments += ["i32"] if self.given else []
        with kernel(
            module, arch, self.name, arguments, threads=self.threads.threads, shared=scratch.total
        ) as (b, block, x, *rest):
            body = PackBody(self, b, scratch, rotation)
            if self.given:
                scales, zeros, q, m, rows_per_scale = rest
                body.place_row(block, x, q, m)
                entry = body.row // rows_per_scale * 4
                zero = b.load(zeros, "i32", entry, cache="nc")
                body.run(given_scale(b, b.load(scales, "f32", entry, cache="nc"), zero))
            else:
                q, m = rest
                body.place_row(block, x, q, m)
                body.run(None)

    def _rotation(self, arch: GpuArch) -> Rotation | None:
        if not self.hadamard_block:
            return None
        budget = arch.shared_per_block - _Scratch.of(self, None).total
        return Rotation.of(self.shape, self.hadamard_block, budget)


@dataclass(frozen=True)
class _Scratch:
    """Offsets in shared memory: of the ranges of warps, of sums, of rotated values."""

    ranges: int
    sums: int
    rotated: int
    total: int

    @staticmethod
    def of(body: PackKernel, rotation: Rotation | None) -> _Scratch:
        threads = body.threads
        sums = align(RowReduction.scratch_bytes(threads, _RANGES), 16)
        if body.format is None:
            sums = 0
        rotated = align(sums + _sum_bytes(body), 16)
        total = rotated + (rotation.shared_bytes if rotation is not None else 0)
        return _Scratch(0, sums, rotated, total)


def _sum_bytes(body: PackKernel) -> int:
    layout, threads = body.layout, body.threads
    if isinstance(layout, FloatRows) or not layout.has_sums:
        return 0
    if layout.grouped.groups == 1:
        return RowReduction.scratch_bytes(threads, 1)
    if CHUNK % layout.grouped.padded_group == 0:
        return 0
    return SharedSums.scratch_bytes(threads, layout.grouped, body.writer.positions)


@dataclass
class PackBody:
    """The inside of a packing kernel."""

    kernel: PackKernel
    b: GpuBuilder
    scratch: _Scratch
    rotation: Rotation | None

    def place_row(self, block: Value, x: Value, q: Value, m: Value) -> None:
        """Find the thread's row. Threads beyond the last row work on it too, and write nothing:
        so all reach every barrier."""
        b, threads = self.b, self.kernel.threads
        self.place = Place.of(b, threads)
        row = block * threads.rows + self.place.row
        self.active = row < m
        self.row = b.min(row, m - 1)
        wide = b.wide(self.row)
        self.x = b.at(x, wide * (4 * self.kernel.shape.k))
        self.q = b.at(q, wide * self.kernel.layout.row_bytes)

    def run(self, scale: RowScale | None) -> None:
        """Pack the row, with `scale` if it is known."""
        sweep = RowSweep(self.b, self.kernel.shape, self.place, self._load_span)
        if self.kernel.format is None:
            self._write_floats(sweep)
        else:
            self._write_codes(sweep, self.kernel.format, scale or self._measure(sweep))

    def _load_span(self, begin: Value) -> list[Chunk]:
        b, shape = self.b, self.kernel.shape
        positions = span_positions(b, shape, self.place, begin)
        if self.rotation is None:
            return [
                load_four(b, shape, self.x, shape.elements(b, p), cache="nc") for p in positions
            ]
        return self.rotation.load(b, self.place, self.x, self.scratch.rotated, positions)

    def _measure(self, sweep: RowSweep) -> RowScale:
        b, format = self.b, self.kernel.format
        assert format is not None
        ranges = RowRange(b, format)

        def widen(_position: Value, chunk: Chunk, *carry: Value) -> Sequence[Value]:
            for value in chunk:
                carry = tuple(ranges.widen(carry, value))
            return carry

        mine = sweep.run(widen, ranges.start())
        row = self._reduction(self.scratch.ranges).run(mine, ranges.combine())
        return ranges.scale(row, b.const(float(self.kernel.shape.k), "f32"))

    def _reduction(self, offset: int) -> RowReduction:
        shared = self.b.at(self.b.shared, offset) if self.kernel.threads.warps > 1 else None
        return RowReduction(self.b, self.kernel.threads, self.place, shared)

    def _own(self, position: Value) -> Value:
        """Whether the row is to be written, and has this position."""
        threads, positions = self.kernel.threads, self.kernel.writer.positions
        if positions == threads.spans * threads.span:
            return self.active
        return self.active & (position < positions)

    def _write_floats(self, sweep: RowSweep) -> None:
        def write(position: Value, chunk: Chunk) -> Sequence[Value]:
            self.kernel.writer.write(self.b, self.q, position, chunk, self._own(position))
            return []

        sweep.run(write)

    def _write_codes(self, sweep: RowSweep, format: NumberFormat, scale: RowScale) -> None:
        b, shape = self.b, self.kernel.shape
        sums = self._sums()

        def write(position: Value, chunk: Chunk, *carry: Value) -> Sequence[Value]:
            own = self._own(position)
            elements = shape.elements(b, position)
            codes, total = [], b.const(0, "i32")
            for i, value in enumerate(chunk):
                q = code(b, format, scale, value)
                there = elements.there(b, i)
                codes.append(q if there is None else b.select(there, q, 0))
                centred = q - scale.zero
                total = total + (centred if there is None else b.select(there, centred, 0))
            self.kernel.writer.write(b, self.q, position, codes, own)
            return sums.add(position, total, own, carry)

        sums.finish(sweep.run(write, sums.start()), self.active)
        self._write_scale(scale)

    def _write_scale(self, scale: RowScale) -> None:
        """Scale and zero point, and zeros in what is left of the row."""
        b, layout = self.b, self.kernel.layout
        assert not isinstance(layout, FloatRows)
        first = (self.place.warp | self.place.lane) == 0
        with b.when(self.active & first):
            b.store(scale.scale, self.q, layout.scale_offset)
            b.store(scale.zero, self.q, layout.zero_offset)
            end = layout.sums_offset + (4 * layout.grouped.groups if layout.has_sums else 0)
            for at in range(end, layout.row_bytes, 4):
                b.store(b.const(0, "i32"), self.q, at)

    def _sums(self) -> GroupSums:
        b, layout, threads = self.b, self.kernel.layout, self.kernel.threads
        if isinstance(layout, FloatRows) or not layout.has_sums:
            return NoSums()
        target = b.at(self.q, layout.sums_offset)
        if layout.grouped.groups == 1:
            return OneSum(b, target, self.place, self._reduction(self.scratch.sums))
        if CHUNK % layout.grouped.padded_group == 0:
            return ChunkSums(b, target, layout.grouped)
        shared = b.at(b.shared, self.scratch.sums)
        positions = self.kernel.writer.positions
        return SharedSums(b, target, layout.grouped, positions, threads, self.place, shared)
