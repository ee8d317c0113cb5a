"""Convolutions in f32 of images of few channels, which a network begins with: all outputs at once.

The arguments are those of `direct_conv.py`, with one group, but that `x` are images without zeros
around them, as `depthwise_conv.py` has them. The grid is `Kernel.grid(batch, height, blocks of
channels)`, the last of which is 1: an index does ROWS rows of all outputs, as many columns of them
at a time as fit its scratches. It cuts what these read into the planes that `direct_conv.py` knows,
[channel][phase][row][pitch], where all blocks find them in a cache. Meanwhile, what the next index
reads is fetched: images often come from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.epilogue import Epilogue, name_with

from .direct_conv import LINE, OUTPUTS, DirectConv
from .images import Images, Scratch, images_kernel, rows_read
from .tile import ceil_div

ROWS = 4  # of outputs, of a grid index
PLANES = 32768  # floats, where that leaves MIN_COLUMNS
MIN_COLUMNS = 64  # of outputs at a time


def image_conv_kernel(spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernel:
    """The kernel; its grid is over batches and rows."""
    name = name_with(spec.name, epilogue)
    return Kernel(name, (1, ROWS, spec.blocks), partial(_emit, name, spec, epilogue))


def _emit(name: str, spec: ConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa) -> None:
    with images_kernel(name, spec, epilogue, module, isa) as (i, images):
        _Body(images).emit(i)


class _Conv(DirectConv):
    """With `ahead`: runs of elements of the image, each of `lines` lines, which tiles of all blocks
    fetch by and by; outputs are `reach` a block."""

    images: Images
    ahead: Sequence[Value]
    lines: Value
    reach: Value

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
        b, at = self.b, block * self.reach + p
        if begin == 0:
            everything = self.reach * self.spec.blocks
            end = b.min(at + len(masks) * self.lanes, everything)
            with b.loop(at * self.lines // everything, end * self.lines // everything) as loop:
                for run in self.ahead:
                    b.prefetch(self.images.x, run + loop.i * LINE)
        super()._tile(planes, block, channel, begin, count, first, p, masks, pixels)


class _Body:
    def __init__(self, images: Images) -> None:
        self.images, self.b, self.spec = images, images.b, images.spec
        spec, lanes = self.spec, self.b.isa.lanes(32)
        self.lines = -(-rows_read(spec, ROWS) // spec.strides[0])
        self.further = spec.reach[1] // spec.strides[1]  # columns of a phase, beyond outputs
        rows = spec.channels * prod(spec.phases) * self.lines
        fitting = min(OUTPUTS // ROWS, PLANES // rows) - self.further
        self.columns = max(MIN_COLUMNS, fitting // lanes * lanes)
        self.planes = self.b.alloca(rows * (self.columns + self.further), "f32")

    def emit(self, i: Value) -> None:
        b, images = self.b, self.images
        strips = ceil_div(images.height, ROWS)
        batch, first = i // strips, i % strips * ROWS
        height = b.min(images.height - first, ROWS)
        # Pieces of the same width, if there are several.
        pieces = b.max(ceil_div(images.width, self.columns), 1)
        share = b.max((images.width + pieces - 1) // pieces, 1)
        with b.loop(0, images.width, share) as loop:
            width = b.min(images.width - loop.i, share)
            self._piece(batch, (first, loop.i), height, width)

    def _piece(
        self, batch: Value, corner: tuple[Value, Value], height: Value, width: Value
    ) -> None:
        """Outputs of this height and width from a row and column of the image on."""
        b, images, spec = self.b, self.images, self.spec
        pitch = width + self.further
        plane = pitch * self.lines
        self._make_planes(batch, corner, height, pitch, plane)
        sizes = b.index(1), b.index(spec.outputs), b.index(spec.channels), pitch, plane
        conv = _Conv(
            *(b, spec, images.finish, self.planes, images.w, images.bias, images.y),
            *(*sizes, images.height, images.width),
        )
        conv.images, conv.reach = images, (height - 1) * pitch + width
        conv.ahead, conv.lines = self._next_rows(batch, corner, width)
        # Row by row, where vectors across the ends of rows are a fifteenth more.
        span, lanes = (b.index(0), conv.reach), conv.lanes
        by_rows = ceil_div(width, lanes) * height * 16 < ceil_div(conv.reach, lanes) * 15
        runs, run = b.select(by_rows, height, b.index(1)), b.select(by_rows, width, conv.reach)
        with b.loop(0, spec.blocks) as blocks:
            channel = blocks.i * spec.block
            conv.begin = conv.image_of(batch, channel) + corner[0] * images.width + corner[1]
            with b.loop(0, runs) as loop:
                some = loop.i * pitch, loop.i * pitch + run
                conv.add_up_at(b.index(0), blocks.i, channel, some, b.index(0))
            conv.store(batch, channel, b.index(0), span, corner, width)

    def _next_rows(
        self, batch: Value, corner: tuple[Value, Value], width: Value
    ) -> tuple[list[Value], Value]:
        """Where the next index' rows of each channel begin, and how many lines they have. Of
        several pieces, each fetches a part."""
        b, images, spec = self.b, self.images, self.spec
        last = (corner[0] + (ROWS - 1)) * spec.strides[0] + spec.reach[0] - spec.before[0]
        part = corner[1] * images.pitch // b.max(images.width, 1) * (ROWS * spec.strides[0])
        begins = [
            (batch * spec.channels + c) * images.plane + (last + 1) * images.pitch + part
            for c in range(spec.channels)
        ]
        size = width * images.pitch // b.max(images.width, 1) * (ROWS * spec.strides[0])
        return begins, ceil_div(size, LINE)

    def _make_planes(
        self,
        batch: Value,
        corner: tuple[Value, Value],
        height: Value,
        pitch: Value,
        plane: Value,
    ) -> None:
        b, spec, (sy, sx) = self.b, self.spec, self.spec.strides
        with b.loop(0, spec.channels) as channels:
            begin = channels.i * (plane * prod(spec.phases))
            scratch = Scratch(
                self.images,
                self.planes,
                lambda row: begin + row % sy * (plane * sx) + row // sy * pitch,
                plane,
                *(corner[0], height, corner[1], pitch),
            )
            scratch.clear()
            scratch.copy(batch * spec.channels + channels.i)
