"""Convolutions in bf16 on tile registers (AMX): 16 pairs of channels at a time.

The planes of 16 pairs are rows of B as they lie, 16 pixels wide, and so results are those of some
channels (rows of C) for 16 pixels. Weights are transposed to rows of A, some steps of pairs at a
time. Pairs that fill no step are left to dot products.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..float_products.direct_conv import OUTPUTS, DirectConv
from ..float_products.matrix import transpose
from ..int8.tile_registers import ROW_BYTES, WIDTH, A, B, C, Tiles

STEP = 16  # pairs
MAX_TAPS = 64  # of a window; weights of a step wait on the stack
PLACES = 16  # taps of steps whose weights are transposed at a time, where a window has fewer
PIXELS = len(C) * WIDTH
WORD = 4  # bytes of a pair, and of a sum


@dataclass(frozen=True)
class ConvTiles:
    """The registers, configured for a block of channels, and the weights of some steps."""

    conv: DirectConv
    unit: Tiles
    weights: Value  # bytes: pairs [steps][taps][channels of the block][16]

    @property
    def taps(self) -> int:
        return self.conv.spec.window[0] * self.conv.spec.window[1]

    @staticmethod
    def places(taps: int) -> int:
        """Of `weights`: steps times taps."""
        return max(1, PLACES // taps) * taps

    @staticmethod
    def weight_bytes(taps: int, block: int) -> int:
        return ConvTiles.places(taps) * block * ROW_BYTES

    def add_up(self, planes: Value, block: Value, first: Value, last: Value) -> None:
        """Add the products of all whole steps to the scratch; `planes` are those of the group."""
        conv = self.conv
        b, steps = conv.b, conv.channels // STEP
        at_once = self.places(self.taps) // self.taps
        with b.loop(0, steps, at_once) as some:
            count = b.min(steps - some.i, at_once)
            with b.loop(0, count) as step, b.loop(0, self.taps) as tap:
                self._transpose(block, (some.i + step.i) * STEP, step.i, tap.i)
            with b.loop(first, last, PIXELS) as pixels:
                self._pixels(planes, some.i, count, pixels.i, pixels.i - first)

    def _transpose(self, block: Value, pair: Value, step: Value, tap: Value) -> None:
        """Weights of 16 pairs and all channels of the block for a tap."""
        conv = self.conv
        b, channels = conv.b, conv.spec.block
        mask = b.mask(STEP, b.index(channels))
        rows = []
        for j in range(STEP):
            at = (block * conv.channels + pair + j) * self.taps + tap
            rows.append(b.load(conv.w, at * channels, STEP, mask))
        for n, row in enumerate(transpose(b, rows)[:channels]):
            to = ((step * self.taps + tap) * channels + n) * ROW_BYTES
            b.store_as(row, self.weights, to)

    def _pixels(self, planes: Value, begin: Value, steps: Value, p: Value, to: Value) -> None:
        """The sums of 64 outputs from `p` on, which wait from `to` of the scratch on, grow."""
        conv, unit = self.conv, self.unit
        b, spec = conv.b, conv.spec
        columns, pitch = spec.window[1], OUTPUTS * WORD
        for t, register in enumerate(C):
            unit.load(register, conv.scratch, (to + t * WIDTH) * WORD, pitch)
        of_pair = conv.plane * conv.phases
        with b.loop(0, steps) as step, b.loop(0, spec.window[0]) as rows:
            source = (planes * conv.plane + (begin + step.i) * STEP * of_pair) + p
            source = source + conv.row(rows.i)
            tap = step.i * self.taps + rows.i * columns
            for dx in range(columns):
                unit.load(A[0], self.weights, (tap + dx) * (spec.block * ROW_BYTES), ROW_BYTES)
                at = source + conv.column(dx)
                for t, register in enumerate(C):
                    pixels = B[t % len(B)]
                    unit.load(pixels, conv.x, (at + t * WIDTH) * WORD, of_pair * WORD)
                    unit.dot_bf16(register, A[0], pixels)
        for t, register in enumerate(C):
            unit.store(register, conv.scratch, (to + t * WIDTH) * WORD, pitch)
