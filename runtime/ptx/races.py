"""Races in shared memory.

Two accesses of the same byte by different threads of a block, one of them a write, race unless
something orders them:

- a barrier of the block (bar.sync, barrier.sync, bar.red; one for some of the threads counts for
  all, so that races across it may be missed but none is made up);
- `bar.warp.sync`, if both threads belong to the warp;
- atomics do not race with each other;
- lanes that write the same value in the same instruction do not race.

A copy by `cp.async` is in flight from its issue to the `cp.async.wait_group` of the thread that
issued it: whoever touches its bytes meanwhile races with it. From then on it is a write of that
thread.

For each granule (the size of the kernel's smallest access to shared memory) there are *tags* of its
last writer and of two readers. A tag has, from the top: in flight (1 bit), the block's count of
barriers (20), the warp's count of synchronizations (16), the thread (10), atomic (1), the line
(15).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import LaneFault
from .lanes import WARP, Lanes, lane_number, take

_EPOCH, _TIME, THREAD = 42, 26, 16
IN_FLIGHT = 1 << 62
ATOMIC = 1 << 15
LINES = (1 << 15) - 1
# Reads are noted when a write follows in the same epoch; so many may wait for that.
_MOST_PENDING = 1 << 22


@dataclass(frozen=True)
class _Reads:
    """Reads that are not noted yet: granules [n, k], and the tags of the lanes, [n, 1]."""

    granules: np.ndarray
    now: np.ndarray
    lanes: Lanes | None
    line: int

    @property
    def tags(self) -> np.ndarray:
        return (take(self.now, self.lanes) | self.line)[:, None]


class RaceDetector:
    """Follows the accesses of one batch. All granules are numbered through, block after block."""

    thread_mask = 0x3FF

    def __init__(self, nbytes: int, granule: int, thread_of_lane: np.ndarray, padded: int) -> None:
        self.granule = granule
        self.count = nbytes // granule
        self.threads = thread_of_lane.astype(np.int64) << THREAD
        self.padded = padded
        self.writer = np.zeros(self.count, np.int64)
        self.reader = np.zeros(self.count, np.int64)
        self.other_reader = np.zeros(self.count, np.int64)
        self.epoch = np.ones(len(self.threads), np.int64)
        self.time = np.zeros(len(self.threads), np.int64)
        self.now = self.threads
        self.floor = self.threads
        self.pending: list[_Reads] = []
        self.pending_size = 0
        self.written = False  # something that later reads of this epoch must be compared with
        self.in_flight = 0
        self._tick()

    def _tick(self) -> None:
        """New arrays, because reads that are not noted yet hold the old ones."""
        self.floor = self.epoch << _EPOCH
        self.now = self.floor | self.time << _TIME | self.threads

    # -- what orders accesses

    def barrier(self, blocks: np.ndarray | None) -> None:
        """A barrier opened in the blocks of a mask (None: in all)."""
        if blocks is None:
            self.epoch += 1
            self.pending.clear()
            self.pending_size = 0
            self.written = self.in_flight > 0
        else:
            self.epoch += np.repeat(blocks, self.padded)
        self._tick()

    def arrive(self, numbers: np.ndarray, indices: np.ndarray) -> None:
        """Lanes come to the barriers of these numbers: their blocks' epochs say enough."""

    def opened(self, numbers: np.ndarray, indices: np.ndarray) -> None:
        """Lanes go on from the barriers of these numbers."""

    def warp_barrier(self, lanes: Lanes | None) -> None:
        self.time = self.time.copy()
        if lanes is None:
            self.time += 1
        else:
            self.time[lanes.indices] += 1
        self._tick()

    # -- accesses

    def read(self, units: np.ndarray, size: int, lanes: Lanes | None, line: int) -> None:
        granules = self.granules(units, size)
        reads = _Reads(granules, self.now, lanes, min(line, LINES))
        if self.written:
            self._check(self.writer, granules, reads.tags, lanes, "reads what", "wrote")
        self.pending.append(reads)
        self.pending_size += granules.size
        if self.pending_size > _MOST_PENDING:
            self._note_reads()

    def write(
        self,
        units: np.ndarray,
        size: int,
        values: np.ndarray | None,
        lanes: Lanes | None,
        line: int,
        flags: int = 0,
    ) -> None:
        """`values` are None for copies in flight and atomics, of which `flags` tell."""
        self._note_reads()
        granules = self.granules(units, size)
        tags = (take(self.now, lanes) | min(line, LINES) | (flags & ATOMIC))[:, None]
        self._check(self.writer, granules, tags, lanes, "writes what", "wrote")
        self._check(self.reader, granules, tags, lanes, "writes what", "read")
        self._check(self.other_reader, granules, tags, lanes, "writes what", "read")
        tags = np.broadcast_to(tags | (flags & IN_FLIGHT), granules.shape)
        self.writer[granules] = tags
        self.written = True
        if not flags & ATOMIC and (self.writer[granules] != tags).any():
            self._check_same_values(units, values, lanes)

    def issue_copy(
        self, units: np.ndarray, size: int, lanes: Lanes | None, line: int
    ) -> np.ndarray:
        """A copy starts; returns its granules for `complete_copy`."""
        self.write(units, size, None, lanes, line, IN_FLIGHT)
        self.in_flight += 1
        return self.granules(units, size)

    def complete_copy(self, granules: np.ndarray, lanes: np.ndarray, line: int) -> None:
        """The copies of these lanes arrived: plain writes from now on."""
        self.writer[granules] = (self.now[lanes] | min(line, LINES))[:, None]

    def atomic(self, units: np.ndarray, size: int, lanes: Lanes | None, line: int) -> None:
        self.write(units, size, None, lanes, line, ATOMIC)

    def granules(self, units: np.ndarray, size: int) -> np.ndarray:
        """[n, k] of accesses of `size` bytes, given as numbers of rows of that size."""
        per_access = size // self.granule
        if per_access == 1:
            return units[:, None]
        return units[:, None] * per_access + np.arange(per_access)

    # -- checks

    def _note_reads(self) -> None:
        for reads in self.pending:
            self._enter_reads(reads.granules, np.broadcast_to(reads.tags, reads.granules.shape))
        self.pending.clear()
        self.pending_size = 0

    def _enter_reads(self, granules: np.ndarray, tags: np.ndarray) -> None:
        before = self.reader[granules]
        another = (before ^ tags) >> THREAD & self.thread_mask != 0
        self.other_reader[granules[another]] = before[another]
        self.reader[granules] = tags
        lost = self.reader[granules] != tags
        self.other_reader[granules[lost]] = tags[lost]

    def _check(
        self,
        owners: np.ndarray,
        granules: np.ndarray,
        own: np.ndarray,
        lanes: Lanes | None,
        does: str,
        did: str,
    ) -> None:
        """LaneFault where a granule's tag belongs to another thread, and nothing orders the two."""
        tags = owners[granules]
        recent = tags >= take(self.floor, lanes)[:, None]
        if not recent.any():
            return
        same_epoch = tags >> _EPOCH == own >> _EPOCH
        another = (tags ^ own) >> THREAD & 0x3FF != 0
        same_warp = (tags ^ own) >> THREAD & 0x3E0 == 0
        earlier = tags >> _TIME & 0xFFFF < own >> _TIME & 0xFFFF
        unordered = same_epoch & another & ~(same_warp & earlier)
        both_atomic = tags & own & ATOMIC != 0
        conflict = (unordered & ~both_atomic) | (tags >= IN_FLIGHT)
        if conflict.any():
            row, column = np.argwhere(conflict)[0]
            self._report(int(tags[row, column]), granules[row, column], lanes, int(row), does, did)

    def _report(
        self, tag: int, granule: int, lanes: Lanes | None, row: int, does: str, did: str
    ) -> None:
        lane = lane_number(lanes, row)
        address = self._address(granule)
        thread, line = tag >> THREAD & self.thread_mask, tag & LINES
        if tag >= IN_FLIGHT:
            did = "is still copying there (cp.async without wait_group)"
        raise LaneFault(
            f"race in shared memory: this thread {does} thread {thread} {did} at PTX line {line}, "
            f"with no barrier between them: address {address:#x}",
            lane,
        )

    def _address(self, granule: int) -> int:
        """In its block's window."""
        stride = self.count * self.granule // (len(self.threads) // self.padded)
        return int(granule) * self.granule % stride

    def _check_same_values(
        self, units: np.ndarray, values: np.ndarray | None, lanes: Lanes | None
    ) -> None:
        """Several lanes wrote the same place in one instruction: what, must not depend on luck."""
        _, place = np.unique(units, return_inverse=True)
        winner = np.empty(len(units), np.int64)
        winner[place] = np.arange(len(units))
        winner = winner[place]
        if values is None:
            differs = winner != np.arange(len(units))
        else:
            differs = (values != values[winner]).reshape(len(units), -1).any(axis=1)
        if differs.any():
            first = int(np.flatnonzero(differs)[0])
            other = lane_number(lanes, int(winner[first])) % self.padded
            raise LaneFault(
                "race in shared memory: this thread and thread "
                f"{other} (warp {other // WARP}) write different values in the same instruction",
                lane_number(lanes, first),
            )
