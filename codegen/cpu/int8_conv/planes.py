"""Images become planes of quads of codes (`layout.py`), quantized on the way.

    kernel (i, x: memref<?xf32>, gate: memref<?xf32>, scale: memref<?xf32>, zero: memref<?xi32>,
            q: memref<?xi8>, samples, channels, height, width, rows, pitch, top, left: index)

`x` is [B, channels, height, width]; with `stored` it is memref<?xi8> and holds the codes. `gate`,
[B, channels], which not all kernels have, is what channels are multiplied with before. Samples
share a scale and zero point: sample b has entry b / samples. `top` and `left` are the zeros above
and before the image; behind and below it planes of `rows` x `pitch` are filled. The grid is
`Kernel.grid(batch, blocks of channels, rows)`, rows first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, PlanesKernel
from abqc.dialects.code_conv_spec import HEADER, QUAD, CodeConvSpec

from ..packing.byte_vectors import interleaved_bytes
from ..packing.quantize_row import LANES, RowCodes, RowScale, StoredCodes, sweep
from .layout import SCALE_AT, ZERO_AT

ROWS = 8  # of planes, of a grid index
CHUNK = 512  # columns of an image that are cut into phases at a time


def planes_kernel(spec: CodeConvSpec, *, measured: bool) -> PlanesKernel:
    """`measured`: scales and zero points are those of the images."""
    stored, (sy, sx), (ky, kx) = spec.product.stored_codes, spec.strides, spec.kept
    kind = "stored_planes" if stored else "measured_planes" if measured else "planes"
    name = f"int8_conv_{kind}_{spec.activation.format.name}_s{sy}x{sx}_p{ky}x{kx}"
    block, gated = (1, 1, ROWS), f"gated_{name}"
    return PlanesKernel(
        name,
        block,
        partial(_emit, name, spec, measured, False),
        gated=None if stored else Kernel(gated, block, partial(_emit, gated, spec, measured, True)),
    )


def _emit(
    name: str, spec: CodeConvSpec, measured: bool, gated: bool, module: Any, isa: Isa
) -> None:
    stored, format = spec.product.stored_codes, spec.activation.format
    values, floats = buffer("i8" if stored else "f32"), buffer("f32")
    arguments = [values, *[floats] * gated, floats, buffer("i32"), buffer("i8"), *[INDEX] * 8]
    with function(module, isa, name, arguments) as (b, i, x, *rest):
        gate, (scale, zero, q, *sizes) = rest[0] if gated else None, rest[gated:]
        codes = (StoredCodes if stored else RowCodes)(b, format, x, b.index(0), b.index(0))
        _Body(b, codes, measured, spec.strides, spec.kept, gate, scale, zero, q, *sizes).emit(i)


# Of a channel: whether it exists, where its row begins, what makes codes of it.
Source = tuple[Value, Value, RowCodes]


@dataclass
class _Body:
    b: Builder
    codes: RowCodes
    measured: bool
    strides: tuple[int, int]
    kept: tuple[int, int]  # phases of rows and columns
    gate: Value | None
    scale: Value
    zero: Value
    q: Value
    samples: Value
    channels: Value
    height: Value
    width: Value
    rows: Value
    pitch: Value
    top: Value
    left: Value

    def __post_init__(self) -> None:
        sx = self.strides[1]  # vectors of every sx-th quad reach beyond the chunk
        self.scratch = self.b.alloca(CHUNK + sx * (LANES + 1), "i32") if sx > 1 else None

    def emit(self, i: Value) -> None:
        b, sy, (ky, kx) = self.b, self.strides[0], self.kept
        blocks = (self.channels + (QUAD - 1)) // QUAD
        across = (self.rows + (ROWS - 1)) // ROWS
        first, block, sample = i % across * ROWS, i // across % blocks, i // across // blocks
        plane = self.rows * self.pitch
        sample_bytes = blocks * plane * (ky * kx * QUAD) + HEADER
        sample_at = sample * sample_bytes
        self.quads = b.view(self.q, "i32", (sample_at + sample_bytes) // QUAD)
        entry = sample // self.samples
        scale, zero = b.load(self.scale, entry), b.load(self.zero, entry)
        row = self.codes.given(scale, zero, measured=self.measured)
        with b.when((block + first) == 0):  # one index of a sample writes its header
            b.store_as(row.scale, self.q, sample_at + SCALE_AT)
            b.store_as(row.zero, self.q, sample_at + ZERO_AT)
        last = b.min(first + ROWS, self.rows)
        zeros = row.zero * 0x01010101
        with b.loop(first, last) as rows, b.loop(0, ky) as phases:
            above = rows.i * sy + phases.i
            at = (block * (ky * kx) + phases.i * kx) * plane + rows.i * self.pitch
            at = (sample_at + HEADER) // QUAD + at
            inside = (above >= self.top) & (above < self.top + self.height)
            with b.when(inside):
                self._row(sample, block, above - self.top, row, zeros, at, plane)
            with b.when(inside ^ 1), b.loop(0, kx) as columns:
                self._fill(zeros, at + columns.i * plane, b.index(0), self.pitch)

    def _row(
        self,
        sample: Value,
        block: Value,
        line: Value,
        row: RowScale,
        zeros: Value,
        at: Value,
        plane: Value,
    ) -> None:
        """A row of four channels of the image, with the zeros before and behind it, to quad `at`
        and those of the other phases."""
        b, sx, end = self.b, self.strides[1], self.left + self.width
        sources = []
        for c in range(QUAD):
            channel = block * QUAD + c
            number = sample * self.channels + b.min(channel, self.channels - 1)
            begin, codes = (number * self.height + line) * self.width, self.codes
            if self.gate is not None:
                codes = replace(codes, factor=b.load(self.gate, number))
            sources.append((channel < self.channels, begin, codes))
        for phase in range(self.kept[1]):
            target = at + plane * phase
            self._fill(zeros, target, b.index(0), self._reach(self.left, phase))
            self._fill(zeros, target, self._reach(end, phase), self.pitch)
        if self.scratch is None:
            self._quads(sources, row, b.index(0), self.width, self.quads, at + self.left)
            return
        with b.loop(0, self.width, CHUNK) as chunks:
            last = b.min(chunks.i + CHUNK, self.width)
            self._quads(sources, row, chunks.i, last - chunks.i, self.scratch, b.index(0))
            begin = self.left + chunks.i
            for phase in range(self.kept[1]):
                first = self._reach(begin, phase)
                count = self._reach(self.left + last, phase) - first
                source, to = first * sx + phase - begin, at + plane * phase + first
                self._every(self.scratch, source, count, to)

    def _every(self, source: Value, begin: Value, count: Value, to: Value) -> None:
        """`count` quads of `source`, every s-th one from `begin` on, to those from `to` on."""
        b, sx = self.b, self.strides[1]
        if sx & (sx - 1):
            with b.loop(0, count) as loop:
                b.store(b.load(source, begin + loop.i * sx), self.quads, to + loop.i)
            return

        def copy(i: Value, mask: Value | None) -> tuple[()]:
            parts = [b.load(source, begin + i * sx + part * LANES, LANES) for part in range(sx)]
            while len(parts) > 1:
                pairs = zip(parts[::2], parts[1::2], strict=True)
                parts = [b.shuffle(low, high, range(0, 2 * LANES, 2)) for low, high in pairs]
            b.store(parts[0], self.quads, to + i, mask)
            return ()

        sweep(b, count, False, copy)

    def _reach(self, column: Value, phase: int) -> Value:
        """How many columns of a phase are before `column` of the image with its zeros."""
        sx = self.strides[1]
        return column if sx == 1 else (column + (sx - 1 - phase)) // sx

    def _fill(self, zeros: Value, at: Value, begin: Value, end: Value) -> None:
        with self.b.loop(begin, end) as loop:
            self.b.store(zeros, self.quads, at + loop.i)

    def _quads(
        self,
        sources: list[Source],
        row: RowScale,
        first: Value,
        count: Value,
        target: Value,
        at: Value,
    ) -> None:
        """`count` quads of the columns from `first` on, to element `at` of `target`."""
        b = self.b

        def quads(i: Value, mask: Value | None) -> tuple[()]:
            parts = []
            for exists, begin, source in sources:
                code = source.steps(begin + (first + i), row, mask)
                parts.append(b.select(b.splat(exists, LANES), code, b.splat(row.zero, LANES)))
            codes = self.codes.bytes(interleaved_bytes(b, parts))
            b.store(b.bitcast(codes, vec(LANES, "i32")), target, at + i, mask)
            return ()

        sweep(b, count, False, quads)
