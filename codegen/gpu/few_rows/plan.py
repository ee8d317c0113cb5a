"""How a rows kernel goes through K: who takes which chunks, what is loaded ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..matmul.schedule import Schedule
from ..weights.layout import BLOCKS, LOAD_BYTES, WeightLayout

# Units of a turn where codes become floats: with more, ptxas keeps too many of them in registers.
HALF_TURN_UNITS = 8
SM_REGISTERS = 65536
GROUP_VALUES = 32  # scales, sums and zero points of a turn
TURN_REGISTERS = 56  # for a turn's words and these
FEW_REGISTERS = 112  # of two turns by `mma.sync` that fit into 128 beside sums and addresses
MMA_ROWS = 8  # of schedules that multiply by mma.sync


@dataclass(frozen=True)
class RowsPlan:
    """One schedule on one weight layout; counts are of chunks (weights/layout.py) unless named.

    `schedule.split * schedule.warps_k` parts take runs of whole groups, `run` chunks each, the last
    parts fewer or none: so the sum of a group is exact before it is scaled.
    """

    layout: WeightLayout
    schedule: Schedule

    @property
    def grouped(self) -> bool:
        return self.layout.grouped.groups > 1

    @property
    def parts(self) -> int:
        return self.schedule.split * self.schedule.warps_k

    @property
    def step(self) -> int:
        """What a run is a multiple of: where a group and a chunk end together."""
        if not self.grouped:
            return 1
        units = self.layout.chunk_units
        return math.lcm(self.layout.grouped.group_units, units) // units

    @property
    def steps(self) -> int:
        return -(-self.layout.chunks // self.step)

    @property
    def run(self) -> int:
        return -(-self.steps // self.parts) * self.step

    @cached_property
    def ahead(self) -> int:
        """Chunks of a turn of the loop; the next turn's are loaded meanwhile.

        One that lets all parts do whole turns, if there is one not below half of what is asked.
        """
        wanted = self.schedule.stages // self.layout.chunk_loads
        if self.layout.lane_bits == 16:
            wanted = min(wanted, HALF_TURN_UNITS // self.layout.chunk_units)
        if self.grouped:
            units = self._groups_of_turn * self.layout.grouped.group_units
            wanted = min(wanted, units // self.layout.chunk_units)
        wanted = max(1, min(self.run, wanted))
        if self.even:
            for count in range(wanted, (wanted + 1) // 2 - 1, -1):
                if self.run % count == 0:
                    return count
        return wanted

    @property
    def _group_values(self) -> int:
        """Scales, sums and zero points of a group that a lane has: of four columns by `mma.sync`,
        else of one (16-bit weights need four zero points)."""
        layout, columns = self.layout, BLOCKS if self.schedule.block_m == MMA_ROWS else 1
        zeros = BLOCKS if layout.lane_bits == 16 else columns
        return columns * (1 + layout.has_sums) + zeros * layout.has_zeros

    @property
    def _groups_of_turn(self) -> int:
        """Groups whose scales, sums and zero points are loaded at once: their values take registers
        too, those of two turns at a time.
        """
        if self.layout.lane_bits == 16 and self.layout.has_zeros:
            return 2
        layout, most = self.layout, min(4, GROUP_VALUES // self._group_values)
        words = self.schedule.stages * LOAD_BYTES // 4
        of_group = layout.grouped.group_units * layout.chunk_words // layout.chunk_units
        fitting = [
            count
            for count in range(1, most + 1)
            if min(words, count * of_group) + count * self._group_values <= TURN_REGISTERS
        ]
        return max(fitting, default=1)

    @property
    def _registers_of_turns(self) -> int:
        """Of the words of two turns, what is known of their groups, and rows."""
        units = self.ahead * self.layout.chunk_units
        groups = -(-units // self.layout.grouped.group_units)
        return 2 * (self.ahead * self.layout.chunk_words + groups * self._group_values + units)

    @property
    def even(self) -> bool:
        """Whether all parts have equally many chunks."""
        return self.run * self.parts == self.layout.chunks

    @property
    def guarded(self) -> bool:
        """Whether some turns have fewer than `ahead` chunks."""
        return not self.even or self.run % self.ahead != 0

    @property
    def _base(self) -> int:
        """Units that the begin of every turn is a multiple of."""
        per_chunk = self.layout.chunk_units
        return math.gcd(self.ahead * per_chunk, self.step * per_chunk)

    def may_begin_group(self, place: int) -> bool:
        """Whether unit `place` of a turn may be of another group than the unit before it."""
        return place == 0 or place % math.gcd(self._base, self.layout.grouped.group_units) == 0

    def ends_group(self, place: int) -> Literal["always", "never", "maybe"]:
        """Whether a group, or all of K, ends with unit `place` of a turn."""
        if not self.grouped:
            return "never"
        size, units = self.layout.grouped.group_units, self.layout.grouped.units
        after, per_chunk = place + 1, self.layout.chunk_units
        may_end = after % math.gcd(self._base, size) == 0
        may_be_last = units % size != 0 and (units - after) % self._base == 0
        padding = units % per_chunk != 0 and place % per_chunk >= units % per_chunk
        if not may_end and not may_be_last:
            return "never"
        return "always" if may_end and self._base % size == 0 and not padding else "maybe"

    @property
    def registers(self) -> int:
        """What a thread may have: enough to spill none, few enough for many warps.

        Two turns of words are held, and what is known of their groups; codes of several bit parts,
        floats, and rows need more.
        """
        parts, layout = len(self.layout.parts), self.layout
        if parts > 2 and layout.lane_bits == 16:
            return 168
        words, rows = 2 * self.ahead * layout.chunk_words, self.schedule.block_m
        if rows == MMA_ROWS and self.grouped:
            return 144 if self._registers_of_turns > FEW_REGISTERS else 128
        return 128 if parts > 1 or words >= 64 or rows == 4 else 96

    @property
    def fits(self) -> bool:
        """Whether an SM has the registers of one block."""
        return self.registers * self.schedule.threads <= SM_REGISTERS

    @property
    def bytes_in_flight(self) -> int:
        """Of a block's weights."""
        return self.schedule.threads * LOAD_BYTES * self.ahead * self.layout.chunk_loads
