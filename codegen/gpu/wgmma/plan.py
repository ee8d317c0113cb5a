"""What a schedule makes of layouts: the stages of shared memory, who has which columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from abqc.codegen.align import align
from abqc.codegen.gpu.layout.swizzle import Swizzle, row_swizzle

from ..arch import WARP, GpuArch
from ..matmul.schedule import PRODUCER_WARPS
from ..packing.layout import K_UNIT
from ..tiles.plan import PIECE_BYTES, TilePlan
from ..weights.layout import BLOCKS, TILE_COLUMNS
from .barriers import BARRIER_BYTES
from .instructions import (
    ATOM_ROWS,
    COLUMNS_STEP,
    MOST_COLUMNS,
    ROWS,
    STEP_BYTES,
    SWIZZLES,
    WARPGROUP_WARPS,
)
from .warpgroups import INSTRUCTION_REGISTERS, REGISTERS, Warpgroups

STAGE_ALIGNMENT = 1024
PRODUCERS = PRODUCER_WARPS * WARP
HALF_BLOCKS = BLOCKS // 2  # of 8 columns: the 16 rows of A that a warp has

# For each half, beside the accumulators of all: with less ptxas has products wait (C7512).
PAIR_REGISTERS = 24
# Of a warp with both halves, where groups end: of each further part of a code, until they are one.
# With less w3 spills.
PART_REGISTERS = 12


@dataclass(frozen=True)
class WgmmaPlan(Warpgroups, TilePlan):
    """The static geometry of a kernel by wgmma: as a tile's, but

    - the columns of the weight are the rows of A, 64 of an instruction; `halves` of them, 1 or 2,
      are a warpgroup's. With two, a warp has a tile of the weight: its blocks of columns 0 and 1,
      then 2 and 3. With one, two warps share a tile, and each has one half.
    - the rows of activations are the columns of B, in atoms of `atom_bytes` of K, swizzled: a stage
      has for each of its `atoms` along K all rows, one behind the other.
    """

    def problem(self, arch: GpuArch) -> str | None:
        """Why this plan cannot run on `arch`; None if it can."""
        s = self.schedule
        if s.block_k % (K_UNIT * self.weights.chunk_units):
            return f"block_k is no multiple of {K_UNIT * self.weights.chunk_units}"
        if s.block_m % COLUMNS_STEP or s.block_m > MOST_COLUMNS:
            return f"wgmma has no {s.block_m} columns"
        if s.warps_m != 1 or s.warps_k != 1 or s.warps_n % WARPGROUP_WARPS:
            return "wgmma is for whole warpgroups, side by side"
        if self.consumers not in REGISTERS or self.halves not in (1, 2) or s.stages < 2:
            return "a warpgroup has 64 or 128 columns, and there are two stages at least"
        if s.block_n != ROWS * self.halves * self.consumers:
            return "warpgroups do not divide the tile"
        if self.halves == 1 and self.weights.format.in_digits:
            return "warps do not share tiles of digits"
        if self.stream_problem is not None:
            return self.stream_problem
        if s.grid_split > 1 and self.split_iterations * (s.split - 1) >= self.iterations:
            return "there is less K than splits"
        if self.iterations * self.stage_tile_bytes > 2 * self.weights.tile_bytes:
            return "more than half of the stages is padding"  # for which there are no weights
        if self.shared_bytes > arch.shared_per_block:
            return f"{self.shared_bytes} bytes of shared memory"
        if self.registers > REGISTERS[self.consumers][2]:
            return f"about {self.registers} registers"
        if self.accumulators + PAIR_REGISTERS * self.halves > REGISTERS[self.consumers][2]:
            return "products of both halves at once want more registers"
        if self.half_sums + INSTRUCTION_REGISTERS > self.launch_registers:
            return f"an instruction of more than {self.launch_registers} registers"
        return None

    # Blocks that share tiles

    @property
    def turns(self) -> int:
        return self.iterations

    @property
    def unit_turns(self) -> int:
        if not self.grouped:
            return 1
        return math.lcm(self.stage_units, self.group_units) // self.stage_units

    # Who has what

    @cached_property
    def registers(self) -> int:
        """An estimate for a thread that multiplies: accumulators, words, fragments, addresses."""
        sums = self.accumulators * (2 if self.grouped else 1)
        words = self.weights.chunk_words * (2 if self.stage_chunks > 1 else 1)
        has_sums, has_zeros = self.weights.has_sums, self.weights.has_zeros
        groups = rows = 0
        if self.grouped:  # of this group and the next one; and what zero points need of every row
            groups = 4 * self.halves * (1 + has_sums + has_zeros)
            if self.stage_units > self.group_units:  # several end in a stage
                groups *= 2
            if self.weights.lane_bits == 8:
                rows = self.schedule.block_m // 4 * (has_sums + 3 * has_zeros)
            if self.halves == 2 and not self.weights.format.in_digits:
                groups += PART_REGISTERS * (len(self.weights.parts) - 1)
        return sums + words + 8 * self.halves + groups + rows + 8

    # One stage

    @property
    def atom_bytes(self) -> int:
        """Of a row of an atom: as many as divide a stage's row."""
        return next(size for size in SWIZZLES if self.stage_row_bytes % size == 0)

    @property
    def atoms(self) -> int:
        """Of a stage, along K."""
        return self.stage_row_bytes // self.atom_bytes

    @property
    def swizzle(self) -> Swizzle:
        return row_swizzle(self.atom_bytes)

    @cached_property
    def rows_bytes(self) -> int:
        return self.schedule.block_m * self.stage_row_bytes

    @cached_property
    def weights_bytes(self) -> int:
        """Of all tiles of a stage."""
        return self.block_tiles * self.stage_tile_bytes

    @property
    def counted_bytes(self) -> int:
        """Of a stage, that report to its barrier as they arrive."""
        return self.weights_bytes + (self.rows_bytes if self.schedule.boxes else 0)

    @cached_property
    def stage_bytes(self) -> int:
        return align(self.rows_bytes + self.weights_bytes, STAGE_ALIGNMENT)

    @property
    def barriers_offset(self) -> int:
        return self.schedule.stages * self.stage_bytes

    @cached_property
    def shared_bytes(self) -> int:
        return self.barriers_offset + 2 * self.schedule.stages * BARRIER_BYTES

    @property
    def k_steps(self) -> int:
        """Instructions along K of a unit."""
        return self.unit_bytes // STEP_BYTES

    def step_offset(self, step: int) -> int:
        """Of a stage's K step in its rows: the atom, and where in it."""
        atom, inside = divmod(step * STEP_BYTES, self.atom_bytes)
        return atom * self.schedule.block_m * self.atom_bytes + inside

    @cached_property
    def pieces(self) -> int:
        """16-byte pieces of a stage's rows that a copying thread has."""
        return -(-self.rows_bytes // PIECE_BYTES // PRODUCERS)


assert all(ATOM_ROWS * size <= STAGE_ALIGNMENT for size in SWIZZLES)
assert TILE_COLUMNS == 2 * ROWS // WARPGROUP_WARPS
