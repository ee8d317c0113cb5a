"""Activations of up to eight rows on their way to the lanes of a warp that multiplies by MMAs.

A lane needs words of its own row, so that a load from global memory would ask the L1 cache for a
line of every row. Instead a warp copies what it needs for a turn of its loop to shared memory,
whole lines of each row, while it multiplies the turn before. Two turns' rows, and nobody else's:

    [turn, by turns][row, pitch a multiple of 16 and no two in the same banks][bytes of a turn]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from abqc.codegen.builder import Value

from ..arch import WARP
from ..builder import GpuBuilder
from ..rows.threads import power_of_two
from .lanes import RowPointers
from .plan import MMA_ROWS, RowsPlan
from .values import QUARTERS, RowValues

PIECE = 16  # bytes of a copy
BANKS_BYTES = 128  # of shared memory, in all banks


@dataclass(frozen=True)
class StagedRows:
    """The rows of one warp, in shared memory from byte `offset` (i32) on."""

    b: GpuBuilder
    plan: RowsPlan
    values: RowValues
    pointers: RowPointers
    offset: Value

    @staticmethod
    def shared_bytes(plan: RowsPlan, unit_bytes: int) -> int:
        """Of a warp."""
        return 2 * _turn_bytes(plan, unit_bytes)

    @cached_property
    def _turn_bytes(self) -> int:
        return _turn_bytes(self.plan, self.values.unit_bytes)

    @cached_property
    def _chunk_bytes(self) -> int:
        """Of a row, for a chunk."""
        return self.plan.layout.chunk_units * self.values.unit_bytes

    def start(self) -> Value:
        """Which of the two turns' places comes first."""
        return self.b.const(0, "i32")

    def other(self, turn: Value) -> Value:
        return self._turn_bytes - turn

    def copy(self, first: Value, end: Value, turn: Value) -> None:
        """Start to copy what the turn from chunk `first` on needs, if that is before `end`. Rows
        beyond the last, and codes beyond K, are zeros that nothing is read for."""
        b = self.b
        with b.when(first < end):
            self._copy(first, turn)
        b.commit_copies()

    def wait(self) -> None:
        """For the copies, which all lanes then see; no lane still reads the turn before."""
        self.b.wait_copies(0)
        self.b.warp_barrier()

    def _copy(self, first: Value, turn: Value) -> None:
        b, plan = self.b, self.plan
        pieces = plan.ahead * self._chunk_bytes // PIECE  # of a row
        pitch = _pitch(plan, self.values.unit_bytes)
        # Lanes that copy one row; all together have no more rows than there are.
        wide = min(WARP, max(power_of_two(pieces), WARP // MMA_ROWS))
        mine, lane = b.lane // wide, b.lane % wide
        codes = plan.layout.grouped.units * self.values.unit_bytes
        begin = first * self._chunk_bytes
        source = b.at(self.pointers.first_row, b.wide(mine) * self.values.row_bytes)
        source = b.at(source, begin + lane * PIECE)
        target = b.at(b.shared, self.offset + turn + (mine * pitch + lane * PIECE))
        for row in range(0, MMA_ROWS, WARP // wide):
            exists = self.pointers.exists(mine + row)
            for piece in range(0, pieces, wide):
                there = exists
                if plan.guarded or codes % (plan.ahead * self._chunk_bytes):
                    there = there & (begin + (lane + piece) * PIECE < codes)
                valid = b.select(there, b.const(PIECE, "i32"), 0)
                to = b.at(target, row * pitch + piece * PIECE)
                of = b.at(source, row * self.values.row_bytes + piece * PIECE)
                if piece + wide <= pieces:
                    b.copy_async(to, of, PIECE, valid, near=True)
                else:
                    with b.when(lane + piece < pieces):
                        b.copy_async(to, of, PIECE, valid, near=True)

    def load(self, turn: Value, number: int, unit: int) -> list[Value]:
        """The lane's words of a unit of the turn's chunk `number`: of row `lane / 4`."""
        b = self.b
        mine = b.lane // QUARTERS * _pitch(self.plan, self.values.unit_bytes)
        row = b.at(b.shared, self.offset + turn + mine)
        at = number * self._chunk_bytes + unit * self.values.unit_bytes
        return self.values.load(b, row, b.const(0, "i32"), at, cache="")


def _pitch(plan: RowsPlan, unit_bytes: int) -> int:
    """Of rows: what quarters of lanes read of eight of them is in all banks."""
    row = plan.ahead * plan.layout.chunk_units * unit_bytes
    return row + (PIECE - row) % BANKS_BYTES


def _turn_bytes(plan: RowsPlan, unit_bytes: int) -> int:
    return MMA_ROWS * _pitch(plan, unit_bytes)
