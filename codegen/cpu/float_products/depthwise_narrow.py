"""Depthwise convolutions of narrow images: as many channels at a time as a vector has lanes.

Rows of a narrow image fill no vectors, and loads that begin anywhere take longer than products. So
pixels of channels are transposed, to a scratch with zeros around the image, [row][column][channel]:
a vector is a pixel of all channels. A register tile is some outputs of a row, which share the
pixels that their windows read. Results, [row][column][channel], are transposed back and go through
the epilogue a channel at a time.

With 5 x 5 taps a channel of 6 x 4 takes 29 ns, by rows 90; of 7 x 7 50 and 92; of 20 x 20 318 and
397; from 28 columns on rows are as fast (Zen 4, AVX-512).
"""

from __future__ import annotations

from abqc.codegen.builder import Value
from abqc.dialects.conv_spec import DEPTHWISE_CHANNELS, ConvSpec

from ..grid_block import Span
from .images import Images, rows_read
from .matrix import transpose
from .tile import cover, multiply_add

WIDTHS = (24, 16, 8, 4)  # of outputs
PIXELS = 2048  # of the scratch; images of the least width take what they need
TILES = (4, 8)  # outputs of a register tile; where there are 16 registers the smaller one alone


def narrow_width(spec: ConvSpec, strip: int) -> int:
    """The widest outputs that are done so, `strip` rows at a time."""
    rows = rows_read(spec, strip)
    fitting = (width for width in WIDTHS if rows * _columns(spec, width) <= PIXELS)
    return next(fitting, WIDTHS[-1])


class NarrowImages:
    """What does at most `strip` rows of outputs, no wider than `narrow_width`, of as many channels
    as there are lanes."""

    def __init__(self, images: Images, strip: int) -> None:
        self.images, self.b, self.spec = images, images.b, images.spec
        b, spec = self.b, self.spec
        self.lanes = lanes = b.isa.lanes(32)
        width = narrow_width(spec, strip)
        pixels = rows_read(spec, strip) * _columns(spec, width)
        self.nowhere = pixels * lanes  # takes pixels that there are not
        self.pixels = b.alloca((pixels + TILES[-1] * spec.strides[1]) * lanes, "f32")
        self.pitch_back = strip * width + lanes
        self.sums = b.alloca(self.pitch_back * lanes, "f32")
        self.back = b.alloca(self.pitch_back * lanes, "f32")
        _, left = spec.before
        needed = (images.width - 1) * spec.strides[1] + (spec.reach[1] + 1)
        self.columns = b.max(images.pitch + left, needed)

    def emit(self, batch: Value, channel: Value, first: Value, height: Value) -> None:
        """`height` rows of outputs from row `first` on, of the channels from `channel` on."""
        above, below = self.images.outside(first, height)
        self._clear(above, below)
        self._read(batch, channel, first, (above[1], below[0]))
        self._multiply(channel, height)
        self._store(batch, channel, first, height)

    def _clear(self, above: Span, below: Span) -> None:
        """Pixels that are outside of the image."""
        b, left = self.b, self.spec.before[1]
        right = self.images.pitch + left
        self._zeros(above[1] * self.columns)
        self._zeros((below[1] - below[0]) * self.columns, below[0] * self.columns)
        with b.loop(above[1], below[0]) as rows:
            begin = rows.i * self.columns
            self._zeros(b.index(left), begin)
            self._zeros(self.columns - right, begin + right)

    def _zeros(self, count: Value, begin: Value | int = 0) -> None:
        b = self.b
        zero = b.const(0.0, f"vector<{self.lanes}xf32>")
        with b.loop(0, count) as loop:
            b.store(zero, self.pixels, (loop.i + begin) * self.lanes)

    def _read(self, batch: Value, channel: Value, first: Value, rows: Span) -> None:
        """These rows of the scratch: pixels of the image one behind the other, whatever its width,
        go to where they belong."""
        b, images, lanes, (top, left) = self.b, self.images, self.lanes, self.spec.before
        width = images.pitch
        begin = (rows[0] + first * self.spec.strides[0] - top) * width
        count = (rows[1] - rows[0]) * width
        planes = [
            (batch * images.groups + b.min(channel + n, images.groups - 1)) * images.plane + begin
            for n in range(lanes)
        ]
        between = self.columns - width
        # Behind the last pixel of a row: which one that is, and how far they have moved until then.
        carry = [width, rows[0] * self.columns + left]
        with b.loop(0, count, lanes, carry) as loop:
            end, moved = loop.args
            mask = b.mask(lanes, count - loop.i)
            vectors = [b.load(images.x, plane + loop.i, lanes, mask) for plane in planes]
            for n, pixel in enumerate(transpose(b, vectors)):
                number = loop.i + n
                passed = number >= end
                end, moved = (
                    b.select(passed, end + width, end),
                    b.select(passed, moved + between, moved),
                )
                to = b.select(number < count, (number + moved) * lanes, b.index(self.nowhere))
                b.store(pixel, self.pixels, to)
            loop.carry(end, moved)

    def _multiply(self, channel: Value, height: Value) -> None:
        """Sums of all outputs. The last tile of a row begins where it ends with it, and reads and
        writes beyond where the row is shorter: the next row overwrites that."""
        b, images, lanes = self.b, self.images, self.lanes
        start = b.load(images.bias, channel, lanes, b.mask(lanes, images.groups - channel))
        small = images.width <= TILES[0]
        sizes = [(TILES[0], small), (TILES[1], small ^ 1)]
        for size, those in sizes if b.isa.registers >= 32 else [(TILES[0], images.width > 0)]:
            last = b.max(images.width - size, 0)
            with b.when(those), b.loop(0, height) as rows, b.loop(0, images.width, size) as loop:
                self._tile(channel, start, rows.i, b.min(loop.i, last), size)

    def _tile(self, channel: Value, start: Value, row: Value, column: Value, outputs: int) -> None:
        b, spec, lanes, (taps_y, taps_x) = self.b, self.spec, self.lanes, self.spec.window
        (sy, sx), (dilation_y, dilation_x) = spec.strides, spec.dilations
        group = channel // DEPTHWISE_CHANNELS * (taps_y * taps_x)
        weights = group * DEPTHWISE_CHANNELS + channel % DEPTHWISE_CHANNELS
        uses: dict[int, list[tuple[int, int]]] = {}  # of pixels: by which outputs and taps
        for n in range(outputs):
            for dx in range(taps_x):
                uses.setdefault(n * sx + dx * dilation_x, []).append((n, dx))
        with b.loop(0, taps_y, carry=[start] * outputs) as taps:
            sums = list(taps.args)
            of_row = [
                b.load(self.images.w, weights + (taps.i * taps_x + dx) * DEPTHWISE_CHANNELS, lanes)
                for dx in range(taps_x)
            ]
            at = (row * sy + taps.i * dilation_y) * self.columns + column * sx
            for x, those in sorted(uses.items()):
                pixel = b.load(self.pixels, (at + x) * lanes, lanes)
                for n, dx in those:
                    sums[n] = multiply_add(b, pixel, of_row[dx], sums[n])
            taps.carry(*sums)
        to = row * self.images.width + column
        for n, value in enumerate(taps.results):
            b.store(value, self.sums, (to + n) * lanes)

    def _store(self, batch: Value, channel: Value, first: Value, height: Value) -> None:
        b, images, lanes = self.b, self.images, self.lanes
        count = height * images.width
        with b.loop(0, count, lanes) as loop:
            pixels = [b.load(self.sums, (loop.i + n) * lanes, lanes) for n in range(lanes)]
            for n, values in enumerate(transpose(b, pixels)):
                b.store(values, self.back, loop.i + n * self.pitch_back)
        with b.loop(0, b.min(images.groups - channel, lanes)) as channels:
            image = batch * images.groups + channel + channels.i
            steady = images.finish.steady(batch, channel + channels.i, image)
            to = (image * images.height + first) * images.width
            source = channels.i * self.pitch_back

            def store(
                at: Value, mask: Value | None, to: Value = to, source: Value = source
            ) -> None:
                value = b.load(self.back, source + at, lanes, mask)
                b.store(images.finish(value, steady, to + at, mask), images.y, to + at, mask)

            cover(b, b.index(0), count, lanes, store)


def _columns(spec: ConvSpec, width: int) -> int:
    """What outputs of this width read, and columns of the image that they do not."""
    return (width - 1) * spec.strides[1] + spec.reach[1] + spec.strides[1]
