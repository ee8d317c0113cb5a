"""Convolutions in f32 of every channel by itself: `y[b, c] = bias[c] + sum of w[c, v] x[b, c, ..]`.

    kernel (i, x: memref<?xf32>, w: memref<?xf32>, bias: memref<?xf32>, inputs: memref<?xf32>...,
            y: memref<?xf32>,
            groups, outputs, channels, pitch, plane, height, width, rows: index)

The arguments are those of `direct_conv.py`. There vectors of the image are multiplied by many
channels' weights; here each is loaded for one product, and a load that crosses lines takes longer
than that. So a register tile is TILE_ROWS rows times VECTORS vectors of outputs: of what the window
reads, rows have most in common.

The grid is `Kernel.grid(batch, height, groups)`, channels first; an index does ROWS rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.epilogue import Epilogue, name_with

from .finish import Finish, Steady
from .tile import broadcast, cover_by_tiles, multiply_add

TILE_ROWS = 4
VECTORS = 2
ROWS = 4 * TILE_ROWS  # of a grid index

Source = tuple[int, int]  # the phase of rows, and how many rows below the tile's first one


def depthwise_conv_kernel(spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernel:
    """The kernel; its grid is over batches, rows and channels."""
    name = name_with(spec.name, epilogue)
    return Kernel(name, (1, ROWS, 1), partial(_emit, name, spec, epilogue))


def _emit(name: str, spec: ConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa) -> None:
    count = 0 if epilogue is None else len(epilogue.reads)
    arguments = [buffer("f32")] * (4 + count) + [INDEX] * 8
    with function(module, isa, name, arguments) as (b, i, x, w, bias, *rest):
        y, groups, _, _, pitch, plane, height, width, _ = rest[count:]
        finish = Finish(b, epilogue, rest[:count], isa.lanes(32))
        _Body(b, spec, finish, x, w, bias, y, groups, pitch, plane, height, width).emit(i)


@dataclass
class _Body:
    b: Builder
    spec: ConvSpec
    finish: Finish
    x: Value
    w: Value
    bias: Value
    y: Value
    groups: Value
    pitch: Value
    plane: Value
    height: Value
    width: Value

    def __post_init__(self) -> None:
        self.lanes = self.b.isa.lanes(32)
        self.scratch = self.b.alloca(TILE_ROWS * VECTORS * self.lanes, "f32")

    def emit(self, i: Value) -> None:
        b = self.b
        across = (self.height + (ROWS - 1)) // ROWS
        channel, first = i % self.groups, i // self.groups % across * ROWS
        batch = i // self.groups // across
        image = batch * self.groups + channel
        steady = self.finish.steady(batch, channel, image)
        last = b.min(first + ROWS, self.height)
        with b.loop(first, last, TILE_ROWS) as rows:
            begins = self._begins(image, rows.i)
            to = (image * self.height + rows.i) * self.width
            count = b.min(last - rows.i, TILE_ROWS)
            tile = partial(self._tile, channel, begins, steady, to, count)
            cover_by_tiles(b, b.index(0), self.width, self.lanes, VECTORS, tile)

    def _taps(self) -> dict[Source, list[tuple[int, int]]]:
        """The rows of the image that a tile reads, and for which of its rows and of the window's
        each is."""
        found: dict[Source, list[tuple[int, int]]] = {}
        for row in range(TILE_ROWS):
            for dy in range(self.spec.window[0]):
                below, phase = divmod(dy * self.spec.dilations[0], self.spec.strides[0])
                found.setdefault((phase, row + below), []).append((row, dy))
        return found

    def _begins(self, image: Value, row: Value) -> dict[Source, Value]:
        """Where these rows begin. What is below the planes, rows that are not stored would read."""
        b, (sy, sx) = self.b, self.spec.strides
        planes, last = image * (sy * sx), self.plane // self.pitch - 1
        return {
            (phase, below): (planes + phase * sx) * self.plane
            + b.min(row + below, last) * self.pitch
            for phase, below in self._taps()
        }

    def _tile(
        self,
        channel: Value,
        begins: Mapping[Source, Value],
        steady: Steady,
        to: Value,
        count: Value,
        column: Value,
        masks: list[Value | None],
    ) -> None:
        """`count` rows of outputs from `column` on, a vector for each of `masks`; the first one is
        stored from `to` on."""
        b, lanes, vectors = self.b, self.lanes, range(len(masks))
        start = broadcast(b, self.bias, channel, lanes)
        places = [(row, v) for row in range(TILE_ROWS) for v in vectors]
        taps_y, taps_x = self.spec.window
        # Were this loop spelled out, all weights would be broadcast before, and not fit registers.
        with b.loop(0, taps_x, carry=[start] * len(places)) as taps:
            acc = dict(zip(places, taps.args, strict=True))
            offset = self._column(taps.i) + column
            for source, uses in self._taps().items():
                at = begins[source] + offset
                xs = [b.load(self.x, at + v * lanes, lanes, masks[v]) for v in vectors]
                for row, dy in uses:
                    w_at = channel * (taps_y * taps_x) + dy * taps_x + taps.i
                    weight = broadcast(b, self.w, w_at, lanes)
                    for v in vectors:
                        acc[row, v] = multiply_add(b, xs[v], weight, acc[row, v])
            taps.carry(*acc.values())
        for (row, v), value in zip(places, taps.results, strict=True):
            b.store(value, self.scratch, (row * VECTORS + v) * lanes)
        with b.loop(0, count) as rows:
            for v, mask in zip(vectors, masks, strict=True):
                value = b.load(self.scratch, (rows.i * VECTORS + v) * lanes, lanes)
                place = to + rows.i * self.width + column + v * lanes
                b.store(self.finish(value, steady, place, mask), self.y, place, mask)

    def _column(self, dx: Value) -> Value:
        """Where column `dx` of a window begins."""
        x, stride = dx * self.spec.dilations[1], self.spec.strides[1]
        return self.plane * (x % stride) + x // stride if stride > 1 else x
