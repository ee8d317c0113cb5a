"""Lanes that wait until others have gone on: for mbarriers, for registers of their block, and for
what other blocks write.

They try again when nobody else can do anything. Bulk copies deliver their bytes no sooner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .control import GivingWay, MbarrierTest
from .errors import LaneFault
from .lanes import Lanes
from .program import Decoded

if TYPE_CHECKING:
    from .batch import Batch

# So often lanes that wait may try again without any progress before they are taken for stuck.
_IDLE_TURNS = 256


class Waiting:
    """`progress` counts what others did that may let a lane go on."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.reset()

    def reset(self) -> None:
        self.lanes: list[tuple[int, Lanes | None, Decoded]] = []
        self.progress = 0
        self._last_progress = -1
        self._idle_turns = 0

    def park(self, index: int, lanes: Lanes | None, step: Decoded) -> None:
        """Lanes that could not go on at a step, and the block at which they do."""
        self.lanes.append((index, lanes, step))

    def wake(self, somebody_runs: bool) -> list[tuple[int, Lanes | None]]:
        """Bulk copies arrive; who waits tries again. LaneFault where that has become hopeless."""
        self.batch.mbarriers.deliveries.arrive(somebody_runs)
        progress = self.progress + self.batch.mbarriers.events
        self._idle_turns = self._idle_turns + 1 if progress == self._last_progress else 0
        self._last_progress = progress
        if self.lanes and self._idle_turns > _IDLE_TURNS:
            raise self._stuck()
        woken = [(index, lanes) for index, lanes, _ in self.lanes]
        self.lanes = []
        return woken

    def _stuck(self) -> LaneFault:
        """Nobody can go on: the first that waits is to blame, all are named."""
        reasons = {
            step.instruction.line: f"PTX line {step.instruction.line}: {self._awaited(step, lanes)}"
            for _, lanes, step in self.lanes
        }
        _, lanes, step = self.lanes[0]
        lane = 0 if lanes is None else int(lanes.indices[0])
        reason = f"nothing can go on: {'; '.join(reasons.values())}"
        return LaneFault(reason, lane, step.instruction.line)

    def _awaited(self, step: Decoded, lanes: Lanes | None) -> str:
        if isinstance(step.operation, GivingWay):
            return "what others should have written is awaited"
        if not isinstance(step.operation, MbarrierTest):
            return "the block has no registers left"
        address = int(step.operation.place(self.batch)(lanes)[0])
        lane = 0 if lanes is None else int(lanes.indices[0])
        state = self.batch.mbarriers.describe(address, lane)
        return f"the mbarrier at shared address {address:#x} {state}"
