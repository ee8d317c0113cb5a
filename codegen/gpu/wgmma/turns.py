"""Two warpgroups that multiply in turns.

Each has a barrier of the block, at which it waits for its turn and the other one only arrives.
While one of them multiplies, the other one does what comes between its products (the "pingpong"
schedule of FlashAttention-3 and CUTLASS). Both have the same number of turns.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from .barriers import MEMORY
from .instructions import WARPGROUP

FIRST_BARRIER = 1  # of the 16 of a block; 0 is that of all threads
THREADS = 2 * WARPGROUP


@dataclass(frozen=True)
class Turns:
    """Of warpgroup `number` (i32), 0 or 1, all of whose threads do the same."""

    b: GpuBuilder
    number: Value

    def begin(self) -> None:
        """Before all turns: the first one is that of warpgroup 0."""
        with self.b.when(self.number == 1):
            self._give()

    def wait(self) -> None:
        text = f"bar.sync $0, {THREADS};"
        self.b.asm(text, f"r,{MEMORY}", [], self.number + FIRST_BARRIER, effects=True)

    def end(self) -> None:
        """What was begun in this turn may still be under way."""
        self._give()

    def end_last(self) -> None:
        """The same of the last turn: nobody waits for the end of that of warpgroup 1."""
        with self.b.when(self.number == 0):
            self._give()

    def _give(self) -> None:
        text = f"bar.arrive $0, {THREADS};"
        other = (FIRST_BARRIER + 1) - self.number
        self.b.asm(text, f"r,{MEMORY}", [], other, effects=True)
