"""Reductions over all threads that share a row (or a sample)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..arch import WARP
from ..builder import GpuBuilder
from .threads import Place, RowThreads

Combine = Callable[[Value, Value], Value]


@dataclass(frozen=True)
class RowReduction:
    """Combines scalars of all threads of a row; every thread gets the results.

    Rows of several warps meet in shared memory, `scratch` (see `scratch_bytes`), which no other
    reduction may use: between two there is no barrier.
    """

    b: GpuBuilder
    threads: RowThreads
    place: Place
    scratch: Value | None

    @staticmethod
    def at(b: GpuBuilder, threads: RowThreads, place: Place, offset: int) -> RowReduction:
        """The reduction whose scratch begins at byte `offset` of shared memory."""
        scratch = b.at(b.shared, offset) if threads.warps > 1 else None
        return RowReduction(b, threads, place, scratch)

    @staticmethod
    def scratch_bytes(threads: RowThreads, scalars: int) -> int:
        """Shared memory for a reduction of so many 32-bit scalars."""
        return 4 * threads.rows * threads.warps * scalars if threads.warps > 1 else 0

    def run(self, values: Sequence[Value], combine: Sequence[Combine]) -> list[Value]:
        """Each value combined by its function, in an order that does not depend on timing."""
        pairs = list(zip(values, combine, strict=True))
        lanes = [over_warp(self.b, value, how) for value, how in pairs]
        return self.across_warps(lanes, combine)

    def across_warps(self, values: Sequence[Value], combine: Sequence[Combine]) -> list[Value]:
        """Values that the lanes of each warp agree on, combined over the row's warps, distant ones
        first."""
        b, warps = self.b, self.threads.warps
        if warps == 1:
            return list(values)
        assert self.scratch is not None
        count = len(values)
        slots = self.place.row * (warps * count * 4)
        with b.when(self.place.lane == 0):
            for i, value in enumerate(values):
                b.store(value, self.scratch, slots + (self.place.warp + i * warps) * 4)
        b.barrier()
        mine = self.place.lane & (warps - 1)
        partial = [
            b.load(self.scratch, value.type, slots + (mine + i * warps) * 4)
            for i, value in enumerate(values)
        ]
        return [
            # Of maxima, lanes may have the same one several times.
            over_warp(b, value, how) if _is_maximum(b, how) else butterfly(b, value, warps, how)
            for value, how in zip(partial, combine, strict=True)
        ]


def over_warp(b: GpuBuilder, value: Value, combine: Combine) -> Value:
    """`value` combined over all lanes of a warp, in all of them."""
    if combine == b.unsigned_max:
        return b.warp_unsigned_max(value)
    return b.warp_max(value) if combine == b.max else butterfly(b, value, WARP, combine)


def _is_maximum(b: GpuBuilder, combine: Combine) -> bool:
    return combine in (b.max, b.unsigned_max)


def butterfly(b: GpuBuilder, value: Value, lanes: int, combine: Combine) -> Value:
    """`value` combined over each group of `lanes` neighbouring lanes, in all of them."""
    distance = lanes // 2
    while distance:
        value = combine(value, b.exchange(value, "bfly", distance))
        distance //= 2
    return value
