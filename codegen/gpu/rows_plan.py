"""How a rows kernel goes through K: who takes which chunks, what is loaded ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from .schedule import Schedule
from .weights import LOAD_BYTES, WeightLayout


@dataclass(frozen=True)
class RowsPlan:
    """One schedule on one weight layout; counts are of chunks (weights.py) unless named.

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
        wanted = max(1, min(self.run, self.schedule.stages // self.layout.chunk_loads))
        if self.even:
            for count in range(wanted, (wanted + 1) // 2 - 1, -1):
                if self.run % count == 0:
                    return count
        return wanted

    @property
    def even(self) -> bool:
        """Whether all parts have equally many chunks."""
        return self.run * self.parts == self.layout.chunks

    @property
    def guarded(self) -> bool:
        """Whether some turns have fewer than `ahead` chunks."""
        return not self.even or self.run % self.ahead != 0

    @property
    def bytes_in_flight(self) -> int:
        """Of a block's weights."""
        return self.schedule.threads * LOAD_BYTES * self.ahead * self.layout.chunk_loads
