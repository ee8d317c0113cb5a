"""Races in shared memory of kernels with mbarriers, bulk copies or wgmma: vector clocks.

Every thread of a block has a clock, and knows of others' clocks what has reached it: by barriers of
its block (named ones order those that come to them), `bar.warp.sync`, and mbarriers, of which an
arrival releases and a successful test acquires. An access that another thread made at a clock that
has not reached this thread races with it (C. Flanagan and S. Freund, "FastTrack", 2009).

What the asynchronous proxy does has *columns* of its own beside the threads':

- a bulk copy into shared memory is a write by its mbarrier, at the number of the phase that counts
  its bytes: who has not seen that phase complete must not touch the bytes;
- wgmma reads as its warpgroup, at the number of the group that it is committed to;
- a bulk copy out of shared memory reads as its thread's bulk group of that number.

A thread's writes reach the asynchronous proxy only if that thread executed `fence.proxy.async`
after them, and this has reached who issues the access: a second column of every thread has the
clock of its last fence. A wgmma is issued by all of its four warps.

A tag has, from the top: in flight by cp.async (1 bit), the clock (32), the column (14), atomic (1),
the line (15).
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from .errors import LaneFault
from .lanes import WARP, Lanes, lane_number, take
from .races import ATOMIC, IN_FLIGHT, LINES, THREAD, RaceDetector
from .warpgroup import THREADS as WARPGROUP

_CLOCK = 30
_COLUMNS = 0x3FFF
_NEVER = (1 << 31) - 1  # a clock that reaches nobody
_SPARE = 16  # columns that are added at once


class ClockRaces(RaceDetector):
    """`known[lane, column]`: the clock of that column that has reached the lane."""

    thread_mask = _COLUMNS

    def __init__(self, nbytes: int, granule: int, thread_of_lane: np.ndarray, padded: int) -> None:
        self.blocks = len(thread_of_lane) // padded
        self.known = np.zeros((len(thread_of_lane), 2 * padded + _SPARE), np.int32)
        self.clock = np.ones(len(thread_of_lane), np.int64)
        # By lane the clock of its last fence for mbarriers' initializations.
        self.fenced_inits = np.zeros(len(thread_of_lane), np.int64)
        self.columns: dict[Hashable, int] = {}
        self.kinds: dict[int, str] = {}
        self.rendezvous: dict[tuple[int, int], np.ndarray] = {}
        self.thread = thread_of_lane
        self.block = np.arange(len(thread_of_lane)) // padded
        super().__init__(nbytes, granule, thread_of_lane, padded)
        self.written = True
        self.known[np.arange(len(self.clock)), self.thread] = 1

    def _tick(self) -> None:
        self.now = self.clock << _CLOCK | self.threads

    def column(self, key: Hashable, kind: str) -> int:
        """The column of something that the asynchronous proxy does; `kind` says what, in faults."""
        if key not in self.columns:
            column = self.columns[key] = 2 * self.padded + len(self.columns)
            self.kinds[column] = kind
            if column >= self.known.shape[1]:
                more = np.zeros((len(self.known), len(self.columns) + _SPARE), np.int32)
                self.known = np.hstack([self.known, more])
        return self.columns[key]

    # -- what orders accesses

    def _advance(self, indices: np.ndarray | slice) -> None:
        """What these lanes do from now on is later than what they told others about."""
        self.clock[indices] += 1
        self.known[np.arange(len(self.clock))[indices], self.thread[indices]] = self.clock[indices]
        self._tick()

    def release(self, indices: np.ndarray) -> np.ndarray:
        """What lanes of one block know together, to be handed to `acquire`."""
        told = self.known[indices].max(axis=0)
        self._advance(indices)
        return told

    def acquire(self, indices: np.ndarray, told: np.ndarray) -> None:
        rows = self.known[indices]
        np.maximum(rows[:, : len(told)], told, out=rows[:, : len(told)])
        self.known[indices] = rows

    def reach(
        self, indices: np.ndarray, columns: np.ndarray | int, clocks: np.ndarray | int
    ) -> None:
        """Clocks of columns reach these lanes, one each."""
        self.known[indices, columns] = np.maximum(self.known[indices, columns], clocks)

    def barrier(self, blocks: np.ndarray | None) -> None:
        """A barrier for all threads opened in all blocks."""
        if blocks is not None:
            return
        whole = self.known.reshape(self.blocks, self.padded, -1)
        whole[...] = whole.max(axis=1, keepdims=True)
        self.pending.clear()
        self.pending_size = 0
        self._advance(slice(None))

    def arrive(self, numbers: np.ndarray, indices: np.ndarray) -> None:
        blocks = self.block[indices]
        for block, number in {*zip(blocks.tolist(), numbers.tolist(), strict=True)}:
            told = self.release(indices[(blocks == block) & (numbers == number)])
            before = self.rendezvous.get((block, number))
            self.rendezvous[block, number] = told if before is None else join(before, told)

    def opened(self, numbers: np.ndarray, indices: np.ndarray) -> None:
        blocks = self.block[indices]
        for block, number in {*zip(blocks.tolist(), numbers.tolist(), strict=True)}:
            here = indices[(blocks == block) & (numbers == number)]
            self.acquire(here, self.rendezvous[block, number])

    def warp_barrier(self, lanes: Lanes | None) -> None:
        indices = np.arange(len(self.clock)) if lanes is None else lanes.indices
        warps = indices // 32
        starts = np.flatnonzero(np.diff(warps, prepend=-1))
        told = np.maximum.reduceat(self.known[indices], starts, axis=0)
        self.known[indices] = np.repeat(told, np.diff(np.append(starts, len(indices))), axis=0)
        self._advance(indices)

    def proxy_fence(self, lanes: Lanes | None, only_inits: bool = False) -> None:
        """`fence.proxy.async`: what these lanes wrote is visible to the asynchronous proxy, once
        it is ordered before it. `only_inits`: the mbarriers that they initialized are."""
        indices = np.arange(len(self.clock)) if lanes is None else lanes.indices
        self.fenced_inits[indices] = self.clock[indices]
        if not only_inits:
            self.known[indices, self.padded + self.thread[indices]] = self.clock[indices]
        self._advance(indices)

    # -- the asynchronous proxy

    def async_read(
        self,
        granules: np.ndarray,
        lanes: np.ndarray,
        columns: np.ndarray,
        clocks: np.ndarray,
        line: int,
        by_warpgroups: bool,
    ) -> None:
        """Reads of granules [n, k]: each row by a lane, done when its column's clock comes.
        `by_warpgroups`: the lane stands for its warpgroup."""
        self._note_reads()
        own = self.now[lanes][:, None]
        some = Lanes(lanes, len(self.clock))
        known = self._known_to_warpgroups() if by_warpgroups else self.known
        rows = lanes // WARPGROUP if by_warpgroups else lanes
        does = "lets the hardware read what"
        self._check(self.writer, granules, own, some, does, "wrote", known, rows)
        self._check_fenced(granules, lanes, known, rows)
        tags = (clocks << _CLOCK | columns << THREAD | min(line, LINES))[:, None]
        self._enter_reads(granules, np.broadcast_to(tags, granules.shape))

    def async_write(
        self, granules: np.ndarray, lanes: np.ndarray, column: int, clock: int, line: int
    ) -> None:
        """Writes of granules [n, k] by copies of these lanes, visible with a column's clock."""
        self._note_reads()
        own = self.now[lanes][:, None]
        some = Lanes(lanes, len(self.clock))
        for owners, did in (
            (self.writer, "wrote"),
            (self.reader, "read"),
            (self.other_reader, "read"),
        ):
            self._check(owners, granules, own, some, "copies over what", did)
        self._check_fenced(granules, lanes, self.known, lanes)
        self.writer[granules] = clock << _CLOCK | column << THREAD | min(line, LINES)

    def claim(self, units: np.ndarray, size: int, lanes: Lanes | None, line: int) -> None:
        """Bytes become part of an mbarrier: nobody may touch them any other way."""
        self.write(units, size, None, lanes, line)
        column = self.column("mbarrier objects", "an mbarrier lies there since")
        tag = _NEVER << _CLOCK | column << THREAD | min(line, LINES)
        self.writer[self.granules(units, size)] = tag

    def disclaim(self, units: np.ndarray, size: int, lanes: Lanes | None, line: int) -> None:
        """They are memory like any other again."""
        tags = take(self.now, lanes) | min(line, LINES)
        self.writer[self.granules(units, size)] = tags[:, None]

    def _known_to_warpgroups(self) -> np.ndarray:
        """What the first lanes of all four warps know."""
        return self.known[::WARP].reshape(-1, WARPGROUP // WARP, self.known.shape[1]).min(axis=1)

    def _check_fenced(
        self, granules: np.ndarray, lanes: np.ndarray, known: np.ndarray, rows: np.ndarray
    ) -> None:
        tags = self.writer[granules]
        column = tags >> THREAD & _COLUMNS
        is_thread = (column < self.padded) & (tags != 0)
        if not is_thread.any():
            return
        places = rows[:, None] * known.shape[1] + self.padded + np.where(is_thread, column, 0)
        missing = is_thread & (tags >> _CLOCK > known.reshape(-1)[places])
        if missing.any():
            row, place = np.argwhere(missing)[0]
            tag = int(tags[row, place])
            raise LaneFault(
                f"thread {tag >> THREAD & _COLUMNS} wrote shared memory at PTX line {tag & LINES} "
                "and executed no fence.proxy.async that is ordered before this: address "
                f"{self._address(granules[row, place]):#x}",
                int(lanes[row]),
            )

    # -- checks

    def _check(
        self,
        owners: np.ndarray,
        granules: np.ndarray,
        own: np.ndarray,
        lanes: Lanes | None,
        does: str,
        did: str,
        known: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        """`known`: what is known instead of what each lane knows, in these `rows`."""
        tags = owners[granules]
        if not tags.any():
            return
        if known is None or rows is None:
            known = self.known
            rows = np.arange(len(self.clock)) if lanes is None else lanes.indices
        places = rows[:, None] * known.shape[1] + (tags >> THREAD & _COLUMNS)
        unordered = (tags & ~IN_FLIGHT) >> _CLOCK > known.reshape(-1)[places]
        both_atomic = tags & own & ATOMIC != 0
        conflict = (unordered & ~both_atomic) | (tags >= IN_FLIGHT)
        if conflict.any():
            row, column = np.argwhere(conflict)[0]
            self._report(int(tags[row, column]), granules[row, column], lanes, int(row), does, did)

    def _report(
        self, tag: int, granule: int, lanes: Lanes | None, row: int, does: str, did: str
    ) -> None:
        column = tag >> THREAD & _COLUMNS
        if column < self.padded or tag >= IN_FLIGHT:
            super()._report(tag, granule, lanes, row, does, did)
        raise LaneFault(
            f"race in shared memory: this thread {does.removesuffix(' what')} shared memory while "
            f"{self.kinds[column]} PTX line {tag & LINES}: address {self._address(granule):#x}",
            lane_number(lanes, row),
        )


def join(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The larger of each; a column that one does not know yet is 0 there."""
    short, long = (a, b) if len(a) < len(b) else (b, a)
    joined = long.copy()
    np.maximum(joined[: len(short)], short, out=joined[: len(short)])
    return joined
