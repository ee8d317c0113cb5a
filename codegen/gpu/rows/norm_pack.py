"""Normalizations whose rows go into packed rows at once: norm.py and packing/pack.py in one launch.

    norm pack (x, residual, weight, bias, y, sum f32; packed rows q, ...; rows i32, epsilon f32)
              grid ceil(rows / block[0])

The arguments up to `sum` are those of norm.py; y is there where others read the normalized rows
too. Rows are packed in one or several ways, a q for each. All bytes are those that the separate
kernels give; but scales that are means (one bit) may be sums in another order, where several
packings together have other threads than alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

from abqc.codegen.strategy import Kernel
from abqc.dialects.norm_spec import NormSpec

from ..arch import GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from ..packing.quantize_row import RowScale
from ..packing.row import PackRow, RowPacking
from .hadamard import Rotation
from .norm_row import NormRow
from .threads import Chunk, Place, Row, RowSweep, RowThreads


def norm_pack_kernel(
    norm: NormSpec, packings: Sequence[RowPacking], archs: Sequence[GpuArch], *, keeps_row: bool
) -> Kernel | None:
    """The kernel of rows that are normalized and packed; None where they are too long for it on one
    of the targets."""
    assert all(p.shape.k == norm.columns for p in packings), "one row has one length"
    if any(p.threads.spans > 1 for p in packings):
        return None
    positions = max(p.writer.positions for p in packings)
    threads = RowThreads.of(positions, rotated=max(p.hadamard_block for p in packings))
    body = _NormPack(norm, tuple(replace(p, threads=threads) for p in packings), keeps_row, threads)
    if not all(body.fits(arch) for arch in archs):
        return None
    return Kernel(body.name, (threads.rows,), partial(_emit, body))


@dataclass(frozen=True)
class _NormPack:
    """The kernel's description; all `packings` have these `threads`. Shared memory has a part for
    the norm, one for each packing, and the rotated values, for one packing after the other."""

    norm: NormSpec
    packings: tuple[RowPacking, ...]
    keeps_row: bool
    threads: RowThreads

    @property
    def name(self) -> str:
        row = "_y" if self.keeps_row else ""
        return "_".join([self.norm.name + row, *(packing.name for packing in self.packings)])

    @property
    def scratch(self) -> list[int]:
        """Where the scratch of each packing begins, and where the last one ends."""
        sizes = [packing.scratch_bytes for packing in self.packings]
        return list(accumulate(sizes, initial=NormRow.scratch_bytes(self.threads)))

    def fits(self, arch: GpuArch) -> bool:
        """Whether shared memory holds the rows of elements that padded ones are read from."""
        budget = arch.shared_per_block - self.scratch[-1]
        return all(p.shape.dense or Rotation.can_stage(p.shape, budget) for p in self.packings)

    def rotations(self, arch: GpuArch) -> list[Rotation | None]:
        """Of each packing. Rows with padding are rotated in blocks of 1 if at all: they only pass
        through shared memory."""
        budget = arch.shared_per_block - self.scratch[-1]
        blocks = [p.hadamard_block or (0 if p.shape.dense else 1) for p in self.packings]
        return [
            Rotation.of(packing.shape, block, budget) if block else None
            for packing, block in zip(self.packings, blocks, strict=True)
        ]


def _emit(body: _NormPack, module: Any, arch: GpuArch) -> None:
    norm, threads = body.norm, body.threads
    rotations = body.rotations(arch)
    shared = body.scratch[-1] + max(r.shared_bytes if r else 0 for r in rotations)
    names = norm.pointers(row=body.keeps_row)
    types = [POINTER] * (len(names) + len(body.packings)) + ["i32", "f32"]
    with kernel(module, arch, body.name, types, threads=threads.threads, shared=shared) as (
        b,
        block,
        *pointers,
        rows,
        epsilon,
    ):
        place = Place.of(b, threads)
        row = Row.of(b, threads, place, block, rows)
        buffers = dict(zip(names, pointers, strict=False))
        chunks = NormRow(b, norm.kind, norm.columns, threads, place, row, buffers, 0).run(epsilon)
        bodies = [
            PackRow(packing, b, place, row, row.at(b, q, packing.layout.row_bytes), scratch)
            for packing, q, scratch in zip(
                body.packings, pointers[len(names) :], body.scratch, strict=False
            )
        ]
        _pack(b, bodies, rotations, body.scratch[-1], chunks)


def _pack(
    b: GpuBuilder,
    bodies: list[PackRow],
    rotations: list[Rotation | None],
    shared: int,
    chunks: list[Chunk],
) -> None:
    """Pack the row of `chunks` in every way; what two have in common is done once."""
    sweeps: dict[Any, RowSweep] = {}
    scales: dict[Any, RowScale | None] = {}
    for body, rotation in zip(bodies, rotations, strict=True):
        packing = body.packing
        places = None if packing.shape.dense else packing.shape
        values = (packing.hadamard_block, places)
        if values not in sweeps:
            if sweeps:
                b.barrier()  # others may still read what the last one rotated
            sweeps[values] = body.sweep(rotation, shared, lambda _: chunks)
        if (values, packing.format) not in scales:
            scales[values, packing.format] = body.measure(sweeps[values])
        body.run(sweeps[values], scales[values, packing.format])
