"""Normalizations of rows: LayerNorm and RMSNorm, one launch each.

Arguments, one slot each; pointers that a spec does not have are left out:

    norm      (x, residual, weight, bias, y, sum f32; rows i32, epsilon f32) grid ceil(rows / block)
              x' = x + residual, which `sum` gets; of layer norms the mean is taken off x'; then
              y = x' / sqrt(mean of x'^2 + epsilon) * weight + bias
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ..strategy import Kernel
from .arch import GpuArch
from .builder import POINTER, kernel
from .norm_row import NormRow
from .row_threads import Place, Row, RowThreads

NormKind = Literal["layer", "rms"]

MAX_COLUMNS = 16384  # fuse-norm leaves longer rows alone


@dataclass(frozen=True)
class NormSpec:
    """A layer norm or RMS norm over rows of `columns`; which operands it has; `keeps_sum`: x +
    residual is needed by others too."""

    kind: NormKind
    columns: int
    weight: bool = True
    bias: bool = False
    residual: bool = False
    keeps_sum: bool = False

    @property
    def name(self) -> str:
        """The name of its kernel."""
        flags = "".join(
            letter
            for letter, on in (
                ("r", self.residual),
                ("k", self.keeps_sum),
                ("w", self.weight),
                ("b", self.bias),
            )
            if on
        )
        return f"norm_{self.kind}_{self.columns}" + (f"_{flags}" if flags else "")

    def pointers(self, *, row: bool) -> list[str]:
        """The pointers among the arguments; `row`: y is one of them."""
        present = {
            "x": True,
            "residual": self.residual,
            "weight": self.weight,
            "bias": self.bias,
            "y": row,
            "sum": self.keeps_sum,
        }
        return [name for name, on in present.items() if on]


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
