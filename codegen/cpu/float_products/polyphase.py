"""Images with zeros around them, cut into phases by strides, in one pass: what convolutions read.

    kernel (i, x: memref<?xf32>, y: memref<?xf32>, height, width, rows, pitch, top, left: index)

`x` are B * C images of height x width, `y` for each of them a plane of rows x pitch for each phase:

    y[image, py * sx + px, r, q] = x[image, r * sy + py - top, q * sx + px - left], or 0 outside

The grid is `Kernel.grid(images, rows)`, rows first; an index does ROWS rows of all phases. Columns
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


def polyphase_kernel(strides: tuple[int, int]) -> Kernel:
    """The kernel; its grid is over images and rows."""
    name = f"polyphase_s{strides[0]}x{strides[1]}"
    return Kernel(name, (1, ROWS), partial(_emit, name, strides))


def _emit(name: str, strides: tuple[int, int], module: Any, isa: Isa) -> None:
    arguments = [buffer("f32")] * 2 + [INDEX] * 6
    with function(module, isa, name, arguments) as (b, i, x, y, *sizes):
        Polyphase(b, strides, x, y, *sizes).emit(i)


@dataclass
class Polyphase:
    """The body; what elements are made of others says `read` and `image_of`."""

    element: ClassVar[str] = "f32"

    b: Builder
    strides: tuple[int, int]
    x: Value
    y: Value
    height: Value
    width: Value
    rows: Value
    pitch: Value
    top: Value
    left: Value

    def __post_init__(self) -> None:
        self.lanes = self.b.isa.lanes(32)
        self.plane = self.rows * self.pitch

    def emit(self, i: Value) -> None:
        b, (sy, sx) = self.b, self.strides
        blocks = (self.rows + (ROWS - 1)) // ROWS
        image, first = i // blocks, i % blocks * ROWS
        last = b.min(first + ROWS, self.rows)
        origin = self.image_of(image) * self.height
        row = self._shuffled_row if sx in SHUFFLED else self._row
        with b.loop(0, sy) as phases, b.loop(first, last) as rows:
            source = rows.i * sy + phases.i - self.top
            to = (image * (sy * sx) + phases.i * sx) * self.plane + rows.i * self.pitch
            inside = (source >= 0) & (source < self.height)
            with b.when(inside):
                row((origin + source) * self.width, to)
            with b.when(inside ^ 1), b.loop(0, sx) as columns:
                self._zeros(to + columns.i * self.plane, b.index(0), self.pitch)

    def image_of(self, image: Value) -> Value:
        """Which image of `x` (the first one, of several) planes `image` are made of."""
        return image

    def read(self, at: Value, lanes: int, mask: Value | None = None) -> Value:
        """What planes hold of the element of `x` at `at`, or of as many as there are lanes."""
        return self.b.load(self.x, at, lanes, mask)

    def _zeros(self, to: Value, begin: Value, end: Value) -> None:
        b, zero = self.b, self.b.const(0, vec(self.lanes, self.element))
        cover(b, begin, end, self.lanes, lambda q, mask: b.store(zero, self.y, to + q, mask))

    def _row(self, source: Value, to: Value) -> None:
        """A row of each phase from the row of the image that begins at `source`, by elements."""
        b, sx = self.b, self.strides[1]
        with b.loop(0, sx) as phases:
            at = to + phases.i * self.plane
            before = self.left - phases.i + (sx - 1)
            begin = b.min(before // sx, self.pitch)
            end = b.min((before + self.width) // sx, self.pitch)
            self._zeros(at, b.index(0), begin)
            with b.loop(begin, end) as loop:
                column = loop.i * sx + phases.i - self.left
                b.store(self.read(source + column, 0), self.y, at + loop.i)
            self._zeros(at, end, self.pitch)

    def _shuffled_row(self, source: Value, to: Value) -> None:
        """The same, as many vectors of the image at a time as there are phases."""
        b, sx, lanes = self.b, self.strides[1], self.lanes
        with b.loop(0, self.pitch, lanes) as loop:
            column = loop.i * sx - self.left
            within = (column >= 0) & (column + sx * lanes <= self.width)
            whole = within & (loop.i + lanes <= self.pitch)
            with b.when(whole):
                parts = [self.read(source + column + k * lanes, lanes) for k in range(sx)]
                self._store_phases(parts, to + loop.i, None)
            with b.when(whole ^ 1):
                parts = [self._masked(source, column + k * lanes) for k in range(sx)]
                self._store_phases(parts, to + loop.i, b.mask(lanes, self.pitch - loop.i))

    def _masked(self, source: Value, column: Value) -> Value:
        """Columns from `column` on of the row at `source`; zeros outside of the image."""
        b, lanes = self.b, self.lanes
        outside = b.mask(lanes, 0 - column) ^ 1
        mask = outside & b.mask(lanes, self.width - column)
        return self.read(source + column, lanes, mask)

    def _store_phases(self, parts: list[Value], to: Value, mask: Value | None) -> None:
        b, sx = self.b, self.strides[1]
        columns = b.join(*parts)
        for phase in range(sx):
            lanes = range(phase, sx * self.lanes, sx)
            value = b.shuffle(columns, columns, lanes) if sx > 1 else columns
            b.store(value, self.y, to + phase * self.plane, mask)
