"""What a schedule makes of layouts: shared memory, turns of the K loop, where groups end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from abqc.codegen.gpu.layout.swizzle import Swizzle, row_swizzle

from ..arch import GpuArch
from ..matmul.block_order import group_rows
from ..matmul.schedule import Schedule
from ..packing.layout import K_UNIT
from ..weights.layout import BLOCKS, TILE_COLUMNS, WeightLayout

MMA_ROWS = 16
PIECE_BYTES = 16  # of a copy to shared memory

FlushKind = Literal["never", "sometimes", "always"]


@dataclass(frozen=True)
class TilePlan:
    """The static geometry of a tile kernel.

    A *stage* is what one turn of the K loop works on: `block_k` codes of `block_m` rows and of
    `block_n` columns, in one of `stages` buffers of shared memory; rows first, swizzled, then the
    weights, tile by tile as they are in global memory.
    """

    weights: WeightLayout
    schedule: Schedule
    row_bytes: int
    code_bytes: int

    def problem(self, arch: GpuArch) -> str | None:
        """Why this plan cannot run on `arch`; None if it can."""
        s = self.schedule
        if s.block_k % (K_UNIT * self.weights.chunk_units):
            return f"block_k is no multiple of {K_UNIT * self.weights.chunk_units}"
        if s.block_m % (s.warps_m * MMA_ROWS) or s.block_n % (s.warps_n * TILE_COLUMNS):
            return "warps do not divide the tile"
        if s.warps_k != 1 or s.stages < 2:
            return "a tile kernel has at least two stages, and one warp along K"
        if self.split_iterations * (s.split - 1) >= self.iterations:
            return "there is less K than splits"
        if self.shared_bytes > arch.shared_per_block:
            return f"{self.shared_bytes} bytes of shared memory"
        registers = self.registers + (0 if arch.cp_async else self.pieces * PIECE_BYTES // 4)
        if registers > min(arch.registers_per_thread, arch.registers_per_sm // s.threads):
            return f"about {registers} registers"
        return None

    # One stage

    @property
    def unit_bytes(self) -> int:
        """Of a unit of one activation row: one or two k-steps of 32 bytes."""
        return K_UNIT * self.weights.lane_bits // 8

    @cached_property
    def stage_units(self) -> int:
        return self.schedule.block_k // K_UNIT

    @cached_property
    def stage_chunks(self) -> int:
        return self.stage_units // self.weights.chunk_units

    @cached_property
    def stage_row_bytes(self) -> int:
        """Of one activation row."""
        return self.stage_units * self.unit_bytes

    @property
    def pitch(self) -> int:
        """From one row of the stage to the next one in shared memory; a power of two."""
        return 1 << (self.stage_row_bytes - 1).bit_length()

    @property
    def swizzle(self) -> Swizzle:
        """Of the rows' byte offsets in a stage."""
        return row_swizzle(self.pitch)

    @cached_property
    def rows_bytes(self) -> int:
        """Of all rows of a stage."""
        return self.schedule.block_m * self.pitch

    @cached_property
    def stage_tile_bytes(self) -> int:
        """Of one tile of the weight."""
        return self.stage_chunks * self.weights.chunk_bytes

    @cached_property
    def block_tiles(self) -> int:
        """Tiles of the weight that a block works on."""
        return self.schedule.block_n // TILE_COLUMNS

    @cached_property
    def stage_bytes(self) -> int:
        return self.rows_bytes + self.block_tiles * self.stage_tile_bytes

    @cached_property
    def shared_bytes(self) -> int:
        return self.schedule.stages * self.stage_bytes

    @cached_property
    def group_m(self) -> int:
        """Rows of blocks of a group (matmul/block_order.py)."""
        s = self.schedule
        return group_rows(s.block_m * self.weights.lane_bits, s.block_n * self.weights.bits)

    # A warp

    @property
    def row_blocks(self) -> int:
        """Blocks of 16 rows of a warp."""
        return self.schedule.block_m // self.schedule.warps_m // MMA_ROWS

    @property
    def warp_tiles(self) -> int:
        return self.block_tiles // self.schedule.warps_n

    @property
    def column_blocks(self) -> int:
        """Blocks of 8 columns of a warp."""
        return self.warp_tiles * BLOCKS

    @cached_property
    def accumulators(self) -> int:
        """Of a thread."""
        return 4 * self.row_blocks * self.column_blocks

    @property
    def registers(self) -> int:
        """An estimate for a thread: accumulators, fragments, chunks of words, addresses; and a
        quarter more of what the assembler moves ahead (it spills nothing below the limit)."""
        sums = self.accumulators * (2 if self.grouped else 1)
        has_sums, has_zeros = self.weights.has_sums, self.weights.has_zeros
        if self.grouped:  # what zero points need of every row
            sums += 2 * self.row_blocks * (has_sums + has_zeros)
        if self.stage_units > self.group_units:  # columns of groups that end in one stage
            sums += self.column_blocks * (1 + 2 * has_sums + has_zeros)
        words = self.weights.chunk_words
        if self.stage_chunks > 1:  # some of the next chunk's are loaded ahead
            words += words // 2
        fragments = 4 * self.row_blocks + words * self.warp_tiles
        constants = self.weights.lane_bits // 2
        moved = fragments + 2 * self.pieces + constants + 28
        if self.grouped:  # ends of groups are moved among products
            return (moved + sums) * 5 // 4
        # Units of a chunk are decoded while others are multiplied; halves by a mask for each place
        # of a code in 16 bits.
        moved += 8 * self.weights.chunk_units - 5
        masks = 16 // self.weights.bits if self.weights.lane_bits == 16 else 0
        return sums + (moved + masks) * 5 // 4

    @cached_property
    def pieces(self) -> int:
        """16-byte pieces of a stage that a thread copies, each with an address."""
        threads = self.schedule.threads
        rows = self.schedule.block_m * self.stage_row_bytes // PIECE_BYTES
        tiles = self.block_tiles * self.stage_tile_bytes // PIECE_BYTES
        return -(-rows // threads) + -(-tiles // threads)

    # The K loop

    @cached_property
    def grouped(self) -> bool:
        """Whether accumulators are scaled and added up group by group."""
        return self.weights.grouped.groups > 1

    @property
    def group_units(self) -> int:
        return self.weights.grouped.group_units

    @cached_property
    def iterations(self) -> int:
        """Turns of the K loop, of all splits together."""
        return -(-self.weights.grouped.units // self.stage_units)

    @property
    def split_iterations(self) -> int:
        """Turns of one split (the last may have fewer): whole groups, if there are several."""
        turns = -(-self.iterations // self.schedule.split)
        if not self.grouped:
            return turns
        whole = math.lcm(self.stage_units, self.group_units) // self.stage_units
        return -(-turns // whole) * whole

    @property
    def split_groups(self) -> int:
        """Groups of one split."""
        return self.split_iterations * self.stage_units // self.group_units

    def flush(self, unit: int) -> FlushKind:
        """Whether a group may end after this unit of a stage."""
        if not self.grouped:
            return "never"
        if self.stage_units % self.group_units == 0:
            return "always" if (unit + 1) % self.group_units == 0 else "never"
        return "sometimes" if (unit + 1) % self.flush_step == 0 else "never"

    @property
    def flush_step(self) -> int:
        """Units between places where a group may end."""
        return math.gcd(self.stage_units, self.group_units)

    @property
    def runs_over(self) -> bool:
        """Whether the last turn has units of groups that do not exist."""
        groups = -(-self.iterations * self.stage_units // self.group_units)
        return self.grouped and groups > self.weights.grouped.groups

    @property
    def ends_inside(self) -> bool:
        """Whether the last turn ends before its group does."""
        return self.grouped and self.iterations * self.stage_units % self.group_units != 0
