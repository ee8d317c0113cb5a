"""The largest element of windows of images, in f32.

    kernel (i, x, y: memref<?xf32>, height, width, rows, columns, top, left: index)

`x` are images of height x width, `y` for each of them rows x columns, where the window [ky, kx],
its strides s and dilations d are the kernel's:

    y[image, r, q] = max over v < ky, h < kx of
        x[image, r * sy + v * dy - top, q * sx + h * dx - left]

What is outside of an image is -inf; a NaN in a window is what it gives. The grid is
`Kernel.grid(images, rows)`, rows first; an index does ROWS rows.

Rows are done in pieces of COLUMNS columns. For every column of the image that these read, the
largest of a window's rows goes to a scratch; with a stride of 2 or 4, registers sort columns into
phases there, so that what neighbours read lies side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from math import inf
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.mlir import arith, ir
from abqc.dialects.pool_spec import PoolSpec

from .float_products.tile import cover

ROWS = 8  # of a grid index
COLUMNS = 256  # of a piece
SHUFFLED = (1, 2, 4)  # strides of columns that registers are sorted by
MANY = 32  # rows or columns of a window, all of which are spelled out
MANY_STEPS = 64  # from a window to the next one, and from its first column to its last


def max_pool_kernel(spec: PoolSpec) -> Kernel | None:
    """The kernel; its grid is over images and rows. None where its code, or its scratch, which is
    on the stack, would be large."""
    reach = (spec.window[1] - 1) * spec.dilations[1]
    if max(spec.window) > MANY or max(spec.strides[1], reach) > MANY_STEPS:
        return None
    name = f"max_pool_{spec.name}"
    return Kernel(name, (1, ROWS), partial(_emit, name, spec))


def _emit(name: str, spec: PoolSpec, module: Any, isa: Isa) -> None:
    arguments = [buffer("f32")] * 2 + [INDEX] * 6
    with function(module, isa, name, arguments) as (b, i, x, y, *sizes):
        _Body(b, spec, x, y, *sizes).emit(i)


@dataclass
class _Body:
    b: Builder
    spec: PoolSpec
    x: Value
    y: Value
    height: Value
    width: Value
    rows: Value
    columns: Value
    top: Value
    left: Value

    def __post_init__(self) -> None:
        spec, self.lanes = self.spec, self.b.isa.lanes(32)
        self.reach = (spec.window[1] - 1) * spec.dilations[1]
        self.phases = spec.strides[1] if spec.strides[1] in SHUFFLED else 1
        # Columns of the scratch for each of a row's: phases have one for one.
        self.step = spec.strides[1] // self.phases
        read = (COLUMNS - 1) * self.step + self.reach // self.phases + 1
        self.pitch = (read // self.lanes + 2) * self.lanes
        self.line = self.phases * self.pitch  # of a row
        self.scratch = self.b.alloca(ROWS * self.line, "f32")

    def emit(self, i: Value) -> None:
        b = self.b
        blocks = (self.rows + (ROWS - 1)) // ROWS
        image, first = i // blocks, i % blocks * ROWS
        last = b.min(first + ROWS, self.rows)
        with b.loop(0, self.columns, COLUMNS) as pieces:
            count = b.min(self.columns - pieces.i, COLUMNS)
            self._tallest(image * self.height, first, last, pieces.i, count)
            with b.loop(first, last) as rows:
                line = (rows.i - first) * self.line
                to = (image * self.rows + rows.i) * self.columns + pieces.i
                if self.step == 1:
                    cover(b, b.index(0), count, self.lanes, partial(self._vector, line, to))
                else:
                    with b.loop(0, count) as loop:
                        largest = self._largest(line + loop.i * self.step, 0)
                        b.store(largest, self.y, to + loop.i)

    def _tallest(
        self, image: Value, first: Value, last: Value, column: Value, count: Value
    ) -> None:
        """To the scratch: of every column that `count` windows from `column` on read, the largest
        of the windows' rows, for the rows `first` to `last`. `image` is the number of its first
        row."""
        b, lanes, phases = self.b, self.lanes, self.phases
        (ky, _), sy, dy = self.spec.window, self.spec.strides[0], self.spec.dilations[0]
        read = (count - 1) * self.step + (self.reach // phases + 1)
        with b.loop(0, read, lanes) as loop:
            start = column * self.spec.strides[1] + loop.i * phases - self.left
            inside = (start >= 0) & (start + phases * lanes <= self.width)
            starts = [start + k * lanes for k in range(phases)]
            masks: list[Value | None] = [self._inside(each) for each in starts]
            with b.loop(first, last) as rows:
                row, to = rows.i * sy - self.top, (rows.i - first) * self.line + loop.i
                # The window's rows that are in the image.
                begin = (b.max(0 - row, 0) + (dy - 1)) // dy
                end = b.min((b.max(self.height - row, 0) + (dy - 1)) // dy, ky)
                lines = [(image + row + v * dy) * self.width for v in range(ky)]
                all_rows = (begin == 0) & (end == ky)
                with b.when(inside & all_rows):
                    parts = [self._of_column(lines, each, None) for each in starts]
                    self._keep(parts, to)
                with b.when((inside ^ 1) & all_rows):
                    pairs = zip(starts, masks, strict=True)
                    self._keep([self._of_column(lines, *pair) for pair in pairs], to)
                with b.when(all_rows ^ 1):
                    lowest = [b.const(-inf, f"vector<{lanes}xf32>")] * phases
                    with b.loop(begin, end, carry=lowest) as inner:
                        line = (image + row + inner.i * dy) * self.width
                        found = [
                            self._of_column([line], *pair)
                            for pair in zip(starts, masks, strict=True)
                        ]
                        inner.carry(*map(_larger, inner.args, found))
                    self._keep(inner.results, to)

    def _of_column(self, lines: Sequence[Value], start: Value, mask: Value | None) -> Value:
        """The largest of rows that begin at `lines`, a vector of columns from `start` on."""
        b, lanes = self.b, self.lanes
        found = reduce(_larger, [b.load(self.x, line + start, lanes, mask) for line in lines])
        if mask is None:
            return found
        return b.select(mask, found, b.const(-inf, f"vector<{lanes}xf32>"))

    def _inside(self, column: Value) -> Value:
        """Which lanes are columns of the image."""
        b, lanes = self.b, self.lanes
        return (b.mask(lanes, 0 - column) ^ 1) & b.mask(lanes, self.width - column)

    def _keep(self, parts: Sequence[Value], at: Value) -> None:
        b, phases = self.b, self.phases
        columns = b.join(*parts)
        for phase in range(phases):
            lanes = range(phase, phases * self.lanes, phases)
            value = b.shuffle(columns, columns, lanes) if phases > 1 else columns
            b.store(value, self.scratch, at + phase * self.pitch)

    def _vector(self, line: Value, to: Value, at: Value, mask: Value | None) -> None:
        self.b.store(self._largest(line + at, self.lanes), self.y, to + at, mask)

    def _largest(self, at: Value, lanes: int) -> Value:
        """Of the windows' columns, from the scratch: `lanes` windows, or one where that is 0."""
        width, step = self.spec.window[1], self.spec.dilations[1]
        places = [divmod(h * step, self.phases) for h in range(width)]
        found = [
            self.b.load(self.scratch, at + (phase * self.pitch + column), lanes)
            for column, phase in places
        ]
        return reduce(_larger, found)


def _larger(a: Value, b: Value) -> Value:
    """NaN where one is; of zeros either."""
    flags = ir.Attribute.parse("#arith.fastmath<nsz>")
    return Value(arith.MaximumFOp(a.ir, b.ir, fastmath=flags).result)
