"""Convolutions in f32 with windows of 3 x 3 by Winograd's F(2 x 2, 3 x 3).

Lavin and Gray: "Fast Algorithms for Convolutional Neural Networks", 2016. A tile is 2 x 2 outputs
of an image and the 4 x 4 inputs d that they read: 16 products instead of 36. With the matrices A, B
and G of the paper

    Y[n] = A^T (sum over c of (G w[n, c] G^T) * (B^T d[c] B)) A

the inner product being one of elements: 16 matrix products, one for each place of a tile.

The arguments are those of `direct_conv.py`, with one phase and one group, but that `x` are images
without zeros around them, as `depthwise_conv.py` has them, and that behind `width` come

    batch, parts, block_parts: index

into which the tiles of all images and the blocks of channels are cut: small images share what is
read of the weights. `w` has G w G^T for every block of output channels, [16][C][channels]. The grid
is parts * block_parts, channels first; parts have no more of either than `Kernel.block` says.

A grid index transforms the inputs of its tiles to a scratch, [16][C][tiles]. For each of its
blocks, products go to a second one, [16][tiles][channels], register tiles being some tiles times
some vectors of channels. A vector of channels is transformed back, [2][2 * tiles][channels], and
transposed, so that outputs of a row lie side by side as they do in `y`; then comes the epilogue.
Places outside of the image only reach outputs that are not stored. The scratches take less than
600 KiB of the stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from abqc.codegen.builder import INDEX, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.conv_spec import WINOGRAD_PLACES, ConvSpec
from abqc.dialects.epilogue import Epilogue, name_with

from ..grid_block import Span
from .finish import ConvBody, Finish, buffers_of
from .matrix import transpose
from .tile import broadcast, ceil_div, cover, multiply_add, row_tiles

BLOCKS = 2  # of channels, of a grid index at most
MAX_TILES = 64  # of a grid index
LEAST_TILES = 16  # that it may have
INPUTS = 4096  # its tiles * channels, where that leaves LEAST_TILES
TRANSFORMED_CHANNELS = 8  # at a time: rows of few tiles share lines, which L1 keeps meanwhile
LINE = 16  # floats; between matrices, so that their elements do not share a set of the L1 cache
EDGE = 4  # of the inputs of a tile
SMALLER_ROWS = (8, 4, 2, 1)  # of register tiles for what is left


def winograd_conv_kernel(spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernel:
    """The kernel; its grid is over parts of the tiles and of the blocks of channels."""
    name = name_with(spec.name, epilogue)
    return Kernel(name, (1, tiles_of(spec), BLOCKS), partial(_emit, name, spec, epilogue))


def tiles_of(spec: ConvSpec) -> int:
    """Tiles of a grid index at most: transformed inputs take 256 KiB, 512 KiB from 257 channels
    on."""
    fitting = INPUTS // spec.channels // LEAST_TILES * LEAST_TILES
    return max(LEAST_TILES, min(MAX_TILES, fitting))


def _emit(name: str, spec: ConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa) -> None:
    inputs, result = buffers_of(epilogue)
    arguments = [*[buffer("f32")] * 3, *inputs, result, *[INDEX] * 11]
    with function(module, isa, name, arguments) as (b, i, x, w, bias, *rest, _):
        finish = Finish(b, epilogue, rest[: len(inputs)], isa.lanes(32))
        y, _, _, _, *sizes = rest[len(inputs) :]
        _Body(b, spec, finish, x, w, bias, y, *sizes).emit(i)


@dataclass(frozen=True)
class _Row:
    """Tiles `begin` .. `end` of those of all images: they are of image `batch`, of its row of tiles
    `row`, whose first tile is `first`."""

    batch: Value
    row: Value
    first: Value
    begin: Value
    end: Value


@dataclass(frozen=True)
class _Tiles:
    """Of a grid index, among those of all images; `pitch`: of a channel's transformed inputs."""

    first: Value
    last: Value
    pitch: Value


@dataclass(frozen=True)
class _Place:
    """Where a vector of transformed inputs goes: the number of its first tile, among an index's."""

    number: Value
    pitch: Value
    mask: Value | None


@dataclass
class _Body(ConvBody):
    pitch: Value
    plane: Value
    height: Value
    width: Value
    batch: Value
    parts: Value
    block_parts: Value

    def __post_init__(self) -> None:
        b, spec = self.b, self.spec
        self.image_rows = self.plane // b.max(self.pitch, 1)  # no columns are no rows
        # Known to LLVM: as arguments they cost nudenet 6 % (Zen 4).
        self.channels, self.outputs = b.index(spec.channels), b.index(spec.outputs)
        self.lanes = b.isa.lanes(32)
        self.tiles = tiles_of(spec)
        self.across, self.down = ceil_div(self.width, 2), ceil_div(self.height, 2)
        # Between the 16 matrices of inputs and of products.
        self.inputs_pitch = spec.channels * self.tiles + LINE
        self.products_pitch = self.tiles * spec.block + LINE
        self.inputs = b.alloca(WINOGRAD_PLACES * self.inputs_pitch, "f32")
        self.products = b.alloca(WINOGRAD_PLACES * self.products_pitch, "f32")
        self.pixels = 2 * self.tiles  # of one of the two rows
        self.back = b.alloca(2 * self.pixels * self.lanes, "f32")
        self.transposed = b.alloca(2 * self.pixels * self.lanes, "f32")

    def emit(self, i: Value) -> None:
        b, blocks = self.b, ceil_div(self.outputs, self.spec.block)
        tiles = self.batch * self.down * self.across
        share = (tiles + self.parts - 1) // self.parts
        first = b.min(i // self.block_parts * share, tiles)
        last = b.min(first + share, tiles)
        # A few tiles lie without gaps between channels: more of them stay in a cache.
        some = last - first < self.lanes
        own = _Tiles(first, last, b.select(some, last - first, b.index(self.tiles)))
        blocks_share = (blocks + self.block_parts - 1) // self.block_parts
        first_block = i % self.block_parts * blocks_share
        self._transform_tiles(own)
        with b.loop(first_block, b.min(first_block + blocks_share, blocks)) as loop:
            with b.loop(0, WINOGRAD_PLACES) as places:
                self._multiply(loop.i, places.i, own)
            with b.loop(0, self.spec.block, self.lanes) as vectors:
                channel = loop.i * self.spec.block + vectors.i
                self._transform_back(vectors.i, channel, last - first)
                self._transpose(last - first)
                self._store(channel, own)

    @contextmanager
    def _rows(self, tiles: _Tiles) -> Iterator[_Row]:
        """A loop over the rows of tiles that these are of."""
        b, across, first, last = self.b, self.across, tiles.first, tiles.last
        with b.loop(first // across, (last + (across - 1)) // across) as rows:
            begin = rows.i * across
            batch, row = rows.i // self.down, rows.i % self.down
            yield _Row(batch, row, begin, b.max(begin, first), b.min(begin + across, last))

    def _transform_tiles(self, tiles: _Tiles) -> None:
        """B^T d B of all channels, some at a time."""
        b, step = self.b, TRANSFORMED_CHANNELS
        with b.loop(0, self.channels, step) as loop, self._rows(tiles) as row:
            channels = loop.i, b.min(loop.i + step, self.channels)
            cover(b, row.begin, row.end, self.lanes, partial(self._transform, channels, tiles, row))

    def _transform(
        self, channels: Span, tiles: _Tiles, row: _Row, tile: Value, mask: Value | None
    ) -> None:
        """The same of some channels, for a vector of tiles of a row."""
        b, lanes, (top, left) = self.b, self.lanes, self.spec.before
        line, column = row.row * 2 - top, (tile - row.first) * 2 - left
        at = partial(self._transform_at, channels, row.batch, line, column)
        place = _Place(tile - tiles.first, tiles.pitch, mask)
        if mask is not None:
            at(place, edge=True)
            return
        inside = (line >= 0) & (line + EDGE <= self.image_rows) & (column >= 0)
        inside = inside & (column + (2 * lanes + 2) <= self.pitch)
        with b.when(inside):
            at(place, edge=False)
        with b.when(inside ^ 1):
            at(place, edge=True)

    def _transform_at(
        self,
        channels: Span,
        batch: Value,
        line: Value,
        column: Value,
        place: _Place,
        *,
        edge: bool,
    ) -> None:
        """The same for tiles whose inputs begin at a row and column of the image; at its `edge`
        some may lie outside."""
        b, lanes = self.b, self.lanes
        starts = [column + at for at in (0, lanes, 2, lanes + 2)]
        lines = [line + k for k in range(EDGE)]
        masks = [[self._inside(row, s) if edge else None for s in starts] for row in lines]
        with b.loop(*channels) as loop:
            at = (batch * self.channels + loop.i) * self.plane
            parts = [
                [
                    b.load(self.x, at + row * self.pitch + start, lanes, within)
                    for start, within in zip(starts, of_row, strict=True)
                ]
                for row, of_row in zip(lines, masks, strict=True)
            ]
            columns = [_transformed(list(column)) for column in zip(*parts, strict=True)]
            to = loop.i * place.pitch + place.number
            for y, (low, high, low2, high2) in enumerate(zip(*columns, strict=True)):
                even, odd = range(0, 2 * lanes, 2), range(1, 2 * lanes, 2)
                pairs = ((low, high), (low2, high2))
                d = [b.shuffle(*pair, every) for pair in pairs for every in (even, odd)]
                for x, value in enumerate(_transformed(d)):
                    b.store(value, self.inputs, to + (y * EDGE + x) * self.inputs_pitch, place.mask)

    def _inside(self, row: Value, column: Value) -> Value:
        """Which lanes of a row from `column` on are in the image."""
        b, lanes = self.b, self.lanes
        width = b.select((row >= 0) & (row < self.image_rows), self.pitch, b.index(0))
        return (b.mask(lanes, 0 - column) ^ 1) & b.mask(lanes, width - column)

    def _multiply(self, block: Value, place: Value, tiles: _Tiles) -> None:
        """The products of a block of channels for one place of these tiles."""
        b, spec, lanes = self.b, self.spec, self.lanes
        many = b.isa.registers >= 32  # 24 accumulators, else 12
        vectors = spec.block // lanes if many else 2
        rows = 24 // vectors if many else 6
        w_at = (block * WINOGRAD_PLACES + place) * self.channels * spec.block
        x_at, y_at = place * self.inputs_pitch, place * self.products_pitch

        def tile(column: Value, row: Value, height: int) -> None:
            places = list(product(range(height), range(vectors)))
            zeros = [b.const(0.0, f"vector<{lanes}xf32>")] * len(places)
            with b.loop(0, self.channels, carry=zeros) as loop:
                at = w_at + loop.i * spec.block + column
                weights = [b.load(self.w, at + v * lanes, lanes) for v in range(vectors)]
                x = x_at + loop.i * tiles.pitch + row
                factors = [broadcast(b, self.inputs, x + r, lanes) for r in range(height)]
                loop.carry(
                    *(
                        multiply_add(b, factors[r], weights[v], total)
                        for (r, v), total in zip(places, loop.args, strict=True)
                    )
                )
            for (r, v), total in zip(places, loop.results, strict=True):
                b.store(total, self.products, y_at + (row + r) * spec.block + column + v * lanes)

        sizes = [rows, *(size for size in SMALLER_ROWS if size < rows)]
        with b.loop(0, spec.block, vectors * lanes) as columns:
            row_tiles(b, b.index(0), tiles.last - tiles.first, sizes, partial(tile, columns.i))

    def _transform_back(self, vector: Value, channel: Value, count: Value) -> None:
        """A^T m A and the bias, for a vector of channels of all tiles."""
        b, lanes = self.b, self.lanes
        bias = b.load(self.bias, channel, lanes, b.mask(lanes, self.outputs - channel))
        with b.loop(0, count) as tiles:
            at = tiles.i * self.spec.block + vector
            m = [
                [
                    b.load(self.products, at + (y * EDGE + x) * self.products_pitch, lanes)
                    for y in range(EDGE)
                ]
                for x in range(EDGE)
            ]
            columns = [_transformed_back(column) for column in m]
            for y, row in enumerate(zip(*columns, strict=True)):
                for x, value in enumerate(_transformed_back(list(row))):
                    to = (tiles.i * 2 + (y * self.pixels + x)) * lanes
                    b.store(value + bias, self.back, to)

    def _transpose(self, count: Value) -> None:
        """[2][pixels][channels] to [channels][2][pixels], for `count` tiles."""
        b, lanes = self.b, self.lanes
        with b.loop(0, 2) as rows, b.loop(0, count * 2, lanes) as loop:
            at = rows.i * self.pixels + loop.i
            vectors = [b.load(self.back, (at + j) * lanes, lanes) for j in range(lanes)]
            for j, value in enumerate(transpose(b, vectors)):
                b.store(value, self.transposed, at + j * (2 * self.pixels))

    def _store(self, channel: Value, tiles: _Tiles) -> None:
        """The outputs of the tiles that are in the images, from the scratch."""
        b, lanes, width = self.b, self.lanes, self.width
        with b.loop(0, b.min(self.outputs - channel, lanes)) as n, self._rows(tiles) as row:
            image = row.batch * self.outputs + channel + n.i
            steady = self.finish.steady(row.batch, channel + n.i, image)
            with b.loop(0, 2) as two:
                line = row.row * 2 + two.i
                row_begin = row.first * 2
                end = b.min(row.end * 2, row_begin + width)
                source = (n.i * 2 + two.i) * self.pixels - tiles.first * 2
                to = (image * self.height + line) * width - row_begin

                def store(
                    at: Value, mask: Value | None, to: Value = to, source: Value = source
                ) -> None:
                    value = b.load(self.transposed, source + at, lanes, mask)
                    b.store(self.finish(value, steady, to + at, mask), self.y, to + at, mask)

                with b.when(line < self.height):
                    cover(b, row.begin * 2, end, lanes, store)


def _transformed(d: list[Value]) -> list[Value]:
    """B^T times a column."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _transformed_back(m: list[Value]) -> list[Value]:
    """A^T times a column."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
