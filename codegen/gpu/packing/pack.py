"""Kernels that turn rows of f32 into packed rows, for all strategies (docs/gpu.md).

pack          (x f32, q, m)                                   grid ceil(m / block[0])
fused pack    (x f32, inputs f32..., q, m); rows are made of x and of inputs first (`fuse-pack`)
scaled pack   (x f32, scale f32, zero i32, q, m, rows_per_scale)
stored pack   (x i8: codes, and as scaled pack)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.epilogue import apply_epilogue
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects.epilogue import Epilogue, name_with
from abqc.dialects.formats import NumberFormat

from ..arch import GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from ..rows.hadamard import Rotation
from ..rows.threads import (
    PER_LANE,
    Chunk,
    Place,
    Row,
    RowShape,
    RowSweep,
    load_codes,
    load_four,
    span_positions,
)
from .layout import FloatRows
from .quantize_row import given_scale
from .row import PackRow, RowLayout, RowPacking


@dataclass(frozen=True)
class PackKernel(Kernel):
    """A kernel that packs rows, and how it does it."""

    packing: RowPacking


def pack_kernel(spec: MatmulSpec, layout: RowLayout) -> PackKernel:
    """Rows of `layout`, each with its own scale, rotated before if `spec` asks for it."""
    blocks = spec.activation if spec.blocks else None
    packing = RowPacking.of(_format(spec, layout), layout, spec.hadamard_block, blocks)
    name = f"pack_{packing.name}"
    return PackKernel(name, (packing.threads.rows,), partial(_emit, packing, name), packing)


def fused_pack_kernel(pack: PackKernel, prologue: Epilogue) -> PackKernel:
    """What `pack` does to rows that the prologue makes of elements of x, and of elements and
    channels of its inputs."""
    name = name_with(pack.name, prologue)
    emit = partial(_emit, pack.packing, name, prologue=prologue)
    return PackKernel(name, pack.block, emit, pack.packing)


def scaled_pack_kernel(spec: MatmulSpec, layout: RowLayout) -> Kernel:
    """Rows of `layout` with scales that were measured before, rotated if `spec` asks for it, or of
    codes that are stored as bytes."""
    stored = spec.stored_codes
    packing = RowPacking.of(_format(spec, layout), layout, spec.hadamard_block, stored=stored)
    name = f"{'stored' if stored else 'scaled'}_pack_{packing.name}"
    return Kernel(name, (packing.threads.rows,), partial(_emit_scaled, packing, name))


def _format(spec: MatmulSpec, layout: RowLayout) -> NumberFormat | None:
    if isinstance(layout, FloatRows):
        return None
    assert spec.activation is not None
    return spec.activation.format


def _emit(
    packing: RowPacking, name: str, module: Any, arch: GpuArch, prologue: Epilogue | None = None
) -> None:
    rotation, shared = _rotation(packing, arch)
    threads = packing.threads.threads
    reads = prologue.reads if prologue is not None else ()
    types = [POINTER, *(POINTER for _ in reads), POINTER, "i32"]
    with kernel(module, arch, name, types, threads=threads, shared=shared) as opened:
        b, block, x, *inputs, q, m = opened
        body = _body(packing, b, block, q, m)
        sweep = pack_sweep(body, rotation, x, prologue, inputs)
        body.run(sweep, body.measure(sweep))


def _emit_scaled(packing: RowPacking, name: str, module: Any, arch: GpuArch) -> None:
    rotation, shared = _rotation(packing, arch)
    types = [POINTER, POINTER, POINTER, POINTER, "i32", "i32"]
    threads = packing.threads.threads
    with kernel(module, arch, name, types, threads=threads, shared=shared) as (
        b,
        block,
        x,
        scales,
        zeros,
        q,
        m,
        rows_per_scale,
    ):
        body = _body(packing, b, block, q, m)
        entry = body.row.index // rows_per_scale * 4
        zero = b.load(zeros, "i32", entry, cache="nc")
        scale = given_scale(b, b.load(scales, "f32", entry, cache="nc"), zero)
        body.run(pack_sweep(body, rotation, x), scale)


def _rotation(packing: RowPacking, arch: GpuArch) -> tuple[Rotation | None, int]:
    """How rows are rotated, None if they are not, and the bytes of shared memory of the kernel."""
    scratch = packing.scratch_bytes
    if not packing.hadamard_block:
        return None, scratch
    budget = arch.shared_per_block - scratch
    rotation = Rotation.of(packing.shape, packing.hadamard_block, budget)
    return rotation, scratch + rotation.shared_bytes


def pack_sweep(
    body: PackRow,
    rotation: Rotation | None,
    x: Value,
    prologue: Epilogue | None = None,
    inputs: Sequence[Value] = (),
) -> RowSweep:
    """The values of a row of x, or what the prologue makes of them, rotated where there is a
    rotation."""
    shape = body.packing.shape
    if body.packing.stored:
        codes = body.row.at(body.b, x, shape.k)
        return RowSweep(body.b, shape, body.place, lambda begin: _codes(body, shape, codes, begin))
    load = _loads(body, x, prologue, inputs)
    if rotation is None:
        return RowSweep(body.b, shape, body.place, lambda begin: load(shape, begin))
    unpadded, scratch = shape.unpadded, body.packing.scratch_bytes
    return body.sweep(rotation, scratch, lambda begin: load(unpadded, begin))


def _loads(
    body: PackRow, x: Value, prologue: Epilogue | None, inputs: Sequence[Value]
) -> Callable[[RowShape, Value], list[Chunk]]:
    """What gives the chunks of the row in the span at a position."""
    b, row, row_bytes = body.b, body.row, 4 * body.packing.shape.k
    first = row.at(b, x, row_bytes)
    if prologue is None:
        return lambda shape, begin: _load(body, shape, first, begin)
    others = [
        row.at(b, pointer, row_bytes) if read == "element" else pointer
        for read, pointer in zip(prologue.reads, inputs, strict=True)
    ]

    def load(shape: RowShape, begin: Value) -> list[Chunk]:
        given = [_load(body, shape, pointer, begin) for pointer in (first, *others)]
        positions = span_positions(b, shape, body.place, begin)
        return [
            _inside(b, shape, position, b.lanes_of(apply_epilogue(prologue, values[0], values[1:])))
            for position, *chunks in zip(positions, *given, strict=True)
            for values in [[b.vector(chunk) for chunk in chunks]]
        ]

    return load


def _inside(b: GpuBuilder, shape: RowShape, position: Value, chunk: Chunk) -> Chunk:
    """The chunk with 0 where there is no element."""
    elements = shape.elements(b, position)
    there = [elements.there(b, i) for i in range(PER_LANE)]
    return [
        value if keep is None else b.select(keep, value, 0.0)
        for value, keep in zip(chunk, there, strict=True)
    ]


def _codes(body: PackRow, shape: RowShape, x: Value, begin: Value) -> list[Chunk]:
    b, format = body.b, body.packing.format
    assert format is not None
    positions = span_positions(b, shape, body.place, begin)
    signed = format.qmin < 0
    return [load_codes(b, x, shape.elements(b, p), signed=signed) for p in positions]


def _body(packing: RowPacking, b: GpuBuilder, block: Value, q: Value, m: Value) -> PackRow:
    place = Place.of(b, packing.threads)
    row = Row.of(b, packing.threads, place, block, m)
    return PackRow(packing, b, place, row, row.at(b, q, packing.layout.row_bytes), 0)


def _load(body: PackRow, shape: RowShape, x: Value, begin: Value) -> list[Chunk]:
    b = body.b
    positions = span_positions(b, shape, body.place, begin)
    return [load_four(b, shape, x, shape.elements(b, p), cache="nc") for p in positions]
