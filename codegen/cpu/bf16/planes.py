"""Images as planes of pairs of channels in bf16, rounded on the way: what `conv.py` reads.

    kernel (i, x: memref<?xf32>, y: memref<?xi32>, channels, height, width, rows, pitch, top, left:
            index)

As `float_products/polyphase.py`; `x` are images of `channels` each, groups of channels being images
for themselves, and `y` has planes for every two of their channels, the last pair of an odd number
with a zero. The grid is `Kernel.grid(all pairs, rows)`, rows first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from abqc.codegen.builder import INDEX, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.bf16_conv_spec import PAIR

from ..float_products.polyphase import ROWS, PhaseRow, Polyphase
from .dot import rounded_pairs


def pair_planes_kernel(strides: tuple[int, int], phases: tuple[int, int]) -> Kernel:
    """The kernel; its grid is over pairs of channels and rows."""
    name = f"pair_planes_s{strides[0]}x{strides[1]}_n{phases[0]}x{phases[1]}"
    return Kernel(name, (1, ROWS), partial(_emit, name, strides, phases), uses=frozenset({"bf16"}))


def _emit(
    name: str, strides: tuple[int, int], phases: tuple[int, int], module: Any, isa: Isa
) -> None:
    arguments = [buffer("f32"), buffer("i32")] + [INDEX] * 7
    with function(module, isa, name, arguments) as (b, i, x, y, channels, *sizes):
        _PairPlanes(b, strides, phases, x, y, *[*sizes, channels]).emit(i)


@dataclass
class _PairPlanes(Polyphase):
    channels: Value

    def image_of(self, image: Value) -> Value:
        pairs = (self.channels + (PAIR - 1)) // PAIR
        first = image % pairs * PAIR
        self._whole = first + 1 < self.channels
        return image // pairs * self.channels + first

    def row(self, plane: Value) -> PhaseRow:
        # A missing channel is read from the one before it.
        step = self.b.select(self._whole, self.height * self.width, self.b.index(0))
        return _PairRow(*[*self.of_row(plane), self._whole, step])


@dataclass
class _PairRow(PhaseRow):
    """Of two channels, `step` elements apart; the second one is zeros where it is not `whole`."""

    whole: Value
    step: Value

    element: ClassVar[str] = "i32"

    def read(self, at: Value, lanes: int, mask: Value | None = None) -> Value:
        b = self.b
        low, high = (b.load(self.x, source, lanes, mask) for source in (at, at + self.step))
        whole = b.splat(self.whole, lanes) if lanes else self.whole
        return rounded_pairs(b, low, b.select(whole, high, b.const(0.0, high.type)))
