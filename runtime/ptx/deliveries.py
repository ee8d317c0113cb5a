"""Bytes of bulk copies on their way into shared memory, counted to mbarriers when they arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import LaneFault

if TYPE_CHECKING:
    from .mbarriers import Key, Mbarrier, Mbarriers


@dataclass(frozen=True)
class _Delivery:
    """What a bulk copy of a lane brings, and the phase of the mbarrier that it belongs to."""

    key: Key
    nbytes: int
    phase: int
    lane: int
    line: int

    def fault(self, reason: str) -> LaneFault:
        """At the copy."""
        return LaneFault(reason, self.lane, self.line)


class Deliveries:
    """Those of a batch. They arrive as late as they may."""

    def __init__(self, mbarriers: Mbarriers) -> None:
        self.mbarriers = mbarriers
        self.underway: list[_Delivery] = []

    def target(self, key: Key, lane: int) -> Mbarrier:
        """The object that a bulk copy of a lane will count its bytes to."""
        indices = np.array([lane])
        found = self.mbarriers.at(key, indices)
        clocks = self.mbarriers.clocks
        if clocks is not None and clocks.fenced_inits[found.creator] < found.clock:
            raise LaneFault(
                f"the mbarrier's initialization (PTX line {found.line}) is not yet visible to the "
                "asynchronous proxy: fence.mbarrier_init or fence.proxy.async is missing",
                lane,
            )
        return found

    def add(self, key: Key, nbytes: int, lane: int, line: int) -> None:
        phase = self.mbarriers.objects[key].phase
        self.underway.append(_Delivery(key, nbytes, phase, lane, line))

    def arrive(self, somebody_runs: bool) -> None:
        """All bytes that are on their way; LaneFault where nobody expects them."""
        ready, self.underway = self.underway, []
        for delivery in ready:
            if not somebody_runs:
                raise delivery.fault(
                    "the kernel ends while this bulk copy into shared memory is in flight"
                )
            found = self.mbarriers.objects[delivery.key]
            if found.phase != delivery.phase:
                raise delivery.fault(
                    f"the {delivery.nbytes} bytes of this bulk copy arrive after phase "
                    f"{delivery.phase} of their mbarrier is complete: expect_tx is missing or too "
                    "small"
                )
            found.transactions -= delivery.nbytes
            if found.transactions < 0 and found.pending == 0:
                raise delivery.fault(
                    f"this bulk copy brings {-found.transactions} bytes more than its mbarrier "
                    "expects"
                )
            found.look()
            self.mbarriers.events += 1
