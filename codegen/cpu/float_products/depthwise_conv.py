"""Convolutions in f32 of every channel by itself: `y[b, c] = bias[c] + sum of w[c, v] x[b, c, ..]`.

    kernel (i, x: memref<?xf32>, w: memref<?xf32>, bias: memref<?xf32>, inputs..., y: memref<?xf32>,
            groups, outputs, channels, pitch, plane, height, width, rows: index)

The arguments are those of `direct_conv.py`, but that `x` are images without zeros around them,
[batch, channel, plane / pitch, pitch]; how many rows and columns there are before is the kernel's.
There vectors of the image are multiplied by many channels' weights; here each is loaded for one
product, and a load that crosses lines takes longer than that. So a register tile is TILE_ROWS rows
times VECTORS vectors of outputs: of what the window reads, rows have most in common.

The grid is `Kernel.grid(batch, height, groups)`, channels first; an index does a strip of rows of
some channels, as many columns of it at a time as a scratch has what their windows read: rows with
zeros around them, cut into phases by the stride of columns. Narrow images are done by
`depthwise_narrow.py`, as many channels at a time as a vector has lanes: the first index of these
does them. `w` has [taps][DEPTHWISE_CHANNELS] for every so many channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.conv_spec import DEPTHWISE_CHANNELS, ConvSpec
from abqc.dialects.epilogue import Epilogue, name_with

from ..grid_block import Span
from .depthwise_narrow import NarrowImages, narrow_width
from .finish import Steady
from .images import Images, Scratch, images_kernel, rows_read
from .tile import broadcast, cover_by_tiles, multiply_add

TILE_ROWS = 4
VECTORS = 2
CHANNELS = 4  # of a grid index
STRIPS = (16, 8, 4)  # rows of a grid index
SCRATCH = 8192  # floats, where that leaves MIN_COLUMNS
MIN_COLUMNS = 64  # of outputs at a time
MAX_COLUMNS = 512

Tile = Callable[[Value, list[Value | None]], None]  # from a column on, a mask for each vector


def depthwise_conv_kernel(spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernel:
    """The kernel; its grid is over batches, rows and channels."""
    name = name_with(spec.name, epilogue)
    return Kernel(name, (1, _strip(spec), CHANNELS), partial(_emit, name, spec, epilogue))


def _strip(spec: ConvSpec) -> int:
    """Rows of a grid index: few where the window reads many."""
    needed = MIN_COLUMNS * spec.strides[1] + spec.reach[1]
    fitting = (rows for rows in STRIPS if rows_read(spec, rows) * needed <= SCRATCH)
    return next(fitting, STRIPS[-1])


def _emit(name: str, spec: ConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa) -> None:
    with images_kernel(name, spec, epilogue, module, isa) as (i, images):
        _Body(images).emit(i)


class _Body:
    def __init__(self, images: Images) -> None:
        self.images, self.b, self.spec = images, images.b, images.spec
        b, spec = self.b, self.spec
        self.lanes = lanes = b.isa.lanes(32)
        self.strip, sx = _strip(spec), spec.strides[1]
        self.rows_read = rows_read(spec, self.strip)
        self.further = spec.reach[1] // sx + 1  # columns of a phase, beyond those of outputs
        columns = SCRATCH // (self.rows_read * sx) - self.further
        self.columns = max(MIN_COLUMNS, min(MAX_COLUMNS, columns // lanes * lanes))
        self.line = (self.columns + self.further + VECTORS * lanes) // lanes * lanes
        self.rows = b.alloca(sx * self.rows_read * self.line, "f32")
        self.outputs = b.alloca(TILE_ROWS * VECTORS * lanes, "f32")
        self.narrow = NarrowImages(images, self.strip)

    def emit(self, i: Value) -> None:
        b, images = self.b, self.images
        across = (images.height + (self.strip - 1)) // self.strip
        blocks = (images.groups + (CHANNELS - 1)) // CHANNELS
        channel, first = i % blocks * CHANNELS, i // blocks % across * self.strip
        batch = i // blocks // across
        channels = channel, b.min(channel + CHANNELS, images.groups)
        height = b.min(images.height - first, self.strip)
        narrow = images.width <= narrow_width(self.spec, self.strip)
        with b.when(narrow & (channel % self.lanes < 1)):
            self.narrow.emit(batch, channel, first, height)
        with b.when(narrow ^ 1), b.loop(0, images.width, self.columns) as pieces:
            self._piece(batch, channels, first, height, pieces.i)

    def _piece(
        self, batch: Value, channels: Span, first: Value, height: Value, column: Value
    ) -> None:
        """Columns from `column` on of `height` rows from row `first` on, of these channels."""
        b, images = self.b, self.images
        width = b.min(images.width - column, self.columns)
        count = (width + (self.further - 1 + self.lanes)) // self.lanes * self.lanes
        phase = b.index(self.rows_read * self.line)
        sizes = phase, first, height, column, count
        scratch = Scratch(images, self.rows, lambda row: row * self.line, *sizes)
        scratch.clear()
        with b.loop(*channels) as loop:
            image = batch * images.groups + loop.i
            steady = images.finish.steady(batch, loop.i, image)
            scratch.copy(image)
            to = (image * images.height + first) * images.width + column
            self._multiply(loop.i, steady, to, height, width)

    def _multiply(
        self, channel: Value, steady: Steady, to: Value, height: Value, width: Value
    ) -> None:
        """What is in the scratch, stored from `to` on."""
        b = self.b
        # The last tiles are lower, so that next to no row is computed for nothing.
        lower = (TILE_ROWS - height % TILE_ROWS) % TILE_ROWS * (TILE_ROWS - 1)
        split = b.max(height - lower, 0)
        for rows, span in ((TILE_ROWS, (b.index(0), split)), (TILE_ROWS - 1, (split, height))):
            for tile in self._tiles(rows, span, channel, steady, to):
                cover_by_tiles(b, b.index(0), width, self.lanes, VECTORS, tile)

    def _tiles(
        self, height: int, rows: Span, channel: Value, steady: Steady, to: Value
    ) -> Iterator[Tile]:
        """What computes a tile of `height` rows, in a loop over these `rows` of a strip, whose
        first one is stored from `to` on."""
        b, (begin, end) = self.b, rows
        with b.loop(begin, end, height) as loop:
            begins = self._begins(height, loop.i, end)
            place, count = to + loop.i * self.images.width, b.min(end - loop.i, height)
            yield partial(self._tile, height, channel, begins, steady, place, count)

    def _taps(self, height: int) -> dict[int, list[tuple[int, int]]]:
        """The rows that a tile of `height` rows reads, from its first one on, and for which of its
        rows and of the window's each is."""
        found: dict[int, list[tuple[int, int]]] = {}
        for row in range(height):
            for dy in range(self.spec.window[0]):
                below = row * self.spec.strides[0] + dy * self.spec.dilations[0]
                found.setdefault(below, []).append((row, dy))
        return found

    def _begins(self, height: int, row: Value, rows: Value) -> dict[int, Value]:
        """Where these rows begin, for a tile from `row` of `rows` on. What is below, rows that are
        not stored would read."""
        b, sy = self.b, self.spec.strides[0]
        last = (rows - 1) * sy + self.spec.reach[0]
        return {below: b.min(row * sy + below, last) * self.line for below in self._taps(height)}

    def _tile(
        self,
        height: int,
        channel: Value,
        begins: Mapping[int, Value],
        steady: Steady,
        to: Value,
        count: Value,
        column: Value,
        masks: list[Value | None],
    ) -> None:
        """`height` rows of outputs from `column` on, a vector for each of `masks`; `count` of them
        are stored, from `to` on."""
        b, lanes, vectors = self.b, self.lanes, range(len(masks))
        start = broadcast(b, self.images.bias, channel, lanes)
        places = [(row, v) for row in range(height) for v in vectors]
        taps_y, taps_x = self.spec.window
        weights = channel // DEPTHWISE_CHANNELS * (taps_y * taps_x) * DEPTHWISE_CHANNELS
        weights = weights + channel % DEPTHWISE_CHANNELS
        # Were this loop spelled out, all weights would be broadcast before, and not fit registers.
        with b.loop(0, taps_x, carry=[start] * len(places)) as taps:
            acc = dict(zip(places, taps.args, strict=True))
            offset = self._column(taps.i) + column
            for source, uses in self._taps(height).items():
                at = begins[source] + offset
                xs = [b.load(self.rows, at + v * lanes, lanes) for v in vectors]
                for row, dy in uses:
                    w_at = weights + (dy * taps_x + taps.i) * DEPTHWISE_CHANNELS
                    weight = broadcast(b, self.images.w, w_at, lanes)
                    for v in vectors:
                        acc[row, v] = multiply_add(b, xs[v], weight, acc[row, v])
            taps.carry(*acc.values())
        for (row, v), value in zip(places, taps.results, strict=True):
            b.store(value, self.outputs, (row * len(masks) + v) * lanes)
        with b.loop(0, count) as rows:
            for v, mask in zip(vectors, masks, strict=True):
                value = b.load(self.outputs, (rows.i * len(masks) + v) * lanes, lanes)
                place = to + rows.i * self.images.width + column + v * lanes
                value = self.images.finish(value, steady, place, mask)
                b.store(value, self.images.y, place, mask)

    def _column(self, dx: Value) -> Value:
        """Where column `dx` of a window begins."""
        x, stride = dx * self.spec.dilations[1], self.spec.strides[1]
        plane = self.rows_read * self.line
        return x % stride * plane + x // stride if stride > 1 else x
