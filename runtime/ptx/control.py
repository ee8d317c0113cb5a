"""Operations that end a basic block: where the lanes go next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .decode import Operation, Run
from .lanes import Lanes, put, take
from .operands import RegisterView, Source

if TYPE_CHECKING:
    from .batch import Batch

CLUSTER = 16  # behind the numbers of a block's barriers
Predicate = Callable[["Batch"], Callable]


class Control(Operation):
    """`labels` are the names of blocks that it may lead to, besides the following one."""

    ends_block = True
    labels: tuple[str, ...] = ()
    falls_through = True


class Branch(Control):
    """To `label`, for lanes whose guard holds; without a guard for all."""

    def __init__(self, label: str) -> None:
        self.labels = (label,)


class Switch(Control):
    """`brx.idx`: to the label at an index. Indices are in range, or the lane faults."""

    falls_through = False

    def __init__(self, index: Source, labels: tuple[str, ...]) -> None:
        self.index = index
        self.labels = labels


class Exit(Control):
    """The thread ends."""

    falls_through = False


class Trap(Control):
    """`trap`: the kernel stops with an error."""

    falls_through = False


class Barrier(Control):
    """`barrier.sync`, `.arrive` and `.red` of a block; that of a cluster of one has the number
    `CLUSTER`.

    `number` and `threads` (None: all threads of the block) are read per lane. `waits` is false for
    `.arrive`. Where `aligned`, all lanes of a warp that still run must come to it together.
    `reduction` is "popc", "and" or "or", of `predicate` into `result`.
    """

    def __init__(
        self,
        number: Source,
        threads: Source | None,
        waits: bool = True,
        aligned: bool = False,
        reduction: str | None = None,
        predicate: Predicate | None = None,
        result: RegisterView | None = None,
    ) -> None:
        self.number = number
        self.threads = threads
        self.waits = waits
        self.aligned = aligned
        self.reduction = reduction
        self.predicate = predicate
        self.result = result

    @property
    def needs_others(self) -> bool:
        return self.aligned


class MbarrierTest(Control):
    """`mbarrier.test_wait` and `.try_wait` into the predicate `result`.

    Lanes for which the phase is not complete give way to all others.
    """

    asynchronous = True
    shared_size = 8

    def __init__(
        self,
        place: Callable[[Batch], Callable[[Lanes | None], np.ndarray]],
        value: Source,
        is_parity: bool,
        acquires: bool,
        result: RegisterView,
    ) -> None:
        self.place = place
        self.value = value
        self.is_parity = is_parity
        self.acquires = acquires
        self.result = result

    def test(self, batch: Batch, lanes: Lanes | None, line: int) -> np.ndarray:
        """Whether the phase is complete, for each lane, which is told."""
        batch.line = line
        complete = batch.mbarriers.test(
            self.place(batch)(lanes),
            take(self.value.array(batch), lanes),
            lanes,
            is_parity=self.is_parity,
            acquires=self.acquires,
        )
        put(self.result.array(batch), lanes, complete)
        return complete


class GivingWay(Control):
    """An effect after which lanes let all others go on first: loads that acquire, which wait for
    what others do."""

    def __init__(self, bind: Callable[[Batch], Run]) -> None:
        self._bind = bind

    def bind(self, batch: Batch) -> Run:
        return self._bind(batch)


class SetRegisters(Control):
    """`setmaxnreg`: the warps' registers a thread become `count`, more or fewer than before."""

    whole_warp = True
    whole_warpgroup = True

    def __init__(self, count: int, more: bool) -> None:
        self.count = count
        self.more = more


def successors(operation: Control, guarded: bool) -> tuple[Sequence[str], bool]:
    """The labels that may follow, and whether the next block may."""
    if isinstance(operation, Branch):
        return operation.labels, guarded
    return operation.labels, operation.falls_through or guarded
