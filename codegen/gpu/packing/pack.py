"""Kernels that turn rows of f32 into packed rows, for all strategies (docs/gpu.md).

pack          (x f32, q, m)                                   grid ceil(m / block[0])
scaled pack   (x f32, scale f32, zero i32, q, m, rows_per_scale)
stored pack   (x i8: codes, and as scaled pack)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects.formats import NumberFormat

from ..arch import GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from ..rows.hadamard import Rotation
from ..rows.threads import (
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


def _emit(packing: RowPacking, name: str, module: Any, arch: GpuArch) -> None:
    rotation, shared = _rotation(packing, arch)
    threads = packing.threads.threads
    types = [POINTER, POINTER, "i32"]
    with kernel(module, arch, name, types, threads=threads, shared=shared) as (b, block, x, q, m):
        body = _body(packing, b, block, q, m)
        sweep = _sweep(body, rotation, x)
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
        body.run(_sweep(body, rotation, x), scale)


def _rotation(packing: RowPacking, arch: GpuArch) -> tuple[Rotation | None, int]:
    """How rows are rotated, None if they are not, and the bytes of shared memory of the kernel."""
    scratch = packing.scratch_bytes
    if not packing.hadamard_block:
        return None, scratch
    budget = arch.shared_per_block - scratch
    rotation = Rotation.of(packing.shape, packing.hadamard_block, budget)
    return rotation, scratch + rotation.shared_bytes


def _sweep(body: PackRow, rotation: Rotation | None, x: Value) -> RowSweep:
    """The values of a row of x, rotated where there is a rotation."""
    shape = body.packing.shape
    if body.packing.stored:
        codes = body.row.at(body.b, x, shape.k)
        return RowSweep(body.b, shape, body.place, lambda begin: _codes(body, shape, codes, begin))
    row = body.row.at(body.b, x, 4 * shape.k)
    if rotation is None:
        return RowSweep(body.b, shape, body.place, lambda begin: _load(body, shape, row, begin))
    unpadded, scratch = shape.unpadded, body.packing.scratch_bytes
    return body.sweep(rotation, scratch, lambda begin: _load(body, unpadded, row, begin))


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
