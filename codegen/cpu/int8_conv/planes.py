"""Images become planes of quads of codes (`layout.py`), quantized on the way.

    kernel (i, x: memref<?xf32>, scale: memref<?xf32>, zero: memref<?xi32>, q: memref<?xi8>,
            samples, channels, height, width, rows, pitch, top, left: index)

`x` is [B, channels, height, width]; with `stored` it is memref<?xi8> and holds the codes. Samples
share a scale and zero point: sample b has entry b / samples. `top` and `left` are the zeros above
and before the image; behind and below it planes of `rows` x `pitch` are filled. The grid is
`Kernel.grid(batch, blocks of channels, rows)`, rows first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.code_conv_spec import HEADER, QUAD, CodeConvSpec
from abqc.dialects.formats import NumberFormat

from ..packing.quantize_row import LANES, RowCodes, RowScale, StoredCodes
from .layout import SCALE_AT, ZERO_AT

ROWS = 8  # of planes, of a grid index
CHUNK = 512  # columns of an image that are cut into phases at a time


def planes_kernel(spec: CodeConvSpec) -> Kernel:
    format, stored = spec.activation.format, spec.product.stored_codes
    kind = "stored_planes" if stored else "planes"
    (sy, sx), (ky, kx) = spec.strides, spec.kept
    name = f"int8_conv_{kind}_{format.name}_s{sy}x{sx}_p{ky}x{kx}"
    emit = partial(_emit, name, format, spec.strides, spec.kept, stored)
    return Kernel(name, (1, 1, ROWS), emit)


def _emit(
    name: str,
    format: NumberFormat,
    strides: tuple[int, int],
    kept: tuple[int, int],
    stored: bool,
    module: Any,
    isa: Isa,
) -> None:
    values = buffer("i8" if stored else "f32")
    arguments = [values, buffer("f32"), buffer("i32"), buffer("i8"), *[INDEX] * 8]
    with function(module, isa, name, arguments) as (b, i, x, scale, zero, q, *sizes):
        codes = (StoredCodes if stored else RowCodes)(b, format, x, b.index(0), b.index(0))
        _Body(b, codes, strides, kept, scale, zero, q, *sizes).emit(i)


@dataclass
class _Body:
    b: Builder
    codes: RowCodes
    strides: tuple[int, int]
    kept: tuple[int, int]  # phases of rows and columns
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
        self.last = self.b.alloca(LANES * QUAD, "i8")
        self.scratch = self.b.alloca(CHUNK * QUAD, "i8") if self.strides[1] > 1 else None

    def emit(self, i: Value) -> None:
        b, sy, (ky, kx) = self.b, self.strides[0], self.kept
        blocks = (self.channels + (QUAD - 1)) // QUAD
        across = (self.rows + (ROWS - 1)) // ROWS
        first, block, sample = i % across * ROWS, i // across % blocks, i // across // blocks
        plane = self.rows * self.pitch
        sample_at = sample * (blocks * plane * (ky * kx * QUAD) + HEADER)
        entry = sample // self.samples
        row = self.codes.given(b.load(self.scale, entry), b.load(self.zero, entry))
        with b.when((block + first) == 0):  # one index of a sample writes its header
            b.store_as(row.scale, self.q, sample_at + SCALE_AT)
            b.store_as(row.zero, self.q, sample_at + ZERO_AT)
        last = b.min(first + ROWS, self.rows)
        zeros = row.zero * 0x01010101
        with b.loop(first, last) as rows, b.loop(0, ky) as phases:
            above = rows.i * sy + phases.i
            at = (block * (ky * kx) + phases.i * kx) * plane + rows.i * self.pitch
            at = sample_at + HEADER + at * QUAD
            inside = (above >= self.top) & (above < self.top + self.height)
            with b.when(inside):
                self._row(sample, block, above - self.top, row, zeros, at, plane * QUAD)
            with b.when(inside ^ 1), b.loop(0, kx) as columns:
                self._fill(zeros, at + columns.i * (plane * QUAD), b.index(0), self.pitch)

    def _row(
        self,
        sample: Value,
        block: Value,
        line: Value,
        row: RowScale,
        zeros: Value,
        at: Value,
        phase_bytes: Value,
    ) -> None:
        """A row of four channels of the image, with the zeros before and behind it."""
        b, sx, end = self.b, self.strides[1], self.left + self.width
        sources = []
        for c in range(QUAD):
            channel = block * QUAD + c
            begin = sample * self.channels + b.min(channel, self.channels - 1)
            sources.append((channel < self.channels, (begin * self.height + line) * self.width))
        for phase in range(self.kept[1]):
            target = at + phase_bytes * phase
            self._fill(zeros, target, b.index(0), self._reach(self.left, phase))
            self._fill(zeros, target, self._reach(end, phase), self.pitch)
        if self.scratch is None:
            self._quads(sources, row, b.index(0), self.width, self.q, at + self.left * QUAD)
            return
        with b.loop(0, self.width, CHUNK) as chunks:
            last = b.min(chunks.i + CHUNK, self.width)
            self._quads(sources, row, chunks.i, last - chunks.i, self.scratch, b.index(0))
            begin = self.left + chunks.i
            for phase in range(self.kept[1]):
                target = at + phase_bytes * phase
                stop = self._reach(self.left + last, phase)
                with b.loop(self._reach(begin, phase), stop) as loop:
                    quad = b.load_as(self.scratch, (loop.i * sx + phase - begin) * QUAD, "i32")
                    b.store_as(quad, self.q, target + loop.i * QUAD)

    def _reach(self, column: Value, phase: int) -> Value:
        """How many columns of a phase are before `column` of the image with its zeros."""
        sx = self.strides[1]
        return column if sx == 1 else (column + (sx - 1 - phase)) // sx

    def _fill(self, zeros: Value, at: Value, begin: Value, end: Value) -> None:
        with self.b.loop(begin, end) as loop:
            self.b.store_as(zeros, self.q, at + loop.i * QUAD)

    def _quads(
        self,
        sources: list[tuple[Value, Value]],
        row: RowScale,
        first: Value,
        count: Value,
        target: Value,
        at: Value,
    ) -> None:
        """`count` quads of the columns from `first` on, to byte `at` of `target`."""
        b = self.b

        def quads(i: Value, mask: Value | None) -> Value:
            total = b.const(0, vec(LANES, "i32"))
            for c, (exists, begin) in enumerate(sources):
                code = self.codes.vector(begin + (first + i), row, mask)
                code = b.select(b.splat(exists, LANES), code, b.splat(row.zero, LANES))
                total = total | (code << (8 * c) if c else code)
            return total

        rest = count % LANES
        whole = count - rest
        with b.loop(0, whole, LANES) as loop:
            b.store_as(quads(loop.i, None), target, at + loop.i * QUAD)
        with b.when(rest > 0):
            b.store_as(quads(whole, b.mask(LANES, rest)), self.last, 0)
            with b.loop(0, rest) as loop:
                quad = b.load_as(self.last, loop.i * QUAD, "i32")
                b.store_as(quad, target, at + (whole + loop.i) * QUAD)
