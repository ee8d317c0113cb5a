"""Sums of a row's centred codes, group by group, on the way into the packed row.

Integer sums, so that the order in which threads add does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from abqc.codegen.builder import Value

from ..arch import WARP
from ..builder import GpuBuilder
from ..rows.reduction import RowReduction
from ..rows.threads import CHUNK, PER_LANE, Place, RowThreads
from .layout import GroupedK


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
        total = b.warp_sum(total, pitch // PER_LANE)
        group = position // pitch
        first = (position & (pitch - 1)) == 0
        with b.when(own & first & (group < self.grouped.groups)):
            b.store(total, self.target, group * 4)
        return []

    def finish(self, carry: Sequence[Value], active: Value) -> None:
        pass


@dataclass(frozen=True)
class SharedSums:
    """Groups of several chunks, or parts of two: sums of *pieces* (positions that surely are of one
    group) meet in shared memory, `scratch`, where those of a group are added in the end."""

    b: GpuBuilder
    target: Value
    grouped: GroupedK
    positions: int
    threads: RowThreads
    place: Place
    scratch: Value

    @staticmethod
    def scratch_bytes(threads: RowThreads, grouped: GroupedK, positions: int) -> int:
        return 4 * threads.rows * -(-positions // _piece(grouped))

    @property
    def _mine(self) -> Value:
        """The sums of the pieces of the thread's row."""
        pieces = -(-self.positions // _piece(self.grouped))
        return self.b.at(self.scratch, self.place.row * (4 * pieces))

    def start(self) -> list[Value]:
        return []

    def add(self, position: Value, total: Value, own: Value, carry: Sequence[Value]) -> list[Value]:
        b, piece = self.b, _piece(self.grouped)
        total = b.warp_sum(total, piece // PER_LANE)
        with b.when(own & ((position & (piece - 1)) == 0)):
            b.store(total, self._mine, position // piece * 4)
        return []

    def finish(self, carry: Sequence[Value], active: Value) -> None:
        b = self.b
        pieces = -(-self.positions // _piece(self.grouped))
        per_group = self.grouped.padded_group // _piece(self.grouped)
        thread, threads = self.place.warp * WARP + self.place.lane, WARP * self.threads.warps
        b.barrier()
        with b.when(active), b.loop(thread, self.grouped.groups, threads) as groups:
            begin = groups.i * per_group
            end = b.min(begin + per_group, pieces)
            with b.loop(begin, end, carry=[b.const(0, "i32")]) as loop:
                loop.carry(loop.args[0] + b.load(self._mine, "i32", loop.i * 4))
            b.store(loop.results[0], self.target, groups.i * 4)


def _piece(grouped: GroupedK) -> int:
    return math.gcd(grouped.padded_group, CHUNK)
