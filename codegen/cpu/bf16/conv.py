"""Convolutions in bf16 without a matrix of patches: those of `float_products/direct_conv.py`, whose
planes and weights are pairs of channels (i32, `Bf16ConvSpec`).

    kernel (i, x: memref<?xi32>, w: memref<?xi32>, bias: memref<?xf32>, inputs..., y: memref<?xf32>,
            groups, outputs, pairs, pitch, plane, height, width, rows: index)

A vector of pairs of pixels meets a pair of weights: VDPBF16PS where a CPU has it, else two f32
multiply-adds of the halves. Tile registers do 16 pairs at a time (`conv_tiles.py`); they read up to
`SLACK` pairs behind the planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.bf16_conv_spec import Bf16ConvSpec
from abqc.dialects.epilogue import Epilogue, name_with

from ..float_products.direct_conv import MANY_TAPS_OF_PHASES, OUTPUTS, DirectConv
from ..float_products.finish import Finish, buffers_of
from ..float_products.tile import broadcast
from ..int8.tile_registers import ROW_BYTES, tiles
from .conv_tiles import MAX_TAPS, STEP, ConvTiles
from .dot import dot_steps


def bf16_conv_kernel(spec: Bf16ConvSpec, epilogue: Epilogue | None = None) -> Kernel:
    """The kernel; its grid is over batches, outputs and blocks of channels."""
    name = name_with(spec.name, epilogue)
    emit = partial(_emit, name, spec, epilogue)
    return Kernel(name, (1, OUTPUTS, 1), emit, uses=frozenset({"bf16"}))


def _emit(name: str, spec: Bf16ConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa) -> None:
    inputs, result = buffers_of(epilogue)
    arguments = [*[buffer("i32")] * 2, buffer("f32"), *inputs, result, *[INDEX] * 8]
    with function(module, isa, name, arguments) as (b, i, x, w, bias, *rest, _):
        finish = Finish(b, epilogue, rest[: len(inputs)], isa.lanes(32))
        _Bf16Conv(b, spec, finish, x, w, bias, *rest[len(inputs) :]).emit(i)


@dataclass
class _Bf16Conv(DirectConv):
    def __post_init__(self) -> None:
        super().__post_init__()
        spec, b = self.spec, self.b
        taps = spec.window[0] * spec.window[1]
        self.tiles: ConvTiles | None = None
        if b.isa.bf16_tiles and taps <= MAX_TAPS:
            unit = tiles(b, b.index(spec.block), ROW_BYTES)
            weights = b.alloca(ConvTiles.weight_bytes(taps, spec.block), "i8")
            self.tiles = ConvTiles(self, unit, weights)

    def add_up(
        self, planes: Value, block: Value, channel: Value, first: Value, last: Value
    ) -> None:
        b, made = self.b, self.tiles
        if made is None:
            super().add_up(planes, block, channel, first, last)
            return
        bias = super().start(channel, 0, self.spec.block, b.index(0), [None])
        with b.loop(0, OUTPUTS, self.lanes) as loop:
            for n, value in enumerate(bias):
                b.store(value, self.scratch, loop.i + n * OUTPUTS)
        made.add_up(planes, block, first, last)
        made.unit.release()
        with b.when(self.first_channel() < self.channels):
            super().add_up(planes, block, channel, first, last)

    def first_channel(self) -> Value:
        return self.b.index(0) if self.tiles is None else self.channels // STEP * STEP

    def start(
        self, channel: Value, begin: int, count: int, at: Value, masks: Sequence[Value | None]
    ) -> list[Value]:
        if self.tiles is None:
            return super().start(channel, begin, count, at, masks)
        return [
            self.b.load(self.scratch, at + (begin + n) * OUTPUTS + v * self.lanes, self.lanes, mask)
            for n in range(count)
            for v, mask in enumerate(masks)
        ]

    @property
    def takes_pixels(self) -> bool:
        return False

    @property
    def most_taps(self) -> int:
        return super().most_taps if self.b.isa.dot_bf16 else MANY_TAPS_OF_PHASES

    def tap(
        self,
        acc: Sequence[Value],
        at: Value,
        w_at: Value,
        count: int,
        masks: Sequence[Value | None],
    ) -> list[Value]:
        b, lanes = self.b, self.lanes
        xs = [b.load(self.x, at + v * lanes, lanes, mask) for v, mask in enumerate(masks)]
        weights = [broadcast(b, self.w, w_at + n, lanes) for n in range(count)]
        products = [(weight, x) for weight in weights for x in xs]
        result = list(acc)
        for step in dot_steps(b.isa):
            result = [step(b, w, x, y) for (w, x), y in zip(products, result, strict=True)]
        return result
