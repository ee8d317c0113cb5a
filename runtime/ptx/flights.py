"""Registers of `wgmma.mma_async` while it may still read and write them.

PTX ISA: registers of accumulators and of fragments of A must not be touched before a
`wgmma.wait_group` covers the group that the instruction is committed to; and where a thread touched
them, `wgmma.fence` must stand before the next instruction that uses them, except that instructions
of one shape may follow each other on the same accumulators. All of these are instructions of whole
warpgroups, so there is one state for each warpgroup. The values are computed at once: only the
states tell early accesses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from .errors import LaneFault
from .lanes import Lanes
from .warpgroup import THREADS

_FENCED = -1
_NONE = np.array([], np.intp)


class RegisterFlights:
    """`names` has the registers of the kernel's wgmma instructions, by number."""

    def __init__(self, names: Mapping[int, str], groups: int) -> None:
        self.rows = {number: row for row, number in enumerate(names)}
        self.names = list(names.values())
        self.groups = groups
        self.reset()

    def reset(self) -> None:
        """As at the beginning of a kernel: nothing is in flight, nothing was fenced."""
        shape = (len(self.names), self.groups)
        self.flight = np.zeros(shape, np.int64)  # the group that must be complete
        self.issued = np.zeros(shape, np.int64)  # the line of the wgmma
        self.touched = np.zeros(shape, np.int64)  # the line of the last access, or _FENCED
        self.shape = np.zeros(shape, np.int64)  # of the last wgmma since then that accumulated
        self.committed = np.zeros(self.groups, np.int64)
        self.completed = np.zeros(self.groups, np.int64)
        self.anything = False

    def rows_of(self, numbers: Collection[int]) -> np.ndarray:
        """Which of some registers are watched."""
        if not self.rows:
            return _NONE
        return np.array([self.rows[k] for k in sorted(numbers) if k in self.rows], np.intp)

    def access(self, rows: np.ndarray, lanes: Lanes | None, line: int) -> None:
        """Another instruction touches registers; LaneFault where they are in flight."""
        groups = self._groups(lanes)
        if self.anything:
            self._check_landed(rows, groups, "is touched")
        self.touched[rows[:, None], groups] = line

    def issue(
        self,
        accumulators: np.ndarray,
        fragments: np.ndarray,
        shape: int,
        lanes: Lanes | None,
        line: int,
    ) -> None:
        """A wgmma starts; LaneFault where its registers are not ready for it."""
        groups = self._groups(lanes)
        self._check_fenced(np.concatenate([accumulators, fragments]), groups)
        self._check_landed(fragments, groups, "is read as a fragment of A", only_accumulators=True)
        own = accumulators[:, None]
        flying = self.flight[own, groups] > self.completed[groups]
        other = (self.shape[own, groups] != 0) & (self.shape[own, groups] != shape)
        unlike = flying & (other | (self.shape[own, groups] == 0))
        if unlike.any():
            row, k = np.argwhere(unlike)[0]
            raise LaneFault(
                f"register {self.names[accumulators[row]]} accumulates while another wgmma (PTX "
                f"line {self.issued[accumulators[row], groups[k]]}) of another shape or role is in "
                "flight on it",
                int(groups[k]) * THREADS,
            )
        self._enter(accumulators, groups, line)
        self._enter(fragments, groups, line)
        self.shape[own, groups] = shape
        self.anything = True

    def fence(self, lanes: Lanes | None) -> None:
        groups = self._groups(lanes)
        self.touched[:, groups] = _FENCED

    def commit(self, lanes: Lanes | None) -> None:
        self.committed[self._groups(lanes)] += 1

    def wait(self, lanes: Lanes | None, pending: int) -> np.ndarray:
        """All but the last `pending` groups are complete; how many, for every warpgroup."""
        groups = self._groups(lanes)
        self.completed[groups] = np.maximum(
            self.completed[groups], self.committed[groups] - pending
        )
        landed = self.flight <= self.completed
        self.shape[landed] = 0
        self.anything = not landed.all()
        return self.completed

    def unfinished(self) -> tuple[int, int] | None:
        """A lane whose warpgroup has a wgmma in flight, and its line."""
        flying = np.argwhere(self.flight > self.completed)
        if not len(flying):
            return None
        row, group = flying[0]
        return int(group) * THREADS, int(self.issued[row, group])

    # -- parts

    def _groups(self, lanes: Lanes | None) -> np.ndarray:
        if lanes is None:
            return np.arange(self.groups)
        present = np.zeros(self.groups, np.bool_)
        present[lanes.indices // THREADS] = True
        return np.flatnonzero(present)

    def _enter(self, rows: np.ndarray, groups: np.ndarray, line: int) -> None:
        self.flight[rows[:, None], groups] = self.committed[groups] + 1
        self.issued[rows[:, None], groups] = line

    def _check_landed(
        self, rows: np.ndarray, groups: np.ndarray, what: str, only_accumulators: bool = False
    ) -> None:
        flying = self.flight[rows[:, None], groups] > self.completed[groups]
        if only_accumulators:
            flying &= self.shape[rows[:, None], groups] != 0
        if flying.any():
            row, k = np.argwhere(flying)[0]
            raise LaneFault(
                f"register {self.names[rows[row]]} {what} while the wgmma of PTX line "
                f"{self.issued[rows[row], groups[k]]} is in flight (wgmma.wait_group is missing)",
                int(groups[k]) * THREADS,
            )

    def _check_fenced(self, rows: np.ndarray, groups: np.ndarray) -> None:
        missing = self.touched[rows[:, None], groups] != _FENCED
        if missing.any():
            row, k = np.argwhere(missing)[0]
            line = self.touched[rows[row], groups[k]]
            since = f"it was touched at PTX line {line}" if line else "the kernel began"
            raise LaneFault(
                f"wgmma.fence is missing: register {self.names[rows[row]]} is used by this wgmma, "
                f"{since}, and no fence has come since",
                int(groups[k]) * THREADS,
            )
