"""Who has what of a block by wgmma, whatever is multiplied."""

from __future__ import annotations

from functools import cached_property

from ..matmul.schedule import Schedule
from .instructions import ROWS, WARPGROUP_WARPS

# Registers of a thread by the number of warpgroups that multiply: of all at the start; then of
# those that copy, and of the others. A multiprocessor has 65536; one warpgroup leaves room for a
# second block.
INSTRUCTION_REGISTERS = 30  # beside accumulators, that ptxas wants of those at the start
REGISTERS = {1: (128, 40, 216), 2: (168, 40, 232), 3: (128, 40, 152)}


class Warpgroups:
    """What follows from the schedule of a plan alone."""

    schedule: Schedule

    @cached_property
    def consumers(self) -> int:
        """Warpgroups that multiply."""
        return self.schedule.warps_n // WARPGROUP_WARPS

    @cached_property
    def halves(self) -> int:
        """Instructions that a warpgroup needs for its columns."""
        return self.schedule.block_n // ROWS // self.consumers

    @property
    def half_sums(self) -> int:
        """Accumulators of a thread and half."""
        return self.schedule.block_m // 2

    @property
    def accumulators(self) -> int:
        return self.halves * self.half_sums

    @property
    def launch_registers(self) -> int:
        """Of every thread as a block starts."""
        return REGISTERS[self.consumers][0]
