"""Writes rows of `layout.FloatRows` and `CentredRows`."""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Value
from abqc.dialects.element_types import is_integer

from ..builder import GpuBuilder
from ..rows.threads import Chunk
from .layout import CentredRows, FloatRows


@dataclass(frozen=True)
class HalfWriter:
    """Values rounded to f16 or bf16: four neighbouring ones are one store."""

    layout: FloatRows | CentredRows

    @property
    def positions(self) -> int:
        return self.layout.grouped.padded_k

    def write(self, b: GpuBuilder, row: Value, position: Value, values: Chunk, own: Value) -> None:
        """Values (f32), or centred codes (i32), at a lane's positions; `own`: whether the row has
        these positions."""
        values = [b.to_float(v) if is_integer(v.type, 32) else v for v in values]
        halves = b.narrow(b.vector(values), self.layout.element)
        with b.when(own):
            b.store(halves, row, position * 2)
