"""Convolutions of codes in small images, whose rows fill no vectors: vectors of output channels.

    kernel (i, q: memref<?xi8>, w: memref<?xi8>, bias: memref<?xf32>, inputs..., y: memref<?xf32>,
            rows, pitch, height, width, batch, parts, block_parts, m, n: index)

Arguments are those of `kernel.py`, and `batch`, `parts` and `block_parts`, into which the outputs
of all images and the channels are cut. The grid is parts * block_parts, channels first; parts have
no more outputs than `Kernel.block` says. Results are those of `kernel.py` to the bit, so that the
host can choose when it knows the sizes (`CodeConvSpec.patches_pay`).

A grid index copies the quads that its outputs read to a scratch, [quads][outputs]. A register tile
is some outputs times one or two panels; a quad of an output meets the quads of all their channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.code_conv_spec import HEADER, PATCH_QUADS, QUAD, CodeConvSpec
from abqc.dialects.conv_spec import PATCH_OUTPUTS
from abqc.dialects.epilogue import Epilogue, name_with

from ..float_products.channel_vectors import ChannelVectors
from ..float_products.finish import Finish, buffers_of
from ..float_products.tile import row_tiles
from ..grid_block import Span
from ..int8.layout import QUAD_CODES
from ..panels.layout import PANEL
from .layout import SCALE_AT, ZERO_AT, ConvWeights
from .panel import Panel
from .window import OverPlanes

# Outputs of register tiles, largest first, by their panels: what fits 32 registers.
TILES = {1: (16, 8, 4, 2, 1), 2: (12, 6, 4, 2, 1)}
FEW_REGISTERS = (4, 2, 1)  # of one panel, in 16


def patches_kernel(spec: CodeConvSpec, name: str, epilogue: Epilogue | None) -> Kernel:
    """`name` is that of the kernel of direct convolution without an epilogue."""
    own = name_with(f"{name}_by{spec.patch_channels}_patches", epilogue)
    block = 1, spec.patch_outputs, -(-spec.n // spec.patch_channels)
    emit = partial(_emit, own, spec, epilogue)
    return Kernel(own, block, emit, uses=frozenset({"dot"}))


def _emit(name: str, spec: CodeConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa) -> None:
    inputs, result = buffers_of(epilogue)
    result = buffer("i32") if spec.product.accumulators else result
    arguments = [buffer("i8"), buffer("i8"), buffer("f32"), *inputs, result, *[INDEX] * 9]
    with function(module, isa, name, arguments) as (b, i, q, w, bias, *rest):
        given, (y, *sizes) = rest[: len(inputs)], rest[len(inputs) :]
        finish = Finish(b, epilogue, given, min(PANEL, isa.lanes(32)))
        _Body(b, spec, finish, q, w, bias, y, *sizes).emit(i)


@dataclass
class _Body(OverPlanes):
    b: Builder
    spec: CodeConvSpec
    finish: Finish
    q: Value
    w: Value
    bias: Value
    y: Value
    rows: Value
    pitch: Value
    height: Value
    width: Value
    batch: Value
    parts: Value
    block_parts: Value
    m: Value
    n: Value

    def __post_init__(self) -> None:
        b, spec = self.b, self.spec
        self.lanes = self.finish.lanes
        self.layout = ConvWeights.of(spec)
        self.plane, self.size = self.rows * self.pitch, self.height * self.width
        format, many = spec.activation.format, b.isa.registers >= 32
        count = spec.patch_channels // PANEL if many else 1
        highest = format.qmax - format.qmin
        self.panels = [Panel(b, self.layout, highest, self.w) for _ in range(count)]
        self.tiles = TILES[count] if many else FEW_REGISTERS
        element = "i32" if spec.product.accumulators else "f32"
        made = self.finish, self.y, self.n, self.size, self.lanes, PANEL, element
        self.results = [ChannelVectors(b, *made) for _ in self.panels]
        self.patches = b.alloca(PATCH_QUADS, "i32")
        self.scales = b.alloca(PATCH_OUTPUTS, "f32")
        self.zeros = b.alloca(PATCH_OUTPUTS, "i32")

    def emit(self, i: Value) -> None:
        b, step = self.b, self.spec.patch_channels
        all_outputs = self.batch * self.size
        share = (all_outputs + self.parts - 1) // self.parts
        first = b.min(i // self.block_parts * share, all_outputs)
        span = first, b.min(first + share, all_outputs)
        some = ((self.n + (step - 1)) // step + self.block_parts - 1) // self.block_parts * step
        channel = i % self.block_parts * some
        self._copy_patches(span)
        end = b.min(channel + some, self.n)
        with b.loop(channel, end, PANEL * len(self.panels)) as loop:
            self._prepare(loop.i)
            row_tiles(b, b.index(0), span[1] - first, self.tiles, partial(self._tile, loop.i, span))
            for number, results in enumerate(self.results):
                begin = loop.i + number * PANEL
                with b.when(begin < end):
                    results.store(begin, span)

    def _copy_patches(self, span: Span) -> None:
        """What outputs of a span read, with the scales and zero points of their samples.

        Rows follow each other, and whole vectors of them are copied: what there is of the next
        ones, or behind the last one, is overwritten or not read."""
        b, spec, (first, last) = self.b, self.spec, span
        sample_quads = self.plane * (self.layout.blocks * spec.phases)
        quads = b.view(self.q, "i32", self.batch * (sample_quads + HEADER // QUAD))
        between = last - first + self.lanes  # of two quads of an output
        with b.loop(first // self.width, (last + (self.width - 1)) // self.width) as rows:
            row_begin = rows.i * self.width
            sample, row = rows.i // self.height, rows.i % self.height
            begin, end = b.max(row_begin, first), b.min(row_begin + self.width, last)
            sample_at = sample * (sample_quads * QUAD + HEADER)
            scale = b.load_as(self.q, sample_at + SCALE_AT, "f32")
            zero = b.load_as(self.q, sample_at + ZERO_AT, "i32")
            with b.loop(begin, end) as outputs:
                b.store(scale, self.scales, outputs.i - first)
                b.store(zero, self.zeros, outputs.i - first)
            source = (sample_at + HEADER) // QUAD + row * self.pitch + (begin - row_begin)
            with b.loop(0, self.layout.blocks) as blocks, b.loop(0, spec.window[0]) as dy:
                above = source + blocks.i * (self.plane * spec.phases) + self.row(dy.i)
                quad = (blocks.i * spec.window[0] + dy.i) * spec.window[1]
                with b.loop(0, spec.window[1]) as dx:
                    at = above + self.column(dx.i)
                    to = (quad + dx.i) * between + (begin - first)
                    with b.loop(0, end - begin, self.lanes) as some:
                        value = b.load(quads, at + some.i, self.lanes)
                        b.store(value, self.patches, to + some.i)

    def _prepare(self, channel: Value) -> None:
        """Panels from `channel` on; where there is none it is the last one."""
        b, last = self.b, (self.n + (PANEL - 1)) // PANEL - 1
        for number, panel in enumerate(self.panels):
            at = b.min(channel // PANEL + number, last) * self.layout.panel_bytes
            # Starts of sums for a zero point of 1: others are their multiples.
            panel.prepare(at, b.const(1, "i32"))

    def _tile(self, channel: Value, span: Span, row: Value, height: int) -> None:
        """Some outputs from number `row` of the span on, to `results`."""
        b, between = self.b, span[1] - span[0] + self.lanes
        starts = [b.load(panel.start, 0, PANEL) for panel in self.panels]
        zeros = [b.splat(b.load(self.zeros, row + r), PANEL) for r in range(height)]
        parts = PANEL // self.lanes  # registers of a panel
        carry = [part for z in zeros for s in starts for part in self._split(z * s)]
        with b.loop(0, self.layout.quads, carry=carry) as loop:
            weights = []
            for panel in self.panels:
                at = panel.begin + loop.i * QUAD_CODES
                weights += panel.dot.weights(b.load_as(panel.buffer, at, vec(PANEL, "i32")))
            totals, dot, at = [], self.panels[0].dot, loop.i * between + row
            for r in range(height):
                pixel = dot.activations(b.load(self.patches, at + r))
                begin = r * len(weights)
                own = loop.args[begin : begin + len(weights)]
                totals += [
                    dot.add_products(total, pixel, weight)
                    for total, weight in zip(own, weights, strict=True)
                ]
            loop.carry(*totals)
        done = loop.results
        for number, results in enumerate(self.results):
            for r in range(height):
                begin = (r * len(self.panels) + number) * parts
                for part, value in enumerate(done[begin : begin + parts]):
                    made = self._scaled(channel, number, row + r, part, value)
                    results.put(made, row + r, part * self.lanes)

    def _scaled(self, channel: Value, number: int, output: Value, part: int, acc: Value) -> Value:
        """Accumulators, or y = fma(s_a * s_w, float(acc), bias), of a register of channels."""
        b, lanes, at = self.b, self.lanes, part * self.lanes
        if self.spec.product.accumulators:
            return acc
        begin = channel + (number * PANEL + at)
        bias = b.load(self.bias, begin, lanes, b.mask(lanes, b.max(self.n - begin, 0)))
        activation = b.splat(b.load(self.scales, output), lanes)
        return b.fma(
            activation * b.load(self.panels[number].scale, at, lanes), b.to_float(acc), bias
        )

    def _split(self, start: Value) -> list[Value]:
        return self.panels[0].dot.split(start)
