"""How a block of planes is cut for `wgmma` b1: columns of the weight are the rows of A."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from abqc.codegen.align import align

from ..arch import GpuArch
from ..matmul.schedule import PRODUCER_WARPS
from ..wgmma.barriers import BARRIER_BYTES
from ..wgmma.instructions import COLUMNS_STEP, MOST_COLUMNS, ROWS, WARPGROUP_WARPS
from ..wgmma.plan import PRODUCERS
from ..wgmma.warpgroups import INSTRUCTION_REGISTERS, REGISTERS, Warpgroups
from .chain import Chain
from .layout import HALVES, STEP, TILE_COLUMNS, UNIT_BYTES
from .plan import PlanesPlan
from .signed_runs import SignedRuns

OCTET = 8  # rows of which 16 bytes each are one behind the other, what wgmma reads at once
QUAD = 4  # pieces of 16 bytes of a row that a warp copies at once
INTEGER_COLUMNS_STEP = 16  # N of wgmma for integers, but for 8 and 24
STAGE_ALIGNMENT = 128
OTHER_REGISTERS = 32  # of a thread that multiplies: addresses, loops, descriptors
# More, where groups end in a stage, and where fragments are masked for each group in a step: those
# of the next product are loaded before that of this one.
GROUP_REGISTERS, MASK_REGISTERS = 12, 16
# More yet, where blocks share tiles and a group's sums are weighed between runs: else it spills.
SHARING_REGISTERS = 60
# Likewise of each group of a stage, where rows' zero points are kept; and where the last stage has
# fewer groups than others.
SHARED_GROUP_REGISTERS = 2
# Of a stage, which is unrolled: wgmmas, and all instructions of a warp that multiplies.
MOST_PRODUCTS, MOST_INSTRUCTIONS = 160, 4000


@dataclass(frozen=True)
class WgmmaPlanesPlan(Warpgroups, PlanesPlan):
    """A block by wgmma. A stage has

        rows      [pieces of K][block_m][16 bytes]      pieces as in packed rows: [units][planes]
        weights   [tiles][steps][planes][lanes 32][16 bytes]
        records   [tiles][groups][record]                where there are several groups
        sums      [block_m][groups] i32                  likewise, if packed rows have them

    A warp has a tile of the weight in each of its warpgroup's `halves`: 16 of the 64 rows of A.
    """

    def problem(self, arch: GpuArch) -> str | None:
        s = self.schedule
        if s.block_m > MOST_COLUMNS or (
            s.block_m % INTEGER_COLUMNS_STEP and s.block_m not in (COLUMNS_STEP, 3 * COLUMNS_STEP)
        ):
            return f"wgmma of integers has no {s.block_m} columns"
        if s.block_k % (2 * STEP):
            return f"block_k is no multiple of {2 * STEP}"
        if s.warps_m != 1 or s.warps_k != 1 or s.warps_n % WARPGROUP_WARPS or s.stages < 2:
            return "wgmma is for whole warpgroups, side by side, and two stages at least"
        if self.consumers not in REGISTERS or s.block_n != ROWS * self.halves * self.consumers:
            return "warpgroups do not divide the tile"
        if not self.one_group and not self.whole_groups:
            return "a stage is not whole groups"
        if self.k_blocks * self.block_steps > 2 * self.weight.steps or (
            self.k_blocks * self.block_groups > 2 * self.groups
        ):
            return "more than half of the stages is padding"
        if self.products > MOST_PRODUCTS or self.instructions > MOST_INSTRUCTIONS:
            return "too much code"
        if self.shared_bytes > arch.shared_per_block:
            return "not enough shared memory"
        if self.registers > REGISTERS[self.consumers][2]:
            return "not enough registers"
        if self.half_sums + INSTRUCTION_REGISTERS > self.launch_registers:
            return f"an instruction of more than {self.launch_registers} registers"
        if self.stream_problem is not None:
            return self.stream_problem
        if s.grid_split > 1 and (s.split - 1) * self.split_blocks >= self.k_blocks:
            return "a split would have nothing to do"
        return None

    @cached_property
    def sums_of_pairs(self) -> SignedRuns:
        """All pairs of planes, in one accumulator."""
        (chain,) = self.chains
        return SignedRuns.of(chain)

    def _chain(self, bit_tiles: list[int]) -> Chain:
        return self._pairs(bit_tiles)

    # Blocks that share tiles

    @property
    def turns(self) -> int:
        return self.k_blocks

    @property
    def unit_turns(self) -> int:
        return self.split_unit

    # Who has what

    @property
    def has_totals(self) -> bool:
        """Whether what stages leave is kept beside the accumulators that pairs are summed in."""
        return not self.one_group or len(self.sums_of_pairs.runs) > 1

    @cached_property
    def registers(self) -> int:
        sums = self.accumulators * (2 if self.has_totals else 1)
        fragments = 8 * self.halves
        of_groups = 0
        if not self.one_group:
            of_groups = GROUP_REGISTERS + (MASK_REGISTERS if self.parts > 2 else 0)
            if self.schedule.stream_k and len(self.sums_of_pairs.runs) > 1:
                of_groups += SHARING_REGISTERS
            elif (self.schedule.stream_k or self.groups_beyond) and self.row_zeros_loaded:
                of_groups += SHARED_GROUP_REGISTERS * self.warp_groups
            of_groups += 2 * self.halves * (1 + self.weight.has_sums + self.weight.has_zeros)
            if self.row_zeros_loaded:
                of_groups += self.schedule.block_m // 4
            of_groups += 4 * self.rows.has_sums
        return sums + fragments + of_groups + OTHER_REGISTERS

    @property
    def groups_beyond(self) -> bool:
        """Whether the last stage of K has groups that do not exist."""
        return self.k_blocks * self.block_groups > self.groups

    @property
    def row_zeros_loaded(self) -> bool:
        """Whether accumulators need a zero point of every row, which is no constant."""
        return self.weight.has_sums and not self.row_offset

    # One stage

    @cached_property
    def parts(self) -> int:
        """Times that a step is multiplied: once for each of the groups in it."""
        return max(1, STEP // self.group_pitch) if self.whole_groups else 1

    @cached_property
    def products(self) -> int:
        """wgmmas of a warpgroup in a stage."""
        pairs = self.sums_of_pairs.products
        return pairs * self.block_steps * self.parts * self.halves

    @property
    def row_pieces_per_stage(self) -> int:
        """16-byte pieces of a row."""
        return 2 * self.block_steps * self.row_planes

    @property
    def piece_pitch(self) -> int:
        """From one piece of a row to the next one."""
        return self.schedule.block_m * UNIT_BYTES

    @property
    def unit_pitch(self) -> int:
        """From a plane of a unit to the same one of the next unit."""
        return self.row_planes * self.piece_pitch

    @property
    def weights_offset(self) -> int:
        """Of the weights in a stage."""
        return align(self.row_stage_bytes, STAGE_ALIGNMENT)

    @property
    def tile_stage_bytes(self) -> int:
        """Of a tile's codes in a stage."""
        return self.block_steps * self.weight.step_bytes

    @property
    def records_offset(self) -> int:
        return self.weights_offset + self.weight_stage_bytes

    @property
    def tile_records_bytes(self) -> int:
        """Of a tile's records in a stage."""
        return self.block_groups * self.weight.record_bytes

    @cached_property
    def stage_bytes(self) -> int:
        return align(self.row_sums_offset + self.row_sum_stage_bytes, STAGE_ALIGNMENT)

    @property
    def barriers_offset(self) -> int:
        return self.schedule.stages * self.stage_bytes

    @cached_property
    def shared_bytes(self) -> int:
        return self.barriers_offset + 2 * self.schedule.stages * BARRIER_BYTES

    # Who copies which rows: a warp has eight rows and four pieces at once

    @property
    def octets(self) -> int:
        return self.schedule.block_m // OCTET

    @property
    def octet_warps(self) -> int:
        """Copying warps that have different rows; the others have different pieces."""
        return math.gcd(self.octets, PRODUCER_WARPS)

    @property
    def quads(self) -> int:
        return self.row_pieces_per_stage // QUAD

    @property
    def quad_warps(self) -> int:
        return PRODUCER_WARPS // self.octet_warps

    # What it costs, in instructions (read from the machine code for sm_90a)

    @cached_property
    def sum_instructions(self) -> int:
        """What a thread does with the accumulators of a group, or of a stage."""
        between = len(self.sums_of_pairs.runs) - 1
        if self.one_group:
            return between * self.accumulators
        end = 2 + (self.sums_of_pairs.scale != 1) + self.weight.has_sums + self.rows.has_sums
        return (between + end) * self.accumulators

    @cached_property
    def instructions(self) -> int:
        """Of a warp that multiplies, for a stage."""
        steps = self.products // self.halves
        groups = self.warp_groups if self.whole_groups else 1
        masks = 4 * self.products if self.parts > 2 else 0
        return steps * (5 + 2 * self.halves) + masks + groups * self.sum_instructions + 30

    @property
    def copy_instructions(self) -> float:
        """Of a thread that copies, for a stage."""
        pieces = self.row_stage_bytes / 16 + self.row_sum_stage_bytes / 8
        return 45.0 + 2.5 * pieces / PRODUCERS


assert TILE_COLUMNS * WARPGROUP_WARPS == ROWS and HALVES == 2
