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
        lanes = [butterfly(self.b, value, WARP, how) for value, how in pairs]
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
            butterfly(b, value, warps, how) for value, how in zip(partial, combine, strict=True)
        ]


def butterfly(b: GpuBuilder, value: Value, lanes: int, combine: Combine) -> Value:
    """`value` combined over each group of `lanes` neighbouring lanes, in all of them."""
    distance = lanes // 2
    while distance:
        value = combine(value, b.exchange(value, "bfly", distance))
        distance //= 2
    return value
