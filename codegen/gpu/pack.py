"""Kernels that turn rows of f32 into packed rows, for all strategies (docs/gpu.md).

pack          (x f32, q, m)                                   grid ceil(m / block[0])
scaled pack   (x f32, scale f32, zero i32, q, m, rows_per_scale)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from ...dialects.formats import NumberFormat
from ..builder import Value
from ..strategy import Kernel, MatmulSpec
from .arch import GpuArch
from .builder import POINTER, GpuBuilder, kernel
from .hadamard import Rotation
from .pack_row import PackRow, RowLayout, RowPacking
from .quantize_row import given_scale
from .row_threads import Chunk, Place, Row, RowShape, RowSweep, load_four, span_positions
from .rows_layout import FloatRows


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
    """Rows of `layout` with scales that were measured before."""
    packing = RowPacking.of(_format(spec, layout), layout, 0)
    name = f"scaled_pack_{packing.name}"
    return Kernel(name, (packing.threads.rows,), partial(_emit_scaled, packing, name))


def _format(spec: MatmulSpec, layout: RowLayout) -> NumberFormat | None:
    if isinstance(layout, FloatRows):
        return None
    assert spec.activation is not None
    return spec.activation.format


def _emit(packing: RowPacking, name: str, module: Any, arch: GpuArch) -> None:
    scratch = packing.scratch_bytes
    rotation = None
    if packing.hadamard_block:
        budget = arch.shared_per_block - scratch
        rotation = Rotation.of(packing.shape, packing.hadamard_block, budget)
    threads = packing.threads.threads
    shared = scratch + (rotation.shared_bytes if rotation is not None else 0)
    types = [POINTER, POINTER, "i32"]
    with kernel(module, arch, name, types, threads=threads, shared=shared) as (b, block, x, q, m):
        body = _body(packing, b, block, q, m)
        x = body.row.at(b, x, 4 * packing.shape.k)
        if rotation is None:
            sweep = _as_they_are(body, x)
        else:
            unpadded = packing.shape.unpadded
            sweep = body.sweep(rotation, scratch, lambda begin: _load(body, unpadded, x, begin))
        body.run(sweep, body.measure(sweep))


def _emit_scaled(packing: RowPacking, name: str, module: Any, arch: GpuArch) -> None:
    types = [POINTER, POINTER, POINTER, POINTER, "i32", "i32"]
    threads, scratch = packing.threads.threads, packing.scratch_bytes
    with kernel(module, arch, name, types, threads=threads, shared=scratch) as (
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
        body.run(_as_they_are(body, body.row.at(b, x, 4 * packing.shape.k)), scale)


def _body(packing: RowPacking, b: GpuBuilder, block: Value, q: Value, m: Value) -> PackRow:
    place = Place.of(b, packing.threads)
    row = Row.of(b, packing.threads, place, block, m)
    return PackRow(packing, b, place, row, row.at(b, q, packing.layout.row_bytes), 0)


def _as_they_are(body: PackRow, x: Value) -> RowSweep:
    """The values of the row at x, not rotated."""
    shape = body.packing.shape
    return RowSweep(body.b, shape, body.place, lambda begin: _load(body, shape, x, begin))


def _load(body: PackRow, shape: RowShape, x: Value, begin: Value) -> list[Chunk]:
    b = body.b
    positions = span_positions(b, shape, body.place, begin)
    return [load_four(b, shape, x, shape.elements(b, p), cache="nc") for p in positions]
