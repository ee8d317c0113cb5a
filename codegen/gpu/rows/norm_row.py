"""One row being normalized, for all kernels that do it.

The row stays in registers between the passes over it, in the order of the formulas as written:
mean, difference, mean of squares, 1 / sqrt, products. Sums are trees over the elements that are the
same however many threads share the row: within a lane's four, over the lanes of a chunk, then over
chunks, distant ones first (threads.py). So all kernels give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..arch import WARP
from ..builder import GpuBuilder
from ..packing.layout import GroupedK, align
from .chunks import store4
from .reduction import RowReduction, butterfly
from .threads import (
    PER_LANE,
    Chunk,
    Place,
    Row,
    RowShape,
    RowThreads,
    load_four,
    power_of_two,
    span_positions,
)

# Weight and bias are loaded with the row, instead of after its sums, up to so many chunks a warp:
# the loads overlap, and there are registers for them.
EARLY_CHUNKS = 2


@dataclass(frozen=True)
class NormRow:
    """Emits the normalization of a row of `columns`. `buffers` has the pointers of
    `NormSpec.pointers`: what is not among them is not read or not written. `scratch` is where its
    `scratch_bytes` of shared memory begin."""

    b: GpuBuilder
    kind: str
    columns: int
    threads: RowThreads
    place: Place
    row: Row
    buffers: dict[str, Value]
    scratch: int

    @staticmethod
    def scratch_bytes(threads: RowThreads) -> int:
        """Shared memory for two sums, a multiple of 16."""
        return 2 * _sum_bytes(threads)

    @property
    def shape(self) -> RowShape:
        """Its positions are elements."""
        whole = GroupedK(self.columns, self.columns)
        return RowShape(whole, self.threads).unpadded

    def run(self, epsilon: Value) -> list[Chunk]:
        """The normalized row's chunks, 0 past its end; the sum and the row are written where there
        are buffers for them."""
        b, columns = self.b, float(self.columns)
        firsts = span_positions(b, self.shape, self.place, b.const(0, "i32"))
        early = len(firsts) <= EARLY_CHUNKS
        factors = self._factors(firsts) if early else None
        x = self._summands(firsts)
        if self.kind == "layer":
            mean = self._total(x, 0) / columns
            # Past the row's end there is no difference to the mean.
            x = self._inside(firsts, [[v - mean for v in chunk] for chunk in x])
        squares = [[v * v for v in chunk] for chunk in x]
        variance = self._total(squares, _sum_bytes(self.threads)) / columns
        factor = b.reciprocal_root(variance + epsilon)
        y = [[v * factor for v in chunk] for chunk in x]
        weight, bias = factors or self._factors(firsts)
        if weight is not None:
            y = [_products(chunk, w) for chunk, w in zip(y, weight, strict=True)]
        if bias is not None:
            y = [_sums(chunk, c) for chunk, c in zip(y, bias, strict=True)]
        y = self._inside(firsts, y)  # a row with NaN would have NaN there
        self._store("y", firsts, y)
        return y

    def _summands(self, firsts: list[Value]) -> list[Chunk]:
        """x + residual, kept where others need it."""
        x = self._rows("x", firsts)
        if "residual" in self.buffers:
            residual = self._rows("residual", firsts)
            x = [_sums(chunk, r) for chunk, r in zip(x, residual, strict=True)]
        self._store("sum", firsts, x)
        return x

    def _factors(self, firsts: list[Value]) -> tuple[list[Chunk] | None, list[Chunk] | None]:
        """Weight and bias."""
        weight, bias = self.buffers.get("weight"), self.buffers.get("bias")
        return (
            None if weight is None else self._load(weight, firsts),
            None if bias is None else self._load(bias, firsts),
        )

    def _rows(self, name: str, firsts: list[Value]) -> list[Chunk]:
        return self._load(self._at(name), firsts)

    def _at(self, name: str) -> Value:
        return self.row.at(self.b, self.buffers[name], 4 * self.columns)

    def _load(self, pointer: Value, firsts: list[Value]) -> list[Chunk]:
        b, shape = self.b, self.shape
        return [load_four(b, shape, pointer, shape.elements(b, f), cache="nc") for f in firsts]

    def _store(self, name: str, firsts: list[Value], chunks: list[Chunk]) -> None:
        """The chunks to the row in a buffer, if there is such a buffer."""
        if name not in self.buffers:
            return
        b, pointer = self.b, self._at(name)
        with b.when(self.row.active):
            for first, chunk in zip(firsts, chunks, strict=True):
                store4(b, chunk, pointer, first, self.columns)

    def _inside(self, firsts: list[Value], chunks: list[Chunk]) -> list[Chunk]:
        """The chunks with 0 past the row's end."""
        b, result = self.b, []
        for first, chunk in zip(firsts, chunks, strict=True):
            elements = self.shape.elements(b, first)
            there = [elements.there(b, i) for i in range(PER_LANE)]
            result.append(
                [
                    v if keep is None else b.select(keep, v, 0.0)
                    for v, keep in zip(chunk, there, strict=True)
                ]
            )
        return result

    def _total(self, chunks: list[Chunk], offset: int) -> Value:
        """The sum of a row's chunks in all of its threads, with shared memory from `offset` on."""
        sums = [
            butterfly(self.b, (v[0] + v[1]) + (v[2] + v[3]), WARP, lambda x, y: x + y)
            for v in chunks
        ]
        # Chunk c of the row is c // warps of a warp: first the upper bits of c, then the lower.
        distance = power_of_two(len(sums)) // 2
        while distance:
            pairs = [a + c for a, c in zip(sums, sums[distance:], strict=False)]
            sums = pairs + sums[len(pairs) : distance]
            distance //= 2
        at = self.scratch + offset
        reduction = RowReduction.at(self.b, self.threads, self.place, at)
        return reduction.across_warps(sums, [lambda x, y: x + y])[0]


def _sum_bytes(threads: RowThreads) -> int:
    return align(RowReduction.scratch_bytes(threads, 1), 16)


def _products(chunk: Chunk, other: Chunk) -> Chunk:
    return [v * w for v, w in zip(chunk, other, strict=True)]


def _sums(chunk: Chunk, other: Chunk) -> Chunk:
    return [v + w for v, w in zip(chunk, other, strict=True)]
