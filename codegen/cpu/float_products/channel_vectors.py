"""Results by vectors of output channels, turned so that a channel's outputs lie as they do in `y`.

Kernels of small images, whose rows fill no vectors, compute some outputs of all images by vectors
of channels (`patch_conv.py`, `../int8_conv/patches.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value
from abqc.dialects.conv_spec import PATCH_OUTPUTS

from ..grid_block import Span
from .finish import Finish
from .matrix import transpose
from .tile import cover


@dataclass
class ChannelVectors:
    """Up to PATCH_OUTPUTS outputs of `width` channels, a multiple of `lanes`; memory on the stack,
    to be made outside of loops. `y` is [batch, channels, size], of numbers of 32 bits or what the
    epilogue makes of these, `element`."""

    b: Builder
    finish: Finish
    y: Value
    channels: Value
    size: Value
    lanes: int
    width: int
    element: str = "f32"

    def __post_init__(self) -> None:
        count = PATCH_OUTPUTS * self.width
        self.sums = self.b.alloca(count, self.element)
        self.turned = self.b.alloca(count, self.element)

    def put(self, value: Value, output: Value, at: int = 0) -> None:
        """Some channels, from the one of number `at` on, of an output of the span."""
        self.b.store(value, self.sums, output * self.width + at)

    def store(self, channel: Value, span: Span) -> None:
        """The outputs of a span, of all images', of the channels from `channel` on that exist,
        through the epilogue to `y`."""
        self._turn(span)
        b, lanes, (first, last), size = self.b, self.lanes, span, self.size
        with (
            b.loop(0, b.min(self.channels - channel, self.width)) as n,
            b.loop(first // size, (last + (size - 1)) // size) as images,
        ):
            image = images.i * self.channels + channel + n.i
            steady = self.finish.steady(images.i, channel + n.i, image)
            image_begin = images.i * size
            to, source = image * size - image_begin, n.i * PATCH_OUTPUTS - first

            def store(
                at: Value, mask: Value | None, to: Value = to, source: Value = source
            ) -> None:
                value = b.load(self.turned, source + at, lanes, mask)
                b.store(self.finish(value, steady, to + at, mask), self.y, to + at, mask)

            begin, end = b.max(image_begin, first), b.min(image_begin + size, last)
            cover(b, begin, end, lanes, store)

    def _turn(self, span: Span) -> None:
        """[outputs][channels] to [channels][outputs]."""
        b, lanes, width = self.b, self.lanes, self.width
        with b.loop(0, span[1] - span[0], lanes) as loop:
            for part in range(0, width, lanes):
                rows = [(loop.i + j) * width + part for j in range(lanes)]
                vectors = [b.load(self.sums, row, lanes) for row in rows]
                for j, value in enumerate(transpose(b, vectors)):
                    b.store(value, self.turned, loop.i + (part + j) * PATCH_OUTPUTS)
