"""Launches that may begin before those they depend on have ended (`griddepcontrol`).

A dependent launch may run while its *prerequisites* do. Only once `griddepcontrol.wait` is behind a
thread are these complete, with all that they wrote. Before that, a thread must not read what they
write, and must not write global memory at all, which they may still read.

The machine runs one launch after the other; a `LaunchRecord` keeps what another would need to know:
which launches may still be running when a dependent of this one begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .errors import LaneFault
from .lanes import Lanes, lane_number, take

Running = Mapping[int, str]  # numbers of launches, and the names of their kernels


@dataclass(frozen=True)
class LaunchRecord:
    """A launch that was executed. `early`: launches that may still run when a dependent begins;
    `unwaited`: those that may even when this one has ended, because nobody waited for them."""

    number: int
    name: str
    early: Running = field(default_factory=dict)
    unwaited: Running = field(default_factory=dict)


class Dependence:
    """What one launch must not touch yet. `after`: prerequisites that it may overlap with;
    `complete`: those that have ended when it begins."""

    def __init__(
        self,
        number: int,
        name: str,
        after: Iterable[LaunchRecord],
        complete: Iterable[LaunchRecord],
    ) -> None:
        self.number = number
        self.name = name
        self.before_wait: dict[int, str] = {}
        self.after_wait: dict[int, str] = {}
        for record in after:
            self.before_wait |= {record.number: record.name, **record.early}
            self.after_wait |= record.unwaited
        for record in complete:
            self.after_wait |= record.unwaited
        self.before_wait |= self.after_wait
        for record in complete:
            self.after_wait.pop(record.number, None)
            self.before_wait.pop(record.number, None)
        self.waited = np.zeros(0, np.bool_)
        self.anybody_waited = False
        self.triggered_early = False

    def start(self, lanes: int) -> None:
        """A batch of so many lanes begins."""
        self.waited = np.zeros(lanes, np.bool_)

    def wait(self, lanes: Lanes | None) -> None:
        self.waited[slice(None) if lanes is None else lanes.indices] = True
        self.anybody_waited = True

    def trigger(self, lanes: Lanes | None) -> None:
        """`griddepcontrol.launch_dependents`."""
        self.triggered_early |= not take(self.waited, lanes).all()

    def record(self) -> LaunchRecord:
        """After the last batch."""
        waited = self.anybody_waited
        early = self.after_wait if waited and not self.triggered_early else self.before_wait
        unwaited = self.after_wait if waited else self.before_wait
        return LaunchRecord(self.number, self.name, early, unwaited)

    # -- accesses of global memory

    def reading(self, writers: np.ndarray, lanes: Lanes | None) -> None:
        """`writers`: numbers of the launches that last wrote what is read, [accesses, words]."""
        if not self.before_wait:
            return
        waited = take(self.waited, lanes)
        if not waited.all():
            self._check(writers, ~waited, self.before_wait, lanes, "griddepcontrol.wait is missing")
        if self.after_wait:
            what = "which it does not wait for: that launch ended without griddepcontrol.wait"
            self._check(writers, waited, self.after_wait, lanes, what)

    def writing(self, lanes: Lanes | None) -> None:
        if not self.before_wait:
            return
        early = np.flatnonzero(~take(self.waited, lanes))
        if len(early):
            raise LaneFault(
                f"global memory is written while {self._names(self.before_wait)} may still run: "
                "griddepcontrol.wait is missing",
                lane_number(lanes, int(early[0])),
            )

    def _check(
        self,
        writers: np.ndarray,
        chosen: np.ndarray,
        running: Running,
        lanes: Lanes | None,
        why: str,
    ) -> None:
        bad = np.isin(writers, list(running)).any(axis=1) & chosen
        if bad.any():
            position = int(np.flatnonzero(bad)[0])
            number = next(int(n) for n in writers[position] if int(n) in running)
            raise LaneFault(
                f"global memory is read that {running[number]} writes, a launch that may still "
                f"run: {why}",
                lane_number(lanes, position),
            )

    @staticmethod
    def _names(running: Running) -> str:
        return ", ".join(sorted(set(running.values())))
