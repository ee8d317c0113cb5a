"""Barriers of blocks: 16 of them each, for all threads or for a number of them.

Threads that ended count as arrived at barriers for all threads, as on hardware.
"""

from __future__ import annotations

import numpy as np

from .batch import Batch
from .control import CLUSTER, Barrier
from .errors import LaneFault
from .lanes import Lanes, lane_number, put, spread, take
from .program import Decoded

_COUNT = CLUSTER + 1
Released = list[tuple[int, Lanes | None]]


class Barriers:
    """Which lanes wait at which barrier of their block."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.reset()

    def reset(self) -> None:
        batch = self.batch
        self.alive = np.bincount(batch.block_of_lane[batch.exists], minlength=batch.blocks)
        self.arrived = np.zeros((batch.blocks, _COUNT), np.int64)
        self.expected = np.zeros((batch.blocks, _COUNT), np.int64)  # 0: all threads that run
        self.barrier = np.full(batch.lanes, -1)  # the barrier at which a lane waits
        self.resume = np.zeros(batch.lanes, np.int64)  # the block at which it goes on
        self.contribution = np.zeros(batch.lanes, np.bool_)
        self.contributors = np.zeros((batch.blocks, _COUNT, 2), np.int64)
        self.steps: dict[int, Decoded] = {}
        self.anybody = False

    def arrive(self, step: Decoded, resume: int | None, lanes: Lanes | None) -> Released:
        """Lanes come to a barrier; those that may go on now, with the block at which they do."""
        operation = step.operation
        assert isinstance(operation, Barrier) and resume is not None
        self._note_cluster(operation, lanes)
        if lanes is None and not self.anybody and self._is_plain(operation):
            self.batch.shared.synchronized(None)
            return [(resume, None)]
        count = self.batch.lanes if lanes is None else lanes.count
        numbers = spread(take(operation.number.array(self.batch), lanes), count).astype(np.int64)
        if (numbers >= _COUNT).any():
            bad = int(np.flatnonzero(numbers >= _COUNT)[0])
            raise LaneFault(f"barrier {numbers[bad]} of {CLUSTER}", lane_number(lanes, bad))
        indices = np.arange(count) if lanes is None else lanes.indices
        self.anybody = True
        self._note(step, operation, numbers, indices, lanes)
        if operation.waits:
            self.barrier[indices] = numbers
            self.resume[indices] = resume
            self.steps[resume] = step
        return self._complete()

    def _note_cluster(self, operation: Barrier, lanes: Lanes | None) -> None:
        """Lanes wait at the barrier of their cluster, at which they must have arrived."""
        number = operation.number.array(self.batch)
        if number.ndim or int(number) != CLUSTER:
            return
        arrived = self.batch.cluster_arrived
        missing = np.flatnonzero(~take(arrived, lanes))
        if len(missing):
            raise LaneFault(
                "barrier.cluster.wait without barrier.cluster.arrive",
                lane_number(lanes, int(missing[0])),
            )
        put(arrived, lanes, np.asarray(False))

    def _is_plain(self, operation: Barrier) -> bool:
        """All threads of the block, no reduction, one barrier for everybody."""
        number = operation.number.array(self.batch)
        return (
            operation.threads is None
            and operation.waits
            and operation.reduction is None
            and number.ndim == 0
            and int(number) < _COUNT
        )

    def _note(
        self,
        step: Decoded,
        operation: Barrier,
        numbers: np.ndarray,
        indices: np.ndarray,
        lanes: Lanes | None,
    ) -> None:
        self.batch.shared.arriving(numbers, indices)
        blocks = self.batch.block_of_lane[indices]
        np.add.at(self.arrived, (blocks, numbers), 1)
        if operation.threads is not None:
            threads = spread(take(operation.threads.array(self.batch), lanes), len(indices))
            uneven = np.flatnonzero(threads % 32 != 0)
            if len(uneven):
                raise LaneFault(
                    f"a barrier for {threads[uneven[0]]} threads, which are not whole warps",
                    int(indices[uneven[0]]),
                )
            self.expected[blocks, numbers] = threads
        else:
            self.expected[blocks, numbers] = 0
        if operation.predicate is not None:
            values = spread(operation.predicate(self.batch)(lanes), len(indices))
            self.contribution[indices] = values
            np.add.at(self.contributors[:, :, 0], (blocks, numbers), 1)
            np.add.at(self.contributors[:, :, 1], (blocks, numbers), values)

    def leave(self, lanes: Lanes | None) -> Released:
        """Lanes end: others may no longer have to wait for them."""
        if lanes is None:
            self.alive[:] = 0
            return []
        blocks = self.batch.block_of_lane[lanes.indices]
        self.alive -= np.bincount(blocks, minlength=self.batch.blocks)
        return self._complete() if self.anybody else []

    def _complete(self) -> Released:
        """Opens the barriers at which everybody is."""
        needed = np.where(self.expected > 0, self.expected, self.alive[:, None])
        complete = (self.arrived > 0) & (self.arrived >= needed)
        if not complete.any():
            return []
        waits = self.barrier >= 0
        opened = waits & complete[self.batch.block_of_lane, np.where(waits, self.barrier, 0)]
        released = self._released(opened)
        going = np.flatnonzero(opened)
        self.batch.shared.opened(self.barrier[going], going)
        self.barrier[opened] = -1
        self.arrived[complete] = 0
        self.contributors[complete] = 0
        self.batch.shared.synchronized(np.asarray(complete.any(axis=1)))
        self.anybody = bool(self.arrived.any())
        return released

    def _released(self, opened: np.ndarray) -> Released:
        released: Released = []
        for resume in np.unique(self.resume[opened]):
            lanes: Lanes | None = Lanes.where(opened & (self.resume == resume))
            assert lanes is not None
            operation = self.steps[int(resume)].operation
            assert isinstance(operation, Barrier)
            if operation.reduction is not None:
                self._reduce(operation, lanes)
            whole = lanes.count == self.batch.lanes
            released.append((int(resume), None if whole else lanes))
        return released

    def _reduce(self, operation: Barrier, lanes: Lanes) -> None:
        """`bar.red`: what all threads of a barrier said, to each of them."""
        if operation.result is None:
            return
        blocks = self.batch.block_of_lane[lanes.indices]
        said, true = self.contributors[blocks, self.barrier[lanes.indices]].T
        values = {"popc": true, "and": true == said, "or": true > 0}[operation.reduction or ""]
        put(operation.result.array(self.batch), lanes, values)

    def waiting(self) -> tuple[Decoded, int, str] | None:
        """A lane that waits in vain: its instruction, its number, and how many are there."""
        lanes = np.flatnonzero(self.barrier >= 0)
        if not len(lanes):
            return None
        lane = int(lanes[0])
        block, number = int(self.batch.block_of_lane[lane]), int(self.barrier[lane])
        expected = int(self.expected[block, number]) or int(self.alive[block])
        reason = (
            f"barrier {number} never completes: {int(self.arrived[block, number])} of {expected} "
            "threads arrive"
        )
        return self.steps[int(self.resume[lane])], lane, reason
