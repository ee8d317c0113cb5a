"""Convolutions of codes over planes: `acc[b, n] = sum over c and taps of w[n, c, v] x[...]`, exact.

    kernel (i, q: memref<?xi8>, w: memref<?xi8>, bias: memref<?xf32>, inputs..., y: memref<?xf32>,
            rows, pitch, height, width, m, n: index)

`q` are planes and `w` panels (`layout.py`); y is [B, n, height, width], with `accumulators`
memref<?xi32> and exact sums; `inputs` are those of an epilogue, f32 or i8 or i32, which may make y
memref<?xi8>. `rows` and `pitch` are those of planes. The grid is `Kernel.grid(batch, (height - 1) *
pitch + width, n)`, channels first; `m`, the number of outputs of a channel, is for profiles and not
read.

Outputs are numbered by the pitch, p = row * pitch + column, as in float convolutions
(`float_products/direct_conv.py`): lanes are consecutive p, across the ends of rows, and what an
output's neighbour reads lies next to what it reads. A register tile is some channels times some
vectors of p; a quad of weights of one channel meets vectors of quads of pixels. What lies between
rows is computed and not stored; where that is much, as with wide dilations, tiles begin anew at
every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.epilogue import arithmetic_of
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.code_conv_spec import HEADER, QUAD, CodeConvSpec
from abqc.dialects.epilogue import Epilogue, name_with

from ..float_products.finish import Finish, Steady, buffers_of
from ..int8.kernels import ONES
from ..int8.layout import QUAD_CODES
from ..packing.quantize_row import sweep
from ..panels.layout import PANEL
from .layout import SCALE_AT, ZERO_AT, ConvWeights
from .panel import Panel
from .window import OverPlanes

OUTPUTS = 480  # of a grid index; a multiple of all tiles
VECTORS = (10, 6, 5, 3, 2)  # of a tile
WIDE_GAP = 24  # columns between rows; more cost more than the last tile of each row (measured)
LINE = OUTPUTS + VECTORS[0] * PANEL  # the outputs of a channel, and what the last tile has beyond
SHORT = 8  # operations of an epilogue that is emitted for all vectors of a tile
MANY_TAPS = 4  # with more, LLVM's schedule of one straight piece spills accumulators (measured)


def direct_kernel(spec: CodeConvSpec, name: str, epilogue: Epilogue | None) -> Kernel:
    """`name` is that of the kernel without an epilogue."""
    own = name_with(name, epilogue)
    emit = partial(_emit, own, spec, epilogue)
    return Kernel(own, (1, OUTPUTS, PANEL), emit, uses=frozenset({"dot"}))


def _emit(name: str, spec: CodeConvSpec, epilogue: Epilogue | None, module: Any, isa: Isa) -> None:
    inputs, result = buffers_of(epilogue)
    result = buffer("i32") if spec.product.accumulators else result
    arguments = [buffer("i8"), buffer("i8"), buffer("f32"), *inputs, result, *[INDEX] * 6]
    with function(module, isa, name, arguments) as (b, i, q, w, bias, *rest):
        direct = spec.flat and (epilogue is None or arithmetic_of(epilogue) <= SHORT)
        lanes = min(PANEL, isa.lanes(32)) if direct else PANEL
        given, (y, *sizes) = rest[: len(inputs)], rest[len(inputs) :]
        finish = Finish(b, epilogue, given, lanes)
        _Body(b, spec, finish, direct, q, w, bias, y, *sizes).emit(i)


@dataclass
class _Body(OverPlanes):
    b: Builder
    spec: CodeConvSpec
    finish: Finish
    direct: bool  # tiles go to y at once
    q: Value
    w: Value
    bias: Value
    y: Value
    rows: Value
    pitch: Value
    height: Value
    width: Value
    m: Value
    n: Value

    def __post_init__(self) -> None:
        b, spec, isa = self.b, self.spec, self.b.isa
        self.lanes = min(PANEL, isa.lanes(32))
        self.layout = ConvWeights.of(spec)
        format = spec.activation.format
        self.panel = Panel(b, self.layout, format.qmax - format.qmin, self.w)
        self.at_once = spec.block if isa.registers >= 32 else min(spec.block, 4)
        # Of each vector there are accumulators, pixels and what sums of u take; and a weight.
        of_vector = self.at_once + (1 if isa.dot_u8i8 else 2) + (0 if self.layout.symmetric else 1)
        self.vectors = next(v for v in VECTORS if of_vector * v + 2 <= isa.registers)
        self.element = "i32" if spec.product.accumulators else "f32"
        self.biases = b.alloca(PANEL, "f32")
        tile = self.at_once * self.vectors * self.lanes
        self.totals = b.alloca(tile, "f32") if self.layout.groups > 1 else None
        # Outputs between rows are left out when they are stored from here; and a long epilogue is
        # emitted for one vector, not for all of a tile.
        self.lines = None if self.direct else b.alloca(self.at_once * LINE, self.element)

    def emit(self, i: Value) -> None:
        b, spec = self.b, self.spec
        self.plane = self.rows * self.pitch
        reach = (self.height - 1) * self.pitch + self.width
        across = (reach + (OUTPUTS - 1)) // OUTPUTS
        panels = (self.n + (PANEL - 1)) // PANEL
        number, first = i % panels, i // panels % across * OUTPUTS
        self.sample = i // panels // across
        last = b.min(first + OUTPUTS, reach)
        quads = self.plane * (self.layout.blocks * spec.phases)
        sample_at = self.sample * (quads * QUAD + HEADER)
        self.planes = sample_at + HEADER
        self.scale = b.load_as(self.q, sample_at + SCALE_AT, "f32")
        self.panel.prepare(
            number * self.layout.panel_bytes, b.load_as(self.q, sample_at + ZERO_AT, "i32")
        )
        channel = number * PANEL
        bias = b.load(self.bias, channel, PANEL, b.mask(PANEL, self.n - channel))
        b.store(bias, self.biases, 0)
        with b.loop(0, b.min(self.n - channel, PANEL), self.at_once) as loop:
            self._channels(channel, loop.i, first, last)

    def _channels(self, channel: Value, begin: Value, first: Value, last: Value) -> None:
        """`at_once` channels of a panel, from its channel `begin` on."""
        if self.spec.gap < WIDE_GAP:
            self._tiles(channel, begin, first, first, last)
        else:
            with self._rows_of(first, last) as (_, start, stop):
                self._tiles(channel, begin, first, start, stop)
        if self.lines is not None:
            self._store_lines(channel + begin, first, last, self.lines)

    @contextmanager
    def _rows_of(self, first: Value, last: Value) -> Iterator[tuple[Value, Value, Value]]:
        """For each row with outputs `first` to `last`: its number, the first one and the one behind
        the last one; in order."""
        b, pitch = self.b, self.pitch
        with b.loop(first // pitch, (last + (pitch - 1)) // pitch) as rows:
            start = b.max(rows.i * pitch, first)
            stop = b.min(rows.i * pitch + self.width, last)
            yield rows.i, start, b.max(start, stop)

    def _tiles(self, channel: Value, begin: Value, first: Value, start: Value, stop: Value) -> None:
        """The outputs `start` to `stop`. Tiles may have more, which the next ones overwrite."""
        b, lanes = self.b, self.lanes
        count = (stop - start + (lanes - 1)) // lanes
        wide = (count + (self.vectors - 2)) // self.vectors * self.vectors
        with b.loop(0, wide, self.vectors) as tiles:
            self._tile(channel, begin, start + tiles.i * lanes, first, stop, self.vectors)
        with b.when(wide < count):
            self._tile(channel, begin, start + wide * lanes, first, stop, 1)

    def _tile(
        self, channel: Value, begin: Value, p: Value, first: Value, last: Value, vectors: int
    ) -> None:
        """The outputs of some vectors from `p` on."""
        results = (
            self._one_group(begin, p, vectors)
            if self.layout.groups == 1
            else self._groups(begin, p, vectors)
        )
        if self.lines is None:
            self._store_flat(results, channel + begin, p, last, vectors)
            return
        for c in range(self.at_once):
            for v in range(vectors):
                at = c * LINE + (p - first) + v * self.lanes
                self.b.store(results[c * vectors + v], self.lines, at)

    # Sums

    def _one_group(self, begin: Value, p: Value, vectors: int) -> list[Value]:
        """Accumulators, or y = fma(s_a * s_w, float(acc), bias), [channel][vector]."""
        b, panel = self.b, self.panel
        acc = self._accumulated(begin, p, vectors, b.index(0), panel.begin)
        if self.spec.product.accumulators:
            return acc
        results = []
        for c in range(self.at_once):
            scale = self._each(self.scale * b.load(panel.scale, begin + c))
            bias = self._each(b.load(self.biases, begin + c))
            for total in acc[c * vectors : (c + 1) * vectors]:
                results.append(b.fma(scale, b.to_float(total), bias))
        return results

    def _groups(self, begin: Value, p: Value, vectors: int) -> list[Value]:
        """y = fma(s_a, sum over groups of s_w * float(acc), bias)."""
        b, panel, totals, lanes = self.b, self.panel, self.totals, self.lanes
        assert totals is not None
        count = self.at_once * vectors
        for at in range(count):
            b.store(b.const(0.0, vec(lanes, "f32")), totals, at * lanes)
        with b.loop(0, self.layout.groups, carry=[panel.begin]) as groups:
            acc = self._accumulated(begin, p, vectors, groups.i, groups.args[0])
            for c in range(self.at_once):
                scale = self._each(b.load(panel.scale, groups.i * PANEL + (begin + c)))
                for at in range(c * vectors, (c + 1) * vectors):
                    total = b.load(totals, at * lanes, lanes)
                    b.store(b.fma(b.to_float(acc[at]), scale, total), totals, at * lanes)
            first, last = panel.group(groups.i)
            quads = (last - first) * self.layout.taps
            groups.carry(groups.args[0] + quads * QUAD_CODES)
        scale, results = self._each(self.scale), []
        for c in range(self.at_once):
            bias = self._each(b.load(self.biases, begin + c))
            for at in range(c * vectors, (c + 1) * vectors):
                results.append(b.fma(scale, b.load(totals, at * lanes, lanes), bias))
        return results

    def _accumulated(
        self, begin: Value, p: Value, vectors: int, group: Value, weights: Value
    ) -> list[Value]:
        """acc of one group, whose weights begin at byte `weights`, [channel][vector]."""
        b, layout, spec, panel = self.b, self.layout, self.spec, self.panel
        summed = not layout.symmetric
        start = [
            self._each(b.load(panel.start, group * PANEL + (begin + c)))
            for c in range(self.at_once)
            for _ in range(vectors)
        ]
        start += [self._each(b.const(0, "i32"))] * (vectors if summed else 0)
        first, last = panel.group(group)
        with b.loop(first, last, carry=start) as blocks:
            x_at = self.planes + (blocks.i * spec.phases * self.plane + p) * QUAD
            w_at = weights + (blocks.i - first) * (spec.taps * QUAD_CODES) + begin * QUAD
            acc = self._block(list(blocks.args), x_at, w_at, vectors, summed)
            blocks.carry(*acc)
        acc = blocks.results
        if not summed:
            return acc
        sums, count = acc[-vectors:], self.at_once * vectors
        offsets = [self._each(b.load(panel.offset, begin + c)) for c in range(self.at_once)]
        return [acc[at] - offsets[at // vectors] * sums[at % vectors] for at in range(count)]

    def _block(
        self, acc: list[Value], x_at: Value, w_at: Value, vectors: int, summed: bool
    ) -> list[Value]:
        """The products of a block at all taps of the window."""
        b, (height, width) = self.b, self.spec.window

        def row(dy: Value, w_at: Value, acc: list[Value]) -> list[Value]:
            at, columns = x_at + self.row(dy) * QUAD, range(width)
            if width <= MANY_TAPS:
                for dx in columns:
                    tap_at = w_at + dx * QUAD_CODES
                    acc = self._tap(
                        acc, at + self.column(b.index(dx)) * QUAD, tap_at, vectors, summed
                    )
                return acc
            with b.loop(0, width, carry=acc) as loop:
                tap_at = w_at + loop.i * QUAD_CODES
                x = at + self.column(loop.i) * QUAD
                loop.carry(*self._tap(loop.args, x, tap_at, vectors, summed))
            return loop.results

        if height * width <= MANY_TAPS:
            for dy in range(height):
                acc = row(b.index(dy), w_at + dy * width * QUAD_CODES, acc)
            return acc
        with b.loop(0, height, carry=acc) as rows:
            rows.carry(*row(rows.i, w_at + rows.i * (width * QUAD_CODES), rows.args))
        return rows.results

    def _tap(
        self, acc: Sequence[Value], at: Value, w_at: Value, vectors: int, summed: bool
    ) -> list[Value]:
        """The products of a quad; behind the accumulators there are sums of u where they count."""
        b, dot, lanes = self.b, self.panel.dot, self.lanes
        pixels = [
            dot.pixels(b.load_as(self.q, at + v * (lanes * QUAD), vec(lanes, "i32")))
            for v in range(vectors)
        ]
        result = []
        for c in range(self.at_once):
            weight = dot.weight(b.load_as(self.panel.buffer, w_at + c * QUAD, "i32"))
            for v in range(vectors):
                result.append(dot.add_products(acc[c * vectors + v], pixels[v], weight))
        if summed:
            ones, behind = dot.weight(b.const(ONES, "i32")), acc[len(result) :]
            result += [dot.add_products(x, u, ones) for x, u in zip(behind, pixels, strict=True)]
        return result

    def _each(self, scalar: Value) -> Value:
        return self.b.splat(scalar, self.lanes)

    # Results

    def _store_flat(
        self, results: Sequence[Value], channel: Value, p: Value, last: Value, vectors: int
    ) -> None:
        """Where outputs lie as planes do, a tile goes to y at once."""
        b, lanes = self.b, self.lanes
        whole = p + vectors * lanes <= last
        for c in range(self.at_once):
            number = self.sample * self.n + (channel + c)
            begin = number * self.plane + p
            exists = channel + c < self.n
            for condition, masked in ((exists & whole, False), (exists & (whole ^ 1), True)):
                with b.when(condition):
                    steady = self.finish.steady(self.sample, channel + c, number)
                    for v in range(vectors):
                        mask = b.mask(lanes, last - (p + v * lanes)) if masked else None
                        to = begin + v * lanes
                        value = self.finish(results[c * vectors + v], steady, to, mask)
                        b.store(value, self.y, to, mask)

    def _store_lines(self, channel: Value, first: Value, last: Value, lines: Value) -> None:
        """The outputs `first` to `last` that are in rows, of the channels that exist."""
        b = self.b
        size = self.height * self.width
        with b.loop(0, b.min(self.n - channel, self.at_once)) as c:
            number = self.sample * self.n + channel + c.i
            steady = self.finish.steady(self.sample, channel + c.i, number)
            line = c.i * LINE - first
            if self.spec.flat:
                self._finish(lines, line + first, number * size + first, last - first, steady)
            else:
                with self._rows_of(first, last) as (row, start, stop):
                    to = number * size + row * self.width + (start - row * self.pitch)
                    self._finish(lines, line + start, to, stop - start, steady)

    def _finish(self, lines: Value, source: Value, to: Value, count: Value, steady: Steady) -> None:
        """`count` outputs of a channel from element `source` of the lines to element `to` of y."""
        b = self.b

        def copy(i: Value, mask: Value | None) -> tuple[()]:
            value = b.load(lines, source + i, PANEL, mask)
            b.store(self.finish(value, steady, to + i, mask), self.y, to + i, mask)
            return ()

        sweep(b, count, False, copy)
