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
from typing import Any, ClassVar

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
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
        Polyphase(b, strides, phases, x, y, *sizes).emit(i)


@dataclass
class Polyphase:
    """The body; what planes are made of others say in `image_of` and `row`."""

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
        b, (ny, nx) = self.b, self.phases
        blocks = (self.rows + (ROWS - 1)) // ROWS
        image, first = i // blocks, i % blocks * ROWS
        last = b.min(first + ROWS, self.rows)
        plane = self.rows * self.pitch
        origin = self.image_of(image) * self.height
        row = self.row(plane)
        with b.loop(0, ny) as phases, b.loop(first, last) as rows:
            source = rows.i * self.strides[0] + phases.i - self.top
            to = (image * (ny * nx) + phases.i * nx) * plane + rows.i * self.pitch
            inside = (source >= 0) & (source < self.height)
            with b.when(inside):
                row.copy((origin + source) * self.width, to)
            with b.when(inside ^ 1):
                row.clear(to)

    def image_of(self, image: Value) -> Value:
        """Which image of `x` (the first one, of several) planes `image` are made of."""
        return image

    def row(self, plane: Value) -> PhaseRow:
        """What copies a row; called behind `image_of`."""
        return PhaseRow(*self.of_row(plane))

    def of_row(self, plane: Value) -> tuple[Any, ...]:
        """The fields of a `PhaseRow`."""
        sizes = self.width, self.left, self.pitch, plane
        return self.b, self.strides[1], self.phases[1], self.x, self.y, *sizes


@dataclass
class PhaseRow:
    """A row of an image, `width` elements of `x`, as `count` elements of each of the first `phases`
    in `y`. Phases are `plane` apart; `left` columns come before the image's first one."""

    element: ClassVar[str] = "f32"

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
        self.lanes = self.b.isa.lanes(32)

    def copy(self, source: Value, to: Value) -> None:
        """The row that begins at `source`."""
        (self._shuffled if self.stride in SHUFFLED else self._by_elements)(source, to)

    def clear(self, to: Value) -> None:
        """Zeros: the row is outside of the image."""
        with self.b.loop(0, self.phases) as columns:
            self._zeros(to + columns.i * self.plane, self.b.index(0), self.count)

    def read(self, at: Value, lanes: int, mask: Value | None = None) -> Value:
        """What planes hold of the element of `x` at `at`, or of as many as there are lanes."""
        return self.b.load(self.x, at, lanes, mask)

    def _zeros(self, to: Value, begin: Value, end: Value) -> None:
        b, zero = self.b, self.b.const(0, vec(self.lanes, self.element))
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
                b.store(self.read(source + column, 0), self.y, at + loop.i)
            self._zeros(at, end, self.count)

    def _shuffled(self, source: Value, to: Value) -> None:
        """As many vectors of the image at a time as there are phases."""
        b, lanes = self.b, self.lanes
        with b.loop(0, self.count, lanes) as loop:
            whole = self.is_inside(loop.i) & (loop.i + lanes <= self.count)
            with b.when(whole):
                self.copy_inside(source, to, loop.i)
            with b.when(whole ^ 1):
                self.copy_edge(source, to, loop.i)

    def is_inside(self, at: Value) -> Value:
        """Whether a vector of each phase, from element `at` on, is of the image alone."""
        column = at * self.stride - self.left
        return (column >= 0) & (column + self.stride * self.lanes <= self.width)

    def copy_inside(self, source: Value, to: Value, at: Value) -> None:
        """Such a vector of the row that begins at `source`."""
        column, lanes = source + at * self.stride - self.left, self.lanes
        parts = [self.read(column + k * lanes, lanes) for k in range(self.stride)]
        self._store_phases(parts, to + at, None)

    def copy_edge(self, source: Value, to: Value, at: Value) -> None:
        """The same with zeros where it is not in the image."""
        column, lanes = at * self.stride - self.left, self.lanes
        parts = [self._masked(source, column + k * lanes) for k in range(self.stride)]
        self._store_phases(parts, to + at, self.b.mask(lanes, self.count - at))

    def _masked(self, source: Value, column: Value) -> Value:
        """Columns from `column` on of the row at `source`; zeros outside of the image."""
        b, lanes = self.b, self.lanes
        outside = b.mask(lanes, 0 - column) ^ 1
        mask = outside & b.mask(lanes, self.width - column)
        return self.read(source + column, lanes, mask)

    def _store_phases(self, parts: list[Value], to: Value, mask: Value | None) -> None:
        b, sx = self.b, self.stride
        columns = b.join(*parts)
        for phase in range(self.phases):
            lanes = range(phase, sx * self.lanes, sx)
            value = b.shuffle(columns, columns, lanes) if sx > 1 else columns
            b.store(value, self.y, to + phase * self.plane, mask)
