"""Convolutions in f32 without a matrix of patches: `y[b, n] = bias[n] + sum of w[n, c, v] x[...]`.

    kernel (i, x: memref<?xf32>, w: memref<?xf32>, bias: memref<?xf32>, inputs..., y: memref<?xf32>,
            groups, outputs, channels, pitch, plane, height, width, rows: index)

`x` are planes: an image with its zeros around it, one for each batch, channel and phase. A phase
holds every s-th row and column, where s are the strides, so that what an output's neighbour reads
lies next to what it reads. Rows of a plane are `pitch` elements apart, planes `plane`. The output
at row r and column c then reads, for every tap of the window, element r * pitch + c + a constant:
outputs are numbered so, p = r * pitch + c, and vectors run over p across the ends of rows. What
lies between the rows is computed and not stored. `outputs` and `channels` are those of a group;
`rows`, batch * height * width, is there for profiles.

A register tile is some output channels times some vectors of p. `w` has for every block of channels
[C][taps][channels]; groups have blocks of their own, and samples all blocks where the specification
has `weights_by_sample`. The grid is `Kernel.grid(batch, blocks of
outputs, blocks of channels)`, channels first; an index does OUTPUTS outputs of one block.

Outputs wait on the stack and go from there to `y`, row by row, through the epilogue if there is
one, which reads `inputs`, f32 or i8 or i32, and may make `y` memref<?xi8>.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

from abqc.codegen.builder import INDEX, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.conv_spec import FEW_PIXELS, ConvSpec
from abqc.dialects.epilogue import Epilogue, name_with

from ..grid_block import Span
from .finish import ConvBody, Finish, buffers_of
from .tile import broadcast, cover, cover_by_tiles, multiply_add, sum_pairwise

OUTPUTS = 768  # of a grid index
MANY_OUTPUTS = 65536  # of an image, in all channels: more do not stay in a core's caches
LINE = 16  # floats
PIXEL_LANES, PIXEL_SUMS = 8, 4  # of what does one: channels, and sums that do not wait for others
MANY_TAPS = 16  # a window with more is a loop over its rows
MANY_TAPS_OF_PHASES = 4  # with more, LLVM's schedule of one straight piece spills accumulators


def direct_conv_kernel(spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernel:
    """The kernel; its grid is over batches, outputs and blocks of channels."""
    name = name_with(spec.name, epilogue)
    return Kernel(name, (1, OUTPUTS, 1), partial(_emit, name, spec, epilogue))


def _emit(name: str, spec: ConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa) -> None:
    inputs, result = buffers_of(epilogue)
    arguments = [*[buffer("f32")] * 3, *inputs, result, *[INDEX] * 8]
    with function(module, isa, name, arguments) as (b, i, x, w, bias, *rest, _):
        finish = Finish(b, epilogue, rest[: len(inputs)], isa.lanes(32))
        DirectConv(b, spec, finish, x, w, bias, *rest[len(inputs) :]).emit(i)


class OverPlanes(ConvBody):
    """One whose window reads planes."""

    pitch: Value
    plane: Value

    def row(self, dy: Value) -> Value:
        """Where row `dy` of a window begins."""
        y, stride = dy * self.spec.dilations[0], self.spec.strides[0]
        phase = y % stride * self.spec.phases[1] if stride > 1 else self.b.index(0)
        return phase * self.plane + (y // stride if stride > 1 else y) * self.pitch

    def column(self, dx: int | Value) -> Value:
        """And its column `dx`, from there."""
        x, stride = dx * self.spec.dilations[1], self.spec.strides[1]
        return self.plane * (x % stride) + x // stride


@dataclass
class DirectConv(OverPlanes):
    """The body; of other planes than f32 by another `tap`."""

    groups: Value
    outputs: Value
    channels: Value
    pitch: Value
    plane: Value
    height: Value
    width: Value

    def __post_init__(self) -> None:
        isa, block = self.b.isa, self.spec.block
        self.lanes, self.phases = isa.lanes(32), prod(self.spec.phases)
        # Half of a block's channels at a time where registers are few.
        self.at_once = block if isa.registers >= 32 else min(block, 4)
        self.vectors = max(1, min(8, (isa.registers - 4) // (self.at_once + 1)))
        self.size = self.height * self.width
        self.begin = self.b.index(0)
        self.scratch = self.b.alloca(block * OUTPUTS, "f32")
        self.pixel = self.b.alloca(PIXEL_LANES, "f32")

    def emit(self, i: Value) -> None:
        b, spec = self.b, self.spec
        reach = (self.height - 1) * self.pitch + self.width
        across = (reach + (OUTPUTS - 1)) // OUTPUTS
        per_group = (self.outputs + (spec.block - 1)) // spec.block
        blocks = self.groups * per_group
        block, first = i % blocks, i // blocks % across * OUTPUTS
        batch = i // blocks // across
        group = block // per_group
        channel = group * self.outputs + block % per_group * spec.block
        planes = (batch * self.groups + group) * (self.channels * self.phases)
        weights = batch * blocks + block if spec.weights_by_sample else block
        last = b.min(first + OUTPUTS, reach)
        self.begin = self.image_of(batch, channel)
        self.add_up(planes, weights, channel, first, last)
        corner = b.index(0), b.index(0)
        self.store(batch, channel, group, (first, last), corner, self.width)

    def add_up(
        self, planes: Value, block: Value, channel: Value, first: Value, last: Value
    ) -> None:
        """The sums of a block of channels, the first of which is `channel`, for the outputs from
        `first` to `last`, to the scratch."""
        self.add_up_at(planes, block, channel, (first, last), first)

    def add_up_at(
        self, planes: Value, block: Value, channel: Value, span: Span, origin: Value
    ) -> None:
        """The same to a scratch that begins with output `origin`."""
        b, (first, last) = self.b, span
        start, whole = first, last
        if self.takes_pixels:
            rest = (last - first) % self.lanes
            whole = b.select(rest <= FEW_PIXELS, last - rest, last)
            alone = whole
            if self.at_once == self.spec.block:  # there are registers for both
                width = self.vectors * self.lanes
                beside = (whole < last) & (first + width <= whole)
                with b.when(beside):
                    tile = partial(self._tile, planes, block, channel, 0, self.at_once, origin)
                    tile(first, [None] * self.vectors, [whole, last - 1])
                start, alone = b.select(beside, first + width, first), b.select(beside, last, whole)
            with b.loop(alone, last) as pixels:
                self._pixel(planes, block, channel, origin, pixels.i)
        for begin in range(0, self.spec.block, self.at_once):
            count = min(self.at_once, self.spec.block - begin)
            tile = partial(self._tile, planes, block, channel, begin, count, origin)
            cover_by_tiles(b, start, whole, self.lanes, self.vectors, tile)

    def first_channel(self) -> Value:
        """From which on `add_up` goes over those of the image."""
        return self.b.index(0)

    def start(
        self, channel: Value, begin: int, count: int, at: Value, masks: Sequence[Value | None]
    ) -> list[Value]:
        """Sums before that, of `count` channels of a block from channel `begin` on and outputs from
        `at` of the scratch on."""
        b, last = self.b, self.groups * self.outputs - 1
        bias = [
            broadcast(b, self.bias, b.min(channel + begin + n, last), self.lanes)
            for n in range(count)
        ]
        return [value for value in bias for _ in masks]

    def _tile(
        self,
        planes: Value,
        block: Value,
        channel: Value,
        begin: int,
        count: int,
        first: Value,
        p: Value,
        masks: list[Value | None],
        pixels: Sequence[Value] = (),
    ) -> None:
        """`count` channels of a block from channel `begin` on, for the outputs from `p` on: a
        vector for each of `masks`, which say how much of it there is. Beside them, of a window of
        one tap, the outputs `pixels` of all channels of the block."""
        b, spec, lanes, vectors = self.b, self.spec, self.lanes, len(masks)
        sums = count * vectors
        if begin == 0 and vectors == self.vectors:
            self._fetch(p)
        start = self.start(channel, begin, count, p - first, masks)
        start += [self._pixel_bias(channel)] * len(pixels)
        taps = list(product(range(spec.window[0]), range(spec.window[1])))
        with b.loop(self.first_channel(), self.channels, carry=start) as channels:
            at = (planes + channels.i * self.phases) * self.plane + p
            w_at = ((block * self.channels + channels.i) * len(taps)) * spec.block + begin
            acc, beside = channels.args[:sums], channels.args[sums:]
            beside = [
                self._add_pixel(total, planes, block, channels.i, pixel)
                for total, pixel in zip(beside, pixels, strict=True)
            ]
            if len(taps) <= self.most_taps:
                for tap, (dy, dx) in enumerate(taps):
                    offset = self.row(b.index(dy)) + self.column(dx)
                    acc = self.tap(acc, at + offset, w_at + tap * spec.block, count, masks)
            else:
                with b.loop(0, spec.window[0], carry=acc) as rows:
                    acc, row = list(rows.args), self.row(rows.i)
                    w_row = w_at + rows.i * (spec.window[1] * spec.block)
                    for dx in range(spec.window[1]):
                        offset = row + self.column(dx)
                        acc = self.tap(acc, at + offset, w_row + dx * spec.block, count, masks)
                    rows.carry(*acc)
                acc = rows.results
            channels.carry(*acc, *beside)
        for total, pixel in zip(channels.results[sums:], pixels, strict=True):
            self._store_pixel(total, pixel - first)
        for n in range(count):
            for v, mask in enumerate(masks):
                to = (begin + n) * OUTPUTS + (p - first) + v * lanes
                b.store(channels.results[n * vectors + v], self.scratch, to, mask)

    def image_of(self, batch: Value, channel: Value) -> Value:
        """Where the outputs of a channel begin."""
        return (batch * (self.groups * self.outputs) + channel) * self.size

    def _fetch(self, p: Value) -> None:
        """The lines that the outputs of a tile go to, where all that an image has fill a cache: by
        the time that they are stored they are there. `begin` is where output 0 goes."""
        b, width = self.b, self.vectors * self.lanes
        with b.when(self.groups * self.outputs * self.size > MANY_OUTPUTS):
            at = self.begin + p - p // self.pitch * (self.pitch - self.width)
            with b.loop(0, self.spec.block) as n:
                for line in range(0, width + LINE, LINE):
                    b.prefetch(self.y, at + n.i * self.size + line)

    @property
    def takes_pixels(self) -> bool:
        """Whether a few outputs that fill no vector are done as vectors of all channels of a block,
        beside a tile of others where there is a whole one."""
        return prod(self.spec.window) == 1 and self.spec.block == PIXEL_LANES

    def _pixel(self, planes: Value, block: Value, channel: Value, first: Value, p: Value) -> None:
        """Output `p` of all channels of a block, as a vector."""
        b = self.b
        zeros = [b.const(0.0, f"vector<{PIXEL_LANES}xf32>")] * (PIXEL_SUMS - 1)
        add = partial(self._add_pixel, planes=planes, block=block, p=p)
        whole = self.channels // PIXEL_SUMS * PIXEL_SUMS
        start = [self._pixel_bias(channel), *zeros]
        with b.loop(0, whole, PIXEL_SUMS, start) as loop:
            loop.carry(*(add(total, c=loop.i + n) for n, total in enumerate(loop.args)))
        with b.loop(whole, self.channels, carry=[sum_pairwise(loop.results)]) as rest:
            rest.carry(add(rest.args[0], c=rest.i))
        self._store_pixel(rest.results[0], p - first)

    def _pixel_bias(self, channel: Value) -> Value:
        last = self.groups * self.outputs - channel
        return self.b.load(self.bias, channel, PIXEL_LANES, self.b.mask(PIXEL_LANES, last))

    def _add_pixel(self, total: Value, planes: Value, block: Value, c: Value, p: Value) -> Value:
        """And what it reads of channel `c`."""
        b, lanes = self.b, PIXEL_LANES
        x = broadcast(b, self.x, (planes + c * self.phases) * self.plane + p, lanes)
        return multiply_add(b, x, b.load(self.w, (block * self.channels + c) * lanes, lanes), total)

    def _store_pixel(self, total: Value, at: Value) -> None:
        """To place `at` of the scratch."""
        b = self.b
        b.store(total, self.pixel, 0)
        with b.loop(0, PIXEL_LANES) as n:
            b.store(b.load(self.pixel, n.i), self.scratch, n.i * OUTPUTS + at)

    @property
    def most_taps(self) -> int:
        """Of a window that is spelled out."""
        return MANY_TAPS if self.phases == 1 else MANY_TAPS_OF_PHASES

    def tap(
        self,
        acc: Sequence[Value],
        at: Value,
        w_at: Value,
        count: int,
        masks: Sequence[Value | None],
    ) -> list[Value]:
        """Sums, [count][masks], and the products of pixels from `at` on with weights."""
        b, lanes = self.b, self.lanes
        xs = [b.load(self.x, at + v * lanes, lanes, mask) for v, mask in enumerate(masks)]
        result = []
        for n in range(count):
            weight = broadcast(b, self.w, w_at + n, lanes)
            for v, x in enumerate(xs):
                result.append(multiply_add(b, x, weight, acc[n * len(xs) + v]))
        return result

    def store(
        self,
        batch: Value,
        channel: Value,
        group: Value,
        span: Span,
        corner: tuple[Value, Value],
        width: Value,
    ) -> None:
        """The outputs of a span that are in rows, of this width, from the scratch; output 0 is that
        of row and column `corner` of the image."""
        b, spec, lanes, (first, last) = self.b, self.spec, self.lanes, span
        size = self.size
        channels = b.min((group + 1) * self.outputs - channel, spec.block)
        with b.loop(0, channels) as n:
            image = batch * (self.groups * self.outputs) + channel + n.i
            steady = self.finish.steady(batch, channel + n.i, image)
            with b.loop(first // self.pitch, (last + (self.pitch - 1)) // self.pitch) as rows:
                begin = b.max(rows.i * self.pitch, first)
                end = b.min(rows.i * self.pitch + width, last)
                to = image * size + (rows.i + corner[0]) * self.width + corner[1]
                to = to - rows.i * self.pitch
                source = n.i * OUTPUTS - first

                def store(
                    at: Value, mask: Value | None, to: Value = to, source: Value = source
                ) -> None:
                    value = b.load(self.scratch, source + at, lanes, mask)
                    b.store(self.finish(value, steady, to + at, mask), self.y, to + at, mask)

                cover(b, begin, end, lanes, store)
