"""Convolutions in f32 of small images, whose rows fill no vectors: vectors of output channels.

The arguments are those of `direct_conv.py`, with one group, and behind `width` come

    batch, parts, block_parts: index

into which the outputs of all images and the channels are cut. The grid is parts * block_parts,
channels first; parts have no more outputs than `Kernel.block` says. Planes and weights, too, are
those of `direct_conv.py`, and sums are made in the same order: which of both kernels it is can be
decided when sizes are known (`ConvSpec.patches_pay`).

A grid index copies what its outputs read to a scratch, [C][taps][outputs]. A register tile is some
outputs times a vector of channels. Vectors of channels are transposed, so that the outputs of a
channel lie side by side as they do in `y`; then comes the epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from abqc.codegen.builder import INDEX, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.conv_spec import PATCH_CHANNELS, PATCH_FLOATS, ConvSpec
from abqc.dialects.epilogue import Epilogue, name_with

from ..grid_block import Span
from .channel_vectors import ChannelVectors
from .direct_conv import OverPlanes
from .finish import Finish, buffers_of
from .tile import broadcast, cover, multiply_add, row_tiles

# Outputs of register tiles, largest first, by the number of registers.
TILES = {32: (24, 12, 8, 4, 2, 1), 16: (12, 8, 4, 2, 1)}


def patch_conv_kernel(spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernel:
    """The kernel; its grid is over parts of the outputs and of the channels."""
    name = name_with(f"{spec.name}_patches", epilogue)
    block = 1, spec.patch_outputs, -(-spec.outputs // PATCH_CHANNELS)
    return Kernel(name, block, partial(_emit, name, spec, epilogue))


def _emit(name: str, spec: ConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa) -> None:
    inputs, result = buffers_of(epilogue)
    arguments = [*[buffer("f32")] * 3, *inputs, result, *[INDEX] * 11]
    with function(module, isa, name, arguments) as (b, i, x, w, bias, *rest, _):
        finish = Finish(b, epilogue, rest[: len(inputs)], isa.lanes(32))
        y, _, *sizes = rest[len(inputs) :]
        _Body(b, spec, finish, x, w, bias, y, *sizes).emit(i)


@dataclass
class _Body(OverPlanes):
    outputs: Value
    channels: Value
    pitch: Value
    plane: Value
    height: Value
    width: Value
    batch: Value
    parts: Value
    block_parts: Value

    def __post_init__(self) -> None:
        b = self.b
        self.lanes = b.isa.lanes(32)
        self.taps = prod(self.spec.window)
        self.terms = self.channels * self.taps
        self.size = self.height * self.width
        self.patches = b.alloca(PATCH_FLOATS, "f32")
        lanes, made = self.lanes, (self.finish, self.y, self.outputs, self.size)
        self.vectors = ChannelVectors(b, *made, lanes, lanes)

    def emit(self, i: Value) -> None:
        b, all_outputs = self.b, self.batch * self.size
        share = (all_outputs + self.parts - 1) // self.parts
        first = b.min(i // self.block_parts * share, all_outputs)
        span = first, b.min(first + share, all_outputs)
        some = (self.outputs + (PATCH_CHANNELS - 1)) // PATCH_CHANNELS
        some = (some + self.block_parts - 1) // self.block_parts * PATCH_CHANNELS
        channel = i % self.block_parts * some
        self._copy_patches(span)
        with b.loop(channel, b.min(channel + some, self.outputs), self.lanes) as loop:
            self._multiply(loop.i, span)
            self.vectors.store(loop.i, span)

    def _copy_patches(self, span: Span) -> None:
        """What outputs of a span read: row by row of them, and tap by tap."""
        b, spec, (first, last) = self.b, self.spec, span
        step = self.plane * prod(spec.phases)
        with b.loop(first // self.width, (last + (self.width - 1)) // self.width) as rows:
            row_begin = rows.i * self.width
            image, row = rows.i // self.height, rows.i % self.height
            begin, end = b.max(row_begin, first), b.min(row_begin + self.width, last)
            source = image * self.channels * step + row * self.pitch - row_begin
            with b.loop(0, spec.window[0]) as dy, b.loop(0, spec.window[1]) as dx:
                tap = dy.i * spec.window[1] + dx.i
                at = source + self.row(dy.i) + self.column(dx.i)

                def copy(p: Value, mask: Value | None, at: Value = at, tap: Value = tap) -> None:
                    with b.loop(0, self.channels) as loop:
                        value = b.load(self.x, at + p + loop.i * step, self.lanes, mask)
                        to = (loop.i * self.taps + tap) * (last - first) + p - first
                        b.store(value, self.patches, to, mask)

                cover(b, begin, end, self.lanes, copy)

    def _weights(self, channel: Value, term: Value) -> Value:
        """A vector of channels from `channel` on, of one term."""
        b, lanes, block = self.b, self.lanes, self.spec.block
        width, last = min(block, lanes), (self.outputs + (block - 1)) // block - 1
        number = channel // block
        blocks = [b.min(number + k, last) for k in range(max(1, lanes // block))]
        inside = channel % block
        return b.join(
            *(b.load(self.w, (n * self.terms + term) * block + inside, width) for n in blocks)
        )

    def _multiply(self, channel: Value, span: Span) -> None:
        """A vector of channels for all outputs."""
        b, lanes, count = self.b, self.lanes, span[1] - span[0]
        bias = b.load(self.bias, channel, lanes, b.mask(lanes, self.outputs - channel))

        def tile(row: Value, height: int) -> None:
            with b.loop(0, self.terms, carry=[bias] * height) as loop:
                weights = self._weights(channel, loop.i)
                at = loop.i * count + row
                factors = [broadcast(b, self.patches, at + r, lanes) for r in range(height)]
                totals = zip(factors, loop.args, strict=True)
                loop.carry(*(multiply_add(b, factor, weights, sum_) for factor, sum_ in totals))
            for r, total in enumerate(loop.results):
                self.vectors.put(total, row + r)

        sizes = TILES[32 if b.isa.registers >= 32 else 16]
        row_tiles(b, b.index(0), count, sizes, tile)
