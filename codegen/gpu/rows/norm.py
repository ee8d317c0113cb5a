"""Normalizations of rows: LayerNorm and RMSNorm, one launch each.

Arguments, one slot each; pointers that a spec does not have are left out:

    norm      (x, residual, weight, bias, y, sum f32; rows i32, epsilon f32) grid ceil(rows / block)
              x' = x + residual, which `sum` gets; of layer norms the mean is taken off x'; then
              y = x' / sqrt(mean of x'^2 + epsilon) * weight + bias
"""

from __future__ import annotations

from functools import partial
from typing import Any

from abqc.codegen.strategy import Kernel
from abqc.dialects.norm_spec import NormSpec

from ..arch import GpuArch
from ..builder import POINTER, kernel
from .norm_row import NormRow
from .threads import Place, Row, RowThreads


def norm_kernel(spec: NormSpec) -> Kernel:
    """`block[0]` rows a block. See the file's head."""
    threads = RowThreads.of(spec.columns)
    return Kernel(spec.name, (threads.rows,), partial(_emit, spec, threads))


def _emit(spec: NormSpec, threads: RowThreads, module: Any, arch: GpuArch) -> None:
    names = spec.pointers(row=True)
    types = [POINTER] * len(names) + ["i32", "f32"]
    shared = NormRow.scratch_bytes(threads)
    with kernel(module, arch, spec.name, types, threads=threads.threads, shared=shared) as (
        b,
        block,
        *pointers,
        rows,
        epsilon,
    ):
        place = Place.of(b, threads)
        row = Row.of(b, threads, place, block, rows)
        buffers = dict(zip(names, pointers, strict=True))
        NormRow(b, spec.kind, spec.columns, threads, place, row, buffers, 0).run(epsilon)
