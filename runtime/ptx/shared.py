"""Shared memory of the blocks of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .clocks import ClockRaces
from .lanes import Lanes
from .memory import WRITTEN_8, WindowMemory
from .races import RaceDetector
from .warpgroup import CHUNK
from .warpgroup import THREADS as WARPGROUP

if TYPE_CHECKING:
    from .batch import Batch

# At so many barriers of a kernel it is worth a look whether all shared memory is written.
_LOOKS = 8


@dataclass(frozen=True)
class _Copy:
    """An asynchronous copy: what each of `lanes` copies, and the number of the group it joins."""

    granules: np.ndarray
    lanes: np.ndarray
    group: np.ndarray
    line: int


class SharedMemory(WindowMemory):
    """One window for each block; watches for races, if asked."""

    name = "shared"

    def __init__(
        self, nbytes: int, batch: Batch, check_unwritten: bool, granule: int | None
    ) -> None:
        super().__init__(nbytes, batch.block_of_lane, batch.blocks, check_unwritten)
        self.batch = batch
        self.granule = granule
        self.races: RaceDetector | None = None
        self.groups = np.zeros(batch.lanes, np.int64)
        self.unfinished: list[_Copy] = []
        self.restart()

    def restart(self) -> None:
        """As at the beginning of a kernel."""
        self.reset()
        self.looks = 0
        self.groups[...] = 0
        self.unfinished = []
        program = self.batch.launch.program
        if self.granule is not None and (self.bytes or program.hands_over):
            batch = self.batch
            by_clocks = program.is_asynchronous or program.hands_over
            kind = ClockRaces if by_clocks else RaceDetector
            self.races = kind(self.size, self.granule, batch.thread_of_lane, batch.padded)

    def reading(self, units: np.ndarray, size: int, lanes: Lanes | None) -> None:
        if self.races is not None:
            self.races.read(units, size, lanes, self.batch.line)

    def writing(
        self, units: np.ndarray, size: int, values: np.ndarray, lanes: Lanes | None
    ) -> None:
        if self.races is not None:
            self.races.write(units, size, values, lanes, self.batch.line)

    def synchronized(self, blocks: np.ndarray | None) -> None:
        """A barrier opened in the blocks of a mask (None: in all)."""
        if blocks is None and self.looks < _LOOKS:
            self.looks += 1
            self.look_whether_complete()
        if self.races is not None:
            self.races.barrier(blocks)

    def arriving(self, numbers: np.ndarray, lanes: np.ndarray) -> None:
        """Lanes come to barriers of their block."""
        if self.races is not None:
            self.races.arrive(numbers, lanes)

    def opened(self, numbers: np.ndarray, lanes: np.ndarray) -> None:
        """Lanes go on from barriers."""
        if self.races is not None:
            self.races.opened(numbers, lanes)

    def warps_synchronized(self, lanes: Lanes | None) -> None:
        """The warps of these lanes passed a `bar.warp.sync`."""
        if self.races is not None:
            self.races.warp_barrier(lanes)

    def atomic(self, units: np.ndarray, size: int, lanes: Lanes | None) -> None:
        if self.races is not None:
            self.races.atomic(units, size, lanes, self.batch.line)

    # -- the asynchronous proxy

    @property
    def clocks(self) -> ClockRaces | None:
        return self.races if isinstance(self.races, ClockRaces) else None

    def async_load(
        self,
        addresses: np.ndarray,
        lanes: Lanes,
        columns: np.ndarray,
        clocks: np.ndarray,
        by_warpgroups: bool = False,
    ) -> np.ndarray:
        """16-byte chunks that are read for these lanes, or for their warpgroups, until the columns'
        clocks come."""
        units = self.offsets(addresses, CHUNK, lanes) // CHUNK
        states = self.states[CHUNK].take(units, axis=0)
        if not self._all(states, CHUNK, WRITTEN_8):
            self._fault(addresses, states, CHUNK, lanes, "read")
        if self.clocks is not None:
            granules = self.clocks.granules(units, CHUNK)
            line = self.batch.line
            self.clocks.async_read(granules, lanes.indices, columns, clocks, line, by_warpgroups)
        return self.rows[CHUNK].take(units, axis=0)

    def async_store(
        self, addresses: np.ndarray, rows: np.ndarray, lanes: Lanes, column: int, clock: int
    ) -> None:
        """16-byte chunks that are there once the column's clock has come."""
        units = self.offsets(addresses, CHUNK, lanes) // CHUNK
        self.mark(addresses, units, CHUNK, lanes)
        if self.clocks is not None:
            granules = self.clocks.granules(units, CHUNK)
            self.clocks.async_write(granules, lanes.indices, column, clock, self.batch.line)
        self.rows[CHUNK][units] = rows

    def load_for_warpgroups(self, addresses: np.ndarray, first: np.ndarray) -> np.ndarray:
        """16-byte chunks that wgmma reads, for each warpgroup (its first lane) as many."""
        lanes = Lanes(np.repeat(first, addresses.shape[1]), self.batch.lanes)
        groups = lanes.indices // WARPGROUP
        columns = clocks = groups
        if self.clocks is not None:
            columns = self._warpgroup_columns()[groups % (self.batch.padded // WARPGROUP)]
            clocks = self.batch.flights.committed[groups] + 1
        return self.async_load(addresses.reshape(-1), lanes, columns, clocks, by_warpgroups=True)

    def warpgroups_waited(self, lanes: Lanes | None, completed: np.ndarray) -> None:
        """So many groups of wgmma of each warpgroup are complete, and these lanes know it."""
        if self.clocks is None:
            return
        indices = np.arange(self.batch.lanes) if lanes is None else lanes.indices
        groups = indices // WARPGROUP
        columns = self._warpgroup_columns()[groups % (self.batch.padded // WARPGROUP)]
        self.clocks.reach(indices, columns, completed[groups])

    def proxy_fence(self, lanes: Lanes | None, only_inits: bool = False) -> None:
        if self.clocks is not None:
            self.clocks.proxy_fence(lanes, only_inits)

    def _warpgroup_columns(self) -> np.ndarray:
        """The columns of a block's warpgroups."""
        assert self.clocks is not None
        kind = "wgmma reads it, with no wgmma.wait_group yet that covers the one of"
        return np.array(
            [
                self.clocks.column(("wgmma", group), kind)
                for group in range(self.batch.padded // WARPGROUP)
            ]
        )

    # -- asynchronous copies

    def copy_async(
        self, addresses: np.ndarray, size: int, rows: np.ndarray, lanes: Lanes | None
    ) -> None:
        """Writes rows that nobody may touch before the copy is waited for."""
        units = self.offsets(addresses, size, lanes) >> (size.bit_length() - 1)
        self.mark(addresses, units, size, lanes)
        self.rows[size][units] = rows
        if self.races is None:
            return
        line = self.batch.line
        granules = self.races.issue_copy(units, size, lanes, line)
        indices = np.arange(self.batch.lanes) if lanes is None else lanes.indices
        self.unfinished.append(_Copy(granules, indices, self.groups[indices], line))

    def commit_copies(self, lanes: Lanes | None) -> None:
        """The copies that these lanes issued since the last time become a group."""
        self.groups[slice(None) if lanes is None else lanes.indices] += 1

    def wait_for_copies(self, lanes: Lanes | None, pending: int) -> None:
        """All groups of these lanes but the last `pending` are complete."""
        if self.races is None:
            return
        limit = np.full(len(self.groups), -1)
        indices = slice(None) if lanes is None else lanes.indices
        limit[indices] = self.groups[indices] - pending
        left = []
        for copy in self.unfinished:
            done = copy.group < limit[copy.lanes]
            if done.any():
                self.races.complete_copy(copy.granules[done], copy.lanes[done], copy.line)
            if not done.all():
                rest = ~done
                left.append(
                    _Copy(copy.granules[rest], copy.lanes[rest], copy.group[rest], copy.line)
                )
        self.unfinished = left
        self.races.in_flight = len(left)
