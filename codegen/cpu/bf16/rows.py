"""Packed rows of activations in bf16: rounded to nearest, ties to even, in pairs along K.

pack kernel  (i, x: memref<?xf32>, q: memref<?xi8>, m: index), as `activations.PackKernel`

A row has its segments one after the other, each filled up with zeros to whole steps of 32 values,
64 bytes: what a row of a tile register holds. NaN and infinities stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.align import align
from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.strategy import Kernel
from abqc.dialects.formats import Scheme

from ..packing.activations import ROWS, RowsKernel
from ..packing.quantize_row import LANES
from .dot import PAIR, rounded

STEP = 32  # values
VALUE_BYTES = 2


@dataclass(frozen=True)
class Bf16Rows:
    """The layout of rows of `k` values in segments of `segment`, the last of which may be short."""

    k: int
    segment: int

    @staticmethod
    def of(k: int, weight: Scheme | None) -> Bf16Rows:
        """What products by a weight read; one segment where groups are whole steps."""
        size = k if weight is None else min(weight.group_size or k, k)
        return Bf16Rows(k, k if size % STEP == 0 else size)

    @property
    def pitch(self) -> int:
        """Values from one segment's begin to the next one's."""
        return align(self.segment, STEP)

    @property
    def padded_k(self) -> int:
        return -(-self.k // self.segment) * self.pitch

    @property
    def row_bytes(self) -> int:
        return self.padded_k * VALUE_BYTES

    @property
    def row_pairs(self) -> int:
        return self.padded_k // PAIR

    def at(self, term: Value) -> Value:
        """The place of a term of K in a row."""
        if self.pitch == self.segment or self.segment == self.k:
            return term
        return term // self.segment * self.pitch + term % self.segment


@dataclass(frozen=True)
class Bf16PackKernel:
    """See the module."""

    rows: Bf16Rows

    def emit(self, name: str, module: Any, isa: Any) -> None:
        with function(module, isa, name, [buffer("f32"), buffer("i8"), INDEX]) as (b, i, x, q, m):
            first = i * ROWS
            write = self.writer_of(b, x)
            with b.loop(first, b.min(first + ROWS, m)) as loop:
                write(loop.i * self.rows.k, q, loop.i)

    def writer_of(self, b: Builder, x: Value) -> Callable[[Value, Value, Value], None]:
        """As that of `activations.PackKernel`."""
        rows = self.rows

        def write(begin: Value, q: Value, number: Value) -> None:
            with b.loop(0, rows.k, rows.segment) as segments:
                count = b.index(rows.segment)
                if rows.k % rows.segment:
                    count = b.min(rows.k - segments.i, count)
                target = number * rows.row_bytes + rows.at(segments.i) * VALUE_BYTES
                self._segment(b, x, begin + segments.i, count, q, target)

        return write

    def _segment(
        self, b: Builder, x: Value, begin: Value, count: Value, q: Value, target: Value
    ) -> None:
        """Round `count` values from element `begin` on, to byte `target` of q; then zeros."""

        def put(i: Value, mask: Value | None) -> None:
            nearest = rounded(b, b.load(x, begin + i, LANES, mask))
            b.store_as(nearest, q, target + i * VALUE_BYTES)

        whole = count // LANES * LANES
        with b.loop(0, whole, LANES) as loop:
            put(loop.i, None)
        with b.loop(whole, self.rows.pitch, LANES) as rest:
            put(rest.i, b.mask(LANES, b.max(count - rest.i, 0)))


def bf16_pack_kernel(rows: Bf16Rows) -> Kernel:
    """The kernel that packs rows in this layout."""
    segment = f"_s{rows.segment}" if rows.segment < rows.k else ""
    name = f"bf16_pack_k{rows.k}{segment}"
    body = Bf16PackKernel(rows)
    return RowsKernel(name, (ROWS,), partial(body.emit, name), body, uses=frozenset({"bf16"}))
