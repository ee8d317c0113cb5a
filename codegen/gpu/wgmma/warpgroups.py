"""Who has what of a block by wgmma, whatever is multiplied."""

from __future__ import annotations

from functools import cached_property

from abqc.codegen.strategy import StreamK

from ..arch import WARP, GpuArch
from ..matmul.schedule import PRODUCER_WARPS, Schedule
from .instructions import ROWS, WARPGROUP_WARPS

# Registers of a thread by the number of warpgroups that multiply: of all at the start; then of
# those that copy, and of the others. A multiprocessor has 65536; one warpgroup leaves room for a
# second block.
INSTRUCTION_REGISTERS = 30  # beside accumulators, that ptxas wants of those at the start
REGISTERS = {1: (128, 40, 216), 2: (168, 40, 232), 3: (128, 40, 152)}
BOX_REGISTERS = {1: (24, 232), 2: (24, 240), 3: (24, 160)}  # later, where boxes are copied


class Warpgroups:
    """What follows from the schedule of a plan alone."""

    schedule: Schedule

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        raise NotImplementedError

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

    # Blocks that share tiles along K (stream_k.py)

    @property
    def turns(self) -> int:
        """Of the K loop, for a whole tile."""
        raise NotImplementedError

    @property
    def unit_turns(self) -> int:
        """Turns that one block has together: groups along K are not shared."""
        raise NotImplementedError

    @property
    def units(self) -> int:
        """Of a tile, which blocks share."""
        return -(-self.turns // self.unit_turns)

    @property
    def consumer_threads(self) -> int:
        return self.consumers * WARPGROUP_WARPS * WARP

    def resident_blocks(self, arch: GpuArch) -> int:
        """How many blocks run at once on all multiprocessors."""
        threads = self.consumer_threads + PRODUCER_WARPS * WARP
        by_registers = arch.registers_per_sm // (self.launch_registers * threads)
        by_memory = arch.shared_per_sm // (self.shared_bytes + arch.shared_reserved)
        return arch.multiprocessors * min(by_registers, by_memory)

    @property
    def stream(self) -> StreamK | None:
        """What blocks that share tiles need; None where they do not."""
        if not self.schedule.stream_k:
            return None
        slot_bytes = 4 * self.accumulators * self.consumer_threads
        return StreamK(self.schedule.split, slot_bytes, self.consumers * WARPGROUP_WARPS)

    @property
    def stream_problem(self) -> str | None:
        """Why blocks cannot share tiles; None where they can, or do not."""
        s = self.schedule
        if not s.stream_k:
            return None
        if self.units < s.split:
            return "there is less K than blocks that share a tile"
        # Numbers of units are multiplied by numbers of blocks, in 32 bits.
        if 2 * s.persistent * (s.persistent + 1) * self.units >= 1 << 31:
            return "there is too much K to be shared"
        return None

    @property
    def launch_registers(self) -> int:
        """Of every thread as a block starts."""
        return REGISTERS[self.consumers][0]

    @property
    def role_registers(self) -> tuple[int, int]:
        """Then: of those that copy, and of the others."""
        if self.schedule.boxes:
            return BOX_REGISTERS[self.consumers]
        return REGISTERS[self.consumers][1:]
