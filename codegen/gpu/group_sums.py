"""Sums of a row's centred codes, group by group, on the way into the packed row.

Integer sums, so that the order in which threads add does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...dialects.mlir import llvm
from ..builder import Value
from .builder import GpuBuilder
from .reduce_row import RowReduction, butterfly
from .row_threads import CHUNK, PER_LANE, Place, RowThreads
from .rows_layout import GroupedK


class GroupSums(Protocol):
    """Gets each lane's sum of four codes; writes the sums of groups."""

    def start(self) -> list[Value]:
        """Values that `add` carries along."""
        ...

    def add(self, position: Value, total: Value, own: Value, carry: Sequence[Value]) -> list[Value]:
        """Count `total`, of the codes at `position` .. + 3; `own`: the row has them."""
        ...

    def finish(self, carry: Sequence[Value], active: Value) -> None:
        """Write what is not yet written; `active`: the row is one of the m rows."""
        ...


@dataclass(frozen=True)
class NoSums:
    """For rows that have none."""

    def start(self) -> list[Value]:
        return []

    def add(self, position: Value, total: Value, own: Value, carry: Sequence[Value]) -> list[Value]:
        return []

    def finish(self, carry: Sequence[Value], active: Value) -> None:
        pass


@dataclass(frozen=True)
class OneSum:
    """One group: the lanes keep their sums, which are combined at the end."""

    b: GpuBuilder
    target: Value
    place: Place
    reduction: RowReduction

    def start(self) -> list[Value]:
        return [self.b.const(0, "i32")]

    def add(self, position: Value, total: Value, own: Value, carry: Sequence[Value]) -> list[Value]:
        return [carry[0] + total]

    def finish(self, carry: Sequence[Value], active: Value) -> None:
        b = self.b
        (total,) = self.reduction.run(carry, [lambda x, y: x + y])
        first = (self.place.warp | self.place.lane) == 0
        with b.when(active & first):
            b.store(total, self.target)


@dataclass(frozen=True)
class ChunkSums:
    """Groups that lie within a chunk: neighbouring lanes have one, and write it at once."""

    b: GpuBuilder
    target: Value
    grouped: GroupedK

    def start(self) -> list[Value]:
        return []

    def add(self, position: Value, total: Value, own: Value, carry: Sequence[Value]) -> list[Value]:
        b, pitch = self.b, self.grouped.padded_group
        total = butterfly(b, total, pitch // PER_LANE, lambda x, y: x + y)
        group = position // pitch
        first = (position & (pitch - 1)) == 0
        with b.when(own & first & (group < self.grouped.groups)):
            b.store(total, self.target, group * 4)
        return []

    def finish(self, carry: Sequence[Value], active: Value) -> None:
        pass


@dataclass(frozen=True)
class SharedSums:
    """Groups of several chunks, or parts of two: added up in shared memory, `scratch`."""

    b: GpuBuilder
    target: Value
    grouped: GroupedK
    threads: RowThreads
    place: Place
    scratch: Value

    @staticmethod
    def scratch_bytes(threads: RowThreads, groups: int) -> int:
        return 4 * threads.rows * groups

    @property
    def _mine(self) -> Value:
        """The sums of the thread's row."""
        return self.b.at(self.scratch, self.place.row * (4 * self.grouped.groups))

    def start(self) -> list[Value]:
        self._for_groups(lambda at: self.b.store(self.b.const(0, "i32"), self._mine, at))
        self.b.barrier()
        return []

    def add(self, position: Value, total: Value, own: Value, carry: Sequence[Value]) -> list[Value]:
        b, pitch = self.b, self.grouped.padded_group
        together = math.gcd(pitch, CHUNK)  # positions that surely are of one group
        total = butterfly(b, total, together // PER_LANE, lambda x, y: x + y)
        group = position // pitch
        first = (position & (together - 1)) == 0
        with b.when(own & first & (group < self.grouped.groups)):
            pointer = b.at(self._mine, group * 4)
            llvm.AtomicRMWOp(
                llvm.AtomicBinOp.add, pointer.ir, total.ir, llvm.AtomicOrdering.monotonic
            )
        return []

    def finish(self, carry: Sequence[Value], active: Value) -> None:
        b = self.b
        b.barrier()
        with b.when(active):
            self._for_groups(lambda at: b.store(b.load(self._mine, "i32", at), self.target, at))

    def _for_groups(self, body) -> None:  # type: ignore[no-untyped-def]
        """`body(byte offset)` for all groups, shared out among the row's threads."""
        b = self.b
        step = 32 * self.threads.warps
        with b.loop(self.place.warp * 32 + self.place.lane, self.grouped.groups, step) as loop:
            body(loop.i * 4)
