"""The warpgroup that copies: stage after stage, as they become empty, tile after tile.

Weights come by bulk copies, which report to a stage's barrier themselves; rows by boxes, which do
so too (boxes.py), or by `cp.async`, `LAG` stages of which are under way before the first of them is
waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..arch import WARP
from ..builder import GpuBuilder
from ..matmul.schedule import Schedule
from .barriers import fence_async
from .plan import PRODUCERS
from .ring import Place, Ring, StagedPlan

LAG = 2  # stages, at most


@dataclass(frozen=True)
class CopyState:
    """Where the next stage goes, and how many were started."""

    place: Place
    started: Value

    @staticmethod
    def of(ring: Ring, values: Sequence[Value]) -> CopyState:
        *place, started = values
        return CopyState(ring.place(place), started)

    @property
    def values(self) -> list[Value]:
        return [*self.place.values, self.started]


class StageProducer:
    """A copying thread's part of a tile's stages; what a stage has is up to subclasses."""

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

    def copy_run(
        self,
        turn: Value,
        place: Place,
        target: Value,
        source: Value,
        size: int,
        total: int,
        turns: int,
    ) -> None:
        """Start a bulk copy of turn `turn`'s `size` bytes of a run: `total` bytes from pointer
        `source` on, for `turns` turns. What the last one lacks is the run's beginning: some other
        weights, whose rows are zeros."""
        b, full = self.b, self.ring.full
        at, rest = b.at(source, turn * size), total % size
        if not rest:
            full.copy(place.stage, target, at, size)
            return
        last = turn == turns - 1
        full.copy(place.stage, target, at, b.select(last, b.const(rest, "i32"), size))
        with b.when(last):
            full.copy(place.stage, target + rest, source, size - rest)

    def run(self, begin: Value, end: Value, state: CopyState) -> CopyState:
        """Copy the stages of turns `begin` to `end`, after those of the tile before."""
        b, lag = self.b, lag_of(self.schedule)
        with b.loop(begin, end, carry=state.values) as loop:
            state = CopyState.of(self.ring, loop.args)
            place = state.place
            self._copy(loop.i, place)
            b.wait_copies(lag)
            with b.when(state.started >= lag):
                _complete(self.ring, place, lag)
            loop.carry(*CopyState(self.ring.next(place), state.started + 1).values)
        return CopyState.of(self.ring, loop.results)

    def _copy(self, turn: Value, place: Place) -> None:
        """Start to copy a stage, when it is empty."""
        self.ring.empty.wait(place.stage, place.phase ^ 1)
        self.copy_weights(turn, place)
        self.copy_rows(turn, place)
        self.b.commit_copies()


def first_state(ring: Ring) -> CopyState:
    """Before any stage."""
    return CopyState(ring.first(), ring.b.const(0, "i32"))


def complete_all(ring: Ring, state: CopyState) -> None:
    """Wait for the stages under way."""
    lag = lag_of(ring.plan.schedule)
    for late in range(lag, 0, -1):
        with ring.b.when(state.started >= late):
            ring.b.wait_copies(late - 1)
            _complete(ring, state.place, late)


def lag_of(schedule: Schedule) -> int:
    """Stages whose rows are under way by `cp.async`."""
    return 0 if schedule.boxes else min(LAG, schedule.stages - 1)


def _complete(ring: Ring, place: Place, before: int) -> None:
    """This warp's rows of the stage that was `before` so many are there."""
    b = ring.b
    stage = place.stage - before
    stage = b.select(stage < 0, stage + ring.plan.schedule.stages, stage)
    fence_async(b)
    b.warp_barrier()
    with b.when(b.lane == 0):
        ring.full.arrive(stage)


def is_copying(b: GpuBuilder, plan: StagedPlan) -> Value:
    """Whether the thread is of the warpgroup that copies: the last one."""
    return b.thread >= plan.schedule.threads - PRODUCERS


def those_that_copy(b: GpuBuilder, plan: StagedPlan) -> AbstractContextManager[None]:
    """Of that warpgroup: all, or the first warp where rows come by boxes."""
    if not plan.schedule.boxes:
        return nullcontext()
    return b.when(b.thread < plan.schedule.threads - PRODUCERS + WARP)
