"""The warpgroup that copies: stage after stage, as they become empty.

Weights come by bulk copies, which report to a stage's barrier themselves; rows by `cp.async`, `LAG`
stages of which are under way before the first of them is waited for.
"""

from __future__ import annotations

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from .barriers import fence_async
from .plan import PRODUCERS
from .ring import Place, Ring, StagedPlan

LAG = 2  # stages, at most


class StageProducer:
    """A copying thread's part of a block's stages; what a stage has is up to subclasses."""

    def __init__(self, ring: Ring) -> None:
        self.ring, self.b = ring, ring.b
        self.schedule = ring.plan.schedule
        self.thread = self.b.thread - self.schedule.threads + PRODUCERS

    def copy_weights(self, turn: Value, place: Place) -> None:
        """Start bulk copies of turn `turn` to a stage; a thread arrives at its barrier with their
        bytes."""
        raise NotImplementedError

    def copy_rows(self, turn: Value, place: Place) -> None:
        """Start copies by `cp.async`."""
        raise NotImplementedError

    @property
    def lag(self) -> int:
        return min(LAG, self.schedule.stages - 1)

    def run(self, begin: Value, end: Value, place: Place) -> Place:
        """Copy all stages from turn `begin` on; where the next one goes."""
        b, lag = self.b, self.lag
        # Not a constant to LLVM, which would unroll the loop: it needs its registers for addresses.
        (count,) = b.asm(f"mov.b32 $0, {lag};", "=r", ["i32"])
        ahead = b.min(begin + count, end)
        with b.loop(begin, ahead, carry=place.values) as loop:
            place = self.ring.place(loop.args)
            self._copy(loop.i, place)
            loop.carry(*self.ring.next(place).values)
        with b.loop(ahead, end, carry=loop.results) as loop:
            place = self.ring.place(loop.args)
            self._copy(loop.i, place)
            b.wait_copies(lag)
            self._complete(self._before(place, lag))
            loop.carry(*self.ring.next(place).values)
        place = self.ring.place(loop.results)
        for late in range(lag, 0, -1):
            with b.when(end - begin >= late):
                b.wait_copies(late - 1)
                self._complete(self._before(place, late))
        return place

    def _copy(self, turn: Value, place: Place) -> None:
        """Start to copy a stage, when it is empty."""
        self.ring.empty.wait(place.stage, place.phase ^ 1)
        self.copy_weights(turn, place)
        self.copy_rows(turn, place)
        self.b.commit_copies()

    def _before(self, place: Place, count: int) -> Value:
        """The number of the stage `count` before."""
        stage = place.stage - count
        return self.b.select(stage < 0, stage + self.schedule.stages, stage)

    def _complete(self, stage: Value) -> None:
        """This warp's rows of a stage are there."""
        b = self.b
        fence_async(b)
        b.warp_barrier()
        with b.when(b.lane == 0):
            self.ring.full.arrive(stage)


def is_copying(b: GpuBuilder, plan: StagedPlan) -> Value:
    """Whether the thread is of the warpgroup that copies: the last one."""
    return b.thread >= plan.schedule.threads - PRODUCERS
