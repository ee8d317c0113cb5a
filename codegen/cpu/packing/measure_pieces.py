"""Scales of large samples, measured in pieces that threads share.

RangesKernel      (i, x: memref<?xf32>, ranges: memref<?xf32>, count: index)
    What `RowCodes.ranges` finds in PIECE values of a sample of `count`, as floats or bits of
    them. A sample has ceil(count / PIECE) pieces; the grid is all of them.
GatedRangesKernel (i, x: memref<?xf32>, gate: memref<?xf32>, ranges: memref<?xf32>, size: index)
    The same of x times the gate of its channel, whose `size` values are a piece: the grid is all
    channels of all samples, of which `gate` has one value each.
ScalesKernel      (i, ranges: memref<?xf32>, scale: memref<?xf32>, zero: memref<?xi32>,
                   count, pieces: index)
    The scale and zero point of sample i of `count` values in so many pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, PieceKernels
from abqc.dialects.formats import NumberFormat

from .quantize_row import RowCodes

PIECE = 1 << 14  # values; a few microseconds
RANGES = 4


def piece_kernels(format: NumberFormat) -> PieceKernels:
    def kernel(kind: str, emit: Callable[..., None]) -> Kernel:
        name = f"{kind}_{format.name}"
        return Kernel(name, (1,), partial(emit, name, format))

    ranges, gated = kernel("ranges", _emit_ranges), kernel("gated_ranges", _emit_gated)
    return PieceKernels(ranges, gated, kernel("scales", _emit_scales), PIECE, RANGES)


def _emit_ranges(name: str, format: NumberFormat, module: Any, isa: Isa) -> None:
    with function(module, isa, name, [buffer("f32"), buffer("f32"), INDEX]) as (b, i, x, to, count):
        pieces = (count + (PIECE - 1)) // PIECE
        begin = i % pieces * PIECE
        values = b.min(count - begin, b.index(PIECE))
        codes = RowCodes(b, format, x, i // pieces * count + begin, values)
        _store_ranges(codes, to, i)


def _emit_gated(name: str, format: NumberFormat, module: Any, isa: Isa) -> None:
    arguments = [*[buffer("f32")] * 3, INDEX]
    with function(module, isa, name, arguments) as (b, i, x, gate, to, size):
        codes = RowCodes(b, format, x, i * size, size, b.load(gate, i))
        _store_ranges(codes, to, i)


def _store_ranges(codes: RowCodes, to: Value, i: Value) -> None:
    for at, value in enumerate(codes.ranges()):
        codes.b.store(codes.b.bitcast(value, "f32"), to, i * RANGES + at)


def _emit_scales(name: str, format: NumberFormat, module: Any, isa: Isa) -> None:
    arguments = [buffer("f32"), buffer("f32"), buffer("i32"), INDEX, INDEX]
    with function(module, isa, name, arguments) as (b, i, ranges, scale, zero, count, pieces):
        codes = RowCodes(b, format, ranges, b.index(0), count)
        nothing = [b.const(0, "i32"), *[b.const(0.0, "f32")] * (RANGES - 1)]
        with b.loop(0, pieces, carry=nothing) as loop:
            at = (i * pieces + loop.i) * RANGES
            reach, *others = (b.load(ranges, at + number) for number in range(RANGES))
            loop.carry(*codes.merge(loop.args, [b.bitcast(reach, "i32"), *others]))
        row = codes.of_ranges(loop.results)
        b.store(row.scale, scale, i)
        b.store(row.zero - codes.shift, zero, i)
