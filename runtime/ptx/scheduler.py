"""Runs a batch: groups of lanes, each at the beginning of a basic block.

The group at the earliest block runs (see order.py); groups that meet are merged. An instruction for
whole warps lets lanes wait until all lanes of their member mask stand there. If nobody can run any
more and somebody waits, that is a fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .barriers import Barriers
from .batch import Batch
from .control import (
    Barrier,
    Branch,
    Control,
    Exit,
    GivingWay,
    MbarrierTest,
    SetRegisters,
    Switch,
    Trap,
)
from .decode import Operation, Run
from .errors import LaneFault, PtxFault
from .lanes import WARP, Lanes, put, take
from .operands import Slot
from .program import Block, Decoded
from .register_pool import RegisterPool
from .waiting import Waiting
from .warpgroup import THREADS as WARPGROUP

# So often the group at the earliest block is chosen before another one gets its turn: lanes that
# spin until others have done something would keep these from doing it.
_TURNS = 4096


@dataclass
class _Bound:
    """A block whose operations are bound to the batch; `control` is None where it falls through."""

    block: Block
    steps: list[Decoded]
    runs: list[Run]
    control: Decoded | None
    rendezvous: Callable[[Lanes], Lanes | None] | None


class Scheduler:
    """Executes one batch to its end. `counters`, if any, is told of every instruction."""

    def __init__(self, batch: Batch, counters: Any = None) -> None:
        self.batch = batch
        self.counters = counters
        self.program = batch.launch.program
        self.bound: list[_Bound | None] = [None] * len(self.program.blocks)
        self.instructions = 0
        self.ready: dict[int, list[Lanes | None]] = {}
        self.parked: dict[int, Lanes] = {}
        self.barriers = Barriers(batch)
        self.alive = batch.exists
        self._controls: dict[type[Operation], Callable] = {
            Branch: self._branch,
            Switch: self._switch,
            Exit: self._exit,
            Trap: self._trap,
            Barrier: self._barrier,
            MbarrierTest: self._test_mbarrier,
            SetRegisters: self._set_registers,
            GivingWay: self._give_way,
        }
        self.waiting = Waiting(batch)
        kernel = self.program.kernel.function
        self.pool = RegisterPool(
            kernel.bounds, batch.launch.device.limits.registers_per_sm, batch.padded
        )

    def run(self) -> None:
        """From the first block to the end of all lanes; PtxFault where one does wrong."""
        batch = self.batch
        self.instructions = 0
        self.waiting.reset()
        self.barriers.reset()
        self.pool.reset(batch.blocks)
        self.alive = batch.exists.copy()
        self._go(0, None if batch.exists.all() else Lanes.where(batch.exists))
        turns = 0
        while self.ready or self._wake():
            turns += 1
            if turns % _TURNS == 0:
                self._wake()
            index = max(self.ready) if turns % _TURNS == 0 else min(self.ready)
            lanes = self._merged(self.ready.pop(index))
            self._execute(index, lanes)
        self._check_nobody_waits()

    def _go(self, index: int | None, lanes: Lanes | None) -> None:
        assert index is not None
        self.ready.setdefault(index, []).append(lanes)

    def _wake(self) -> bool:
        """Lanes that wait try again; False where there is nobody left."""
        try:
            woken = self.waiting.wake(somebody_runs=bool(self.alive.any()))
        except LaneFault as fault:
            raise self._fault_of(fault, self.program.blocks[0].steps[0]) from None
        for index, lanes in woken:
            self._go(index, lanes)
        return bool(self.ready)

    def _merged(self, groups: list[Lanes | None]) -> Lanes | None:
        if len(groups) == 1:
            return groups[0]
        mask = np.zeros(self.batch.lanes, np.bool_)
        for lanes in groups:
            assert lanes is not None
            mask[lanes.indices] = True
        return self._narrow(mask)

    def _narrow(self, mask: np.ndarray) -> Lanes | None:
        lanes = Lanes.where(mask)
        return None if lanes.count == self.batch.lanes else lanes

    # -- blocks

    def _execute(self, index: int, lanes: Lanes | None) -> None:
        bound = self.bound[index] or self._bind(index)
        if bound.rendezvous is not None and (lanes is not None or index in self.parked):
            lanes, complete = self._meet(index, bound, lanes)
            if not complete:
                return
        self.instructions += len(bound.steps)
        if self.instructions > self.batch.launch.device.instruction_limit:
            raise self._fault(
                f"{self.instructions} instructions and no end (Device(instruction_limit=...))",
                bound.steps[-1],
                lanes,
            )
        if self.counters is None:
            self._run(bound, lanes)
        else:
            self._run_counted(bound, lanes)
        if bound.control is None:
            self._go(bound.block.next, lanes)
        else:
            self._control(bound, bound.control, lanes)

    def _run(self, bound: _Bound, lanes: Lanes | None) -> None:
        run = None
        try:
            for run in bound.runs:
                run(lanes)
        except LaneFault as fault:
            assert run is not None
            raise self._fault_of(fault, bound.steps[bound.runs.index(run)]) from None

    def _run_counted(self, bound: _Bound, lanes: Lanes | None) -> None:
        for step, run in zip(bound.steps, bound.runs, strict=False):
            self._count(step, lanes, run)

    def _count(self, step: Decoded, lanes: Lanes | None, run: Run | None) -> None:
        batch = self.batch
        executing = np.arange(batch.lanes) if lanes is None else lanes.indices
        active = self._guarded_lanes(step, lanes)
        batch.accesses = []
        try:
            if run is not None:
                run(lanes)
        except LaneFault as fault:
            raise self._fault_of(fault, step) from None
        accesses, batch.accesses = batch.accesses, None
        self.counters.record(step.instruction, executing, active, accesses)

    def _guarded_lanes(self, step: Decoded, lanes: Lanes | None) -> np.ndarray:
        indices = np.arange(self.batch.lanes) if lanes is None else lanes.indices
        if step.guard is None:
            return indices
        return indices[self._guard_values(step.guard, lanes)]

    def _guard_values(self, guard: tuple[Slot, bool], lanes: Lanes | None) -> np.ndarray:
        slot, negated = guard
        values = take(self.batch.registers[slot.number], lanes)
        return ~values if negated else values

    def _bind(self, index: int) -> _Bound:
        block = self.program.blocks[index]
        last = block.steps[-1]
        control = last if isinstance(last.operation, Control) else None
        body = block.steps[:-1] if control else block.steps
        runs = [self._bind_step(step) for step in body]
        bound = _Bound(block, block.steps, runs, control, self._bind_rendezvous(block.steps[0]))
        self.bound[index] = bound
        return bound

    def _bind_step(self, step: Decoded) -> Run:
        run = self._watched(step, step.operation.bind(self.batch))
        if step.guard is None:
            return run
        guard, total = step.guard, self.batch.lanes

        def guarded(lanes: Lanes | None) -> None:
            values = self._guard_values(guard, lanes)
            count = int(np.count_nonzero(values))
            if count == len(values):
                run(lanes)
            elif count:
                chosen = np.flatnonzero(values)
                run(Lanes(chosen if lanes is None else lanes.indices[chosen], total))

        return guarded

    def _watched(self, step: Decoded, run: Run) -> Run:
        """The same, after a look whether registers that it touches are in flight."""
        operation, flights = step.operation, self.batch.flights
        rows = flights.rows_of(operation.reads | operation.writes)
        if operation.in_flight or not len(rows):
            return run
        line = step.instruction.line

        def watched(lanes: Lanes | None) -> None:
            flights.access(rows, lanes, line)
            run(lanes)

        return watched

    # -- instructions for whole warps

    def _bind_rendezvous(self, step: Decoded) -> Callable[[Lanes], Lanes | None] | None:
        """A function of the lanes that are there: the ones whose partners are missing."""
        operation = step.operation
        batch = self.batch
        if not operation.needs_others:
            return None
        if operation.whole_warpgroup:
            return self._missing_of_warpgroup
        whole = np.asarray(np.uint32(0xFFFF_FFFF))
        members = operation.rendezvous.array(batch) if operation.rendezvous else whole

        def waiting(lanes: Lanes) -> Lanes | None:
            present = _bits(lanes.mask)
            warps = lanes.indices // WARP
            missing = take(members, lanes) & ~present[warps]
            if not operation.whole_warp:  # threads that ended need not come
                missing = missing & _bits(self.alive)[warps]
            if step.guard is not None:
                missing = missing * self._guard_values(step.guard, lanes)
            if not missing.any():
                return None
            incomplete = np.zeros(batch.warps, np.bool_)
            incomplete[warps[missing != 0]] = True
            return Lanes(lanes.indices[incomplete[warps]], batch.lanes)

        return waiting

    def _missing_of_warpgroup(self, lanes: Lanes) -> Lanes | None:
        complete = np.repeat(lanes.mask.reshape(-1, WARPGROUP).all(axis=1), WARPGROUP)
        waiting = lanes.mask & ~complete
        return Lanes.where(waiting) if waiting.any() else None

    def _meet(self, index: int, bound: _Bound, lanes: Lanes | None) -> tuple[Lanes | None, bool]:
        """The lanes that can go on; the others are parked. False where none can."""
        parked = self.parked.pop(index, None)
        if parked is not None:
            lanes = self._merged([lanes, parked])
        if lanes is None:
            return None, True
        assert bound.rendezvous is not None
        waiting = bound.rendezvous(lanes)
        if waiting is None:
            return lanes, True
        self.parked[index] = waiting
        rest = lanes.mask & ~waiting.mask
        return Lanes.where(rest), bool(rest.any())

    # -- control

    def _control(self, bound: _Bound, step: Decoded, lanes: Lanes | None) -> None:
        if self.counters is not None and not isinstance(step.operation, GivingWay):
            self._count(step, lanes, None)
        if step.guard is None:
            self._controls[type(step.operation)](bound, step, lanes)
            return
        values = self._guard_values(step.guard, lanes)
        count = int(np.count_nonzero(values))
        if count == 0:
            self._go(bound.block.next, lanes)
        elif count == len(values):
            self._controls[type(step.operation)](bound, step, lanes)
        else:
            chosen, rest = self._split(values, lanes)
            self._go(bound.block.next, rest)
            self._controls[type(step.operation)](bound, step, chosen)

    def _split(self, values: np.ndarray, lanes: Lanes | None) -> tuple[Lanes, Lanes]:
        total = self.batch.lanes
        indices = np.arange(total) if lanes is None else lanes.indices
        return Lanes(indices[values], total), Lanes(indices[~values], total)

    def _branch(self, bound: _Bound, step: Decoded, lanes: Lanes | None) -> None:
        assert isinstance(step.operation, Branch)
        self._go(bound.block.labels[step.operation.labels[0]], lanes)

    def _switch(self, bound: _Bound, step: Decoded, lanes: Lanes | None) -> None:
        operation = step.operation
        assert isinstance(operation, Switch)
        index = take(operation.index.array(self.batch), lanes)
        index = np.broadcast_to(index, (self.batch.lanes if lanes is None else lanes.count,))
        beyond = np.flatnonzero(index >= len(operation.labels))
        if len(beyond):
            lane = int(beyond[0]) if lanes is None else int(lanes.indices[beyond[0]])
            raise self._fault(
                f"brx.idx {int(index[beyond[0]])} of {len(operation.labels)} targets",
                step,
                lane=lane,
            )
        for number in np.unique(index):
            chosen, _ = self._split(index == number, lanes)
            whole = chosen.count == self.batch.lanes
            self._go(bound.block.labels[operation.labels[int(number)]], None if whole else chosen)

    def _exit(self, bound: _Bound, step: Decoded, lanes: Lanes | None) -> None:
        put(self.alive, lanes, np.asarray(False))
        self.waiting.progress += 1
        for index in list(self.parked):  # they may have waited for these
            self._go(index, self.parked.pop(index))
        self._release(self.barriers.leave(lanes))

    def _trap(self, bound: _Bound, step: Decoded, lanes: Lanes | None) -> None:
        raise self._fault("trap", step, lanes)

    def _barrier(self, bound: _Bound, step: Decoded, lanes: Lanes | None) -> None:
        assert isinstance(step.operation, Barrier)
        try:
            released = self.barriers.arrive(step, bound.block.next, lanes)
        except LaneFault as fault:
            raise self._fault_of(fault, step) from None
        if not step.operation.waits:
            self._go(bound.block.next, lanes)
        self._release(released)

    def _test_mbarrier(self, bound: _Bound, step: Decoded, lanes: Lanes | None) -> None:
        operation = step.operation
        assert isinstance(operation, MbarrierTest) and bound.block.next is not None
        try:
            complete = operation.test(self.batch, lanes, step.instruction.line)
        except LaneFault as fault:
            raise self._fault_of(fault, step) from None
        if complete.all():
            self._go(bound.block.next, lanes)
            return
        if complete.any():
            passing, lanes = self._split(complete, lanes)
            self._go(bound.block.next, passing)
        self.waiting.park(bound.block.next, lanes, step)

    def _give_way(self, bound: _Bound, step: Decoded, lanes: Lanes | None) -> None:
        operation = step.operation
        assert isinstance(operation, GivingWay) and bound.block.next is not None
        run = operation.bind(self.batch)
        try:
            if self.counters is None:
                run(lanes)
            else:
                self._count(step, lanes, run)
        except LaneFault as fault:
            raise self._fault_of(fault, step) from None
        self.waiting.park(bound.block.next, lanes, step)

    def _set_registers(self, bound: _Bound, step: Decoded, lanes: Lanes | None) -> None:
        operation = step.operation
        assert isinstance(operation, SetRegisters)
        some = lanes or Lanes(np.arange(self.batch.lanes), self.batch.lanes)
        try:
            given = self.pool.change(operation.count, operation.more, some)
        except LaneFault as fault:
            raise self._fault_of(fault, step) from None
        self.waiting.progress += int(given.any())
        if given.all():
            self._go(bound.block.next, lanes)
            return
        going, waiting = self._split(given, lanes)
        if going.count:
            self._go(bound.block.next, going)
        index = next(k for k, block in enumerate(self.program.blocks) if block is bound.block)
        self.waiting.park(index, waiting, step)

    def _release(self, released: list[tuple[int, Lanes | None]]) -> None:
        self.waiting.progress += len(released)
        for index, lanes in released:
            self._go(index, lanes)

    # -- faults

    def _check_nobody_waits(self) -> None:
        for index, lanes in self.parked.items():
            step = self.program.blocks[index].steps[0]
            whom = "warpgroup" if step.operation.whole_warpgroup else "warp (or of the member mask)"
            raise self._fault(
                f"divergence: not all lanes of the {whom} come to this instruction", step, lanes
            )
        waiting = self.barriers.waiting()
        if waiting is not None:
            step, lane, reason = waiting
            raise self._fault(reason, step, lane=lane)
        fault = self.batch.unfinished()
        if fault is not None:
            raise self._fault_of(fault, self.program.blocks[-1].steps[-1])

    def _fault_of(self, fault: LaneFault, step: Decoded) -> PtxFault:
        """At `step`, or at the instruction that is to blame."""
        if fault.line is not None:
            steps = (step for block in self.program.blocks for step in block.steps)
            step = next((s for s in steps if s.instruction.line == fault.line), step)
        return self._fault(fault.reason, step, lane=fault.lane)

    def _fault(
        self, reason: str, step: Decoded, lanes: Lanes | None = None, lane: int | None = None
    ) -> PtxFault:
        if lane is None:
            lane = 0 if lanes is None else int(lanes.indices[0])
        block, thread = self.batch.block_and_thread(lane)
        return PtxFault(
            reason,
            kernel=self.program.kernel.name,
            line=step.instruction.line,
            text=step.instruction.text,
            block=block,
            thread=thread,
        )


def _bits(mask: np.ndarray) -> np.ndarray:
    """One bit per lane, one word per warp."""
    return np.packbits(mask.reshape(-1, WARP), axis=1, bitorder="little").view(np.uint32)[:, 0]
