"""Writes rows of `layout.Int8Rows`."""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from ..rows.threads import Chunk
from .layout import Int8Rows


@dataclass(frozen=True)
class Int8Writer:
    """Codes as bytes: four neighbouring ones are one store."""

    layout: Int8Rows

    @property
    def positions(self) -> int:
        return self.layout.grouped.padded_k

    def write(self, b: GpuBuilder, row: Value, position: Value, codes: Chunk, own: Value) -> None:
        """Codes q (i32) at a lane's positions; `own`: whether the row has these positions."""
        word = join_bytes(b, codes)
        with b.when(own):
            b.store(word, row, position)


def join_bytes(b: GpuBuilder, codes: Chunk) -> Value:
    """The low bytes of four i32, the first one lowest."""
    low = b.permute_bytes(codes[0], codes[1], 0x0040)
    high = b.permute_bytes(codes[2], codes[3], 0x0040)
    return b.permute_bytes(low, high, 0x5410)
