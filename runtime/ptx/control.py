"""Operations that end a basic block: where the lanes go next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .decode import Operation
from .operands import RegisterView, Source

if TYPE_CHECKING:
    from .batch import Batch

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
    """`barrier.sync`, `.arrive` and `.red` of a block.

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


def successors(operation: Control, guarded: bool) -> tuple[Sequence[str], bool]:
    """The labels that may follow, and whether the next block may."""
    if isinstance(operation, Branch):
        return operation.labels, guarded
    return operation.labels, operation.falls_through or guarded
