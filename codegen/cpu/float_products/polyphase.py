"""Images with zeros around them, cut into phases by strides, in one pass: what convolutions read.

    kernel (i, x: memref<?xf32>, y: memref<?xf32>, height, width, rows, pitch, top, left: index)

`x` are B * C images of height x width, `y` for each of them a plane of rows x pitch for each of the
first ny x nx phases:

    y[image, py * nx + px, r, q] = x[image, r * sy + py - top, q * sx + px - left], or 0 outside

The grid is `Kernel.grid(images, rows)`, rows first; an index does ROWS rows of these. Columns
are read as they lie and, with a stride of 2 or 4, sorted into phases in registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel

from .tile import cover

ROWS = 16  # of a grid index
SHUFFLED = (1, 2, 4)  # strides of columns that registers are sorted by


def polyphase_kernel(strides: tuple[int, int], phases: tuple[int, int]) -> Kernel:
    """The kernel; its grid is over images and rows."""
    name = f"polyphase_s{strides[0]}x{strides[1]}_n{phases[0]}x{phases[1]}"
    return Kernel(name, (1, ROWS), partial(_emit, name, strides, phases))


def _emit(
    name: str, strides: tuple[int, int], phases: tuple[int, int], module: Any, isa: Isa
) -> None:
    arguments = [buffer("f32")] * 2 + [INDEX] * 6
    with function(module, isa, name, arguments) as (b, i, x, y, *sizes):
        _Body(b, strides, phases, x, y, *sizes).emit(i)


@dataclass
class _Body:
    b: Builder
    strides: tuple[int, int]
    phases: tuple[int, int]
    x: Value
    y: Value
    height: Value
    width: Value
    rows: Value
    pitch: Value
    top: Value
    left: Value

    def emit(self, i: Value) -> None:
        b, (sy, sx), (ny, nx) = self.b, self.strides, self.phases
        blocks = (self.rows + (ROWS - 1)) // ROWS
        image, first = i // blocks, i % blocks * ROWS
        last = b.min(first + ROWS, self.rows)
        plane = self.rows * self.pitch
        row = PhaseRow(b, sx, nx, self.x, self.y, self.width, self.left, self.pitch, plane)
        with b.loop(0, ny) as phases, b.loop(first, last) as rows:
            source = rows.i * sy + phases.i - self.top
            to = (image * (ny * nx) + phases.i * nx) * plane + rows.i * self.pitch
            inside = (source >= 0) & (source < self.height)
            with b.when(inside):
                row.copy((image * self.height + source) * self.width, to)
            with b.when(inside ^ 1):
                row.clear(to)


@dataclass
class PhaseRow:
    """A row of an image, `width` elements of `x`, as `count` elements of each of the first `phases`
    in `y`. Phases are `plane` apart; `left` columns come before the image's first one."""

    b: Builder
    stride: int
    phases: int
    x: Value
    y: Value
    width: Value
    left: Value
    count: Value
    plane: Value | int

    def __post_init__(self) -> None:
        b = self.b
        self.lanes = b.isa.lanes(32)
        # Vectors of a phase that begin before the image, those that are inside, one at its end.
        step = self.stride * self.lanes
        self.first = (b.max(self.left, 0) + (step - 1)) // step * self.lanes
        inside = b.max(self.width + self.left, 0) // step * self.lanes
        inside = b.min(inside, self.count // self.lanes * self.lanes)
        self.last = b.max(inside, self.first)

    def copy(self, source: Value, to: Value) -> None:
        """The row that begins at `source`."""
        (self._shuffled if self.stride in SHUFFLED else self._by_elements)(source, to)

    def clear(self, to: Value) -> None:
        """Zeros: the row is outside of the image."""
        with self.b.loop(0, self.phases) as columns:
            self._zeros(to + columns.i * self.plane, self.b.index(0), self.count)

    def _zeros(self, to: Value, begin: Value, end: Value) -> None:
        b, zero = self.b, self.b.const(0.0, f"vector<{self.lanes}xf32>")
        cover(b, begin, end, self.lanes, lambda q, mask: b.store(zero, self.y, to + q, mask))

    def _by_elements(self, source: Value, to: Value) -> None:
        b, sx = self.b, self.stride
        with b.loop(0, self.phases) as phases:
            at = to + phases.i * self.plane
            before = b.max(self.left - phases.i, 0) + (sx - 1)
            begin = b.min(before // sx, self.count)
            behind = b.max(self.left - phases.i + self.width, 0) + (sx - 1)
            end = b.min(behind // sx, self.count)
            self._zeros(at, b.index(0), begin)
            with b.loop(begin, end) as loop:
                column = loop.i * sx + phases.i - self.left
                b.store(b.load(self.x, source + column), self.y, at + loop.i)
            self._zeros(at, end, self.count)

    def _shuffled(self, source: Value, to: Value) -> None:
        """As many vectors of the image at a time as there are phases. At the ends they are masked;
        what does not depend on the row is computed outside of loops over rows."""
        b, sx, lanes = self.b, self.stride, self.lanes
        with b.when(self.first > 0):
            self._edge(source, to, b.index(0))
        with b.loop(lanes, self.first, lanes) as loop:
            self._edge(source, to, loop.i)
        with b.loop(self.first, self.last, lanes) as loop:
            column = source + loop.i * sx - self.left
            parts = [b.load(self.x, column + k * lanes, lanes) for k in range(sx)]
            self._store_phases(parts, to + loop.i, None)
        with b.when(self.last < self.count):
            self._edge(source, to, self.last)
            with b.loop(0, self.phases) as phases:
                self._zeros(to + phases.i * self.plane, self.last + lanes, self.count)

    def _edge(self, source: Value, to: Value, at: Value) -> None:
        b, lanes = self.b, self.lanes
        column = at * self.stride - self.left
        parts = [self._masked(source, column + k * lanes) for k in range(self.stride)]
        self._store_phases(parts, to + at, b.mask(lanes, self.count - at))

    def _masked(self, source: Value, column: Value) -> Value:
        """Columns from `column` on of the row at `source`; zeros outside of the image."""
        b, lanes = self.b, self.lanes
        outside = b.mask(lanes, 0 - column) ^ 1
        mask = outside & b.mask(lanes, self.width - column)
        return b.load(self.x, source + column, lanes, mask)

    def _store_phases(self, parts: list[Value], to: Value, mask: Value | None) -> None:
        b, sx = self.b, self.stride
        columns = b.join(*parts)
        for phase in range(self.phases):
            lanes = range(phase, sx * self.lanes, sx)
            value = b.shuffle(columns, columns, lanes) if sx > 1 else columns
            b.store(value, self.y, to + phase * self.plane, mask)
