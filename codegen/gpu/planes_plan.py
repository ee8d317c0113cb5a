"""How a block of the strategy `planes` is cut into MMAs.

MMA rows (16) are columns of the weight. MMA columns (8) are pairs of a token and a bit of its
codes, ABQ-LLM's way to fill a tile with few tokens (Zeng et al., "ABQ-LLM", 2024): `tokens` times
`bits` of them make 8, so that one token of 8 bits, two of 4 or eight of 1 bit fill a tile. Lane
4 g + t holds the counts of weight columns g and g + 8 for MMA columns 2 t and 2 t + 1:

    MMA column c:  token c / bits, bit c % bits
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ..strategy import MatmulSpec
from .arch import WARP, GpuArch
from .planes_layout import (
    STEP,
    TILE_COLUMNS,
    UNIT,
    PlaneRows,
    PlaneWeights,
    offset,
    plane_weights,
)
from .schedule import Schedule

MMA_COLUMNS = 8
FORM = "b1.m16n8k256"
ADDRESSES = 40  # registers beside fragments and sums
MOST_REGISTERS = 120
MOST_PRODUCTS = 96  # MMAs, and accumulators that are scaled, of a warp's unrolled block of K


@dataclass(frozen=True)
class Segment:
    """One MMA of a warp's part of a block: a step (two units), one unit, or the bits `mask` of the
    words of one unit; `group` is counted from the warp's first one."""

    step: int
    unit: int | None
    mask: int
    group: int


@dataclass(frozen=True)
class PlanesPlan:
    """One kernel: what it multiplies and how it is cut."""

    spec: MatmulSpec
    schedule: Schedule

    @cached_property
    def rows(self) -> PlaneRows:
        return PlaneRows.of(self.spec)

    @cached_property
    def weight(self) -> PlaneWeights:
        return PlaneWeights.of(self.spec)

    @property
    def row_planes(self) -> int:
        return self.rows.format.bits

    @property
    def weight_planes(self) -> int:
        return self.weight.format.bits

    @cached_property
    def row_weights(self) -> tuple[int, ...]:
        return plane_weights(self.rows.format)

    @cached_property
    def weight_weights(self) -> tuple[int, ...]:
        return plane_weights(self.weight.format)

    @property
    def row_offset(self) -> int:
        """What is taken from the planes' value of an activation beside its zero point."""
        return offset(self.rows.format)

    @property
    def weight_offset(self) -> int:
        return offset(self.weight.format)

    # Tiles of a warp

    @property
    def warp_tokens(self) -> int:
        return self.schedule.block_m // self.schedule.warps_m

    @property
    def tokens(self) -> int:
        """Of an MMA."""
        return min(MMA_COLUMNS, self.warp_tokens)

    @property
    def bits(self) -> int:
        """Of a token in one MMA."""
        return MMA_COLUMNS // self.tokens

    @property
    def bit_tiles(self) -> int:
        return -(-self.row_planes // self.bits)

    @property
    def token_tiles(self) -> int:
        return self.warp_tokens // self.tokens

    @property
    def block_tiles(self) -> int:
        """Tiles of 16 weight columns."""
        return self.schedule.block_n // TILE_COLUMNS

    @property
    def warp_tiles(self) -> int:
        return self.block_tiles // self.schedule.warps_n

    @property
    def lane_tokens(self) -> int:
        """Tokens of an MMA of which a lane has results, once bits are added up."""
        return 2 if self.bits == 1 else 1

    # K

    @property
    def groups(self) -> int:
        return self.weight.grouped.groups

    @property
    def one_group(self) -> bool:
        return self.groups == 1

    @property
    def block_steps(self) -> int:
        return self.schedule.block_k // STEP

    @property
    def warp_steps(self) -> int:
        """Steps of a block that one warp takes."""
        return self.block_steps // self.schedule.warps_k

    @property
    def k_blocks(self) -> int:
        return -(-self.weight.steps // self.block_steps)

    @property
    def ragged(self) -> bool:
        """Whether the last block of K reaches beyond the operands."""
        return self.k_blocks * self.block_steps != self.weight.steps

    @property
    def group_pitch(self) -> int:
        return self.weight.grouped.padded_group

    @property
    def whole_groups(self) -> bool:
        """Whether a warp's part of a block of K is one or several whole groups, not part of one."""
        return not self.one_group and self.warp_steps * STEP % self.group_pitch == 0

    @property
    def warp_groups(self) -> int:
        """Groups of a warp's part of a block, where they are whole."""
        return self.warp_steps * STEP // self.group_pitch

    @property
    def blocks_per_group(self) -> int:
        """Blocks of K of a group, where they are parts of it."""
        return self.group_pitch // self.schedule.block_k

    @property
    def split_unit(self) -> int:
        """Blocks of K that one split does not share with another."""
        return 1 if self.one_group or self.whole_groups else self.blocks_per_group

    @property
    def split_blocks(self) -> int:
        """Blocks of K of a split, the last ones excepted."""
        units = -(-self.k_blocks // self.split_unit)
        return -(-units // self.schedule.split) * self.split_unit

    def segments(self) -> Iterator[Segment]:
        """The MMAs along K of a warp's part of a block, for one pair of planes."""
        pitch, whole = self.group_pitch, 0xFFFFFFFF
        for step in range(self.warp_steps):
            if not self.whole_groups:
                yield Segment(step, None, whole, 0)
            elif pitch >= STEP:
                yield Segment(step, None, whole, step * STEP // pitch)
            else:
                yield from self._parts(step, pitch)

    def _parts(self, step: int, pitch: int) -> Iterator[Segment]:
        """Groups that are a unit or less of a step."""
        width = 32 * pitch // UNIT  # bits of each word
        for unit in range(2):
            for part in range(UNIT // pitch):
                mask = ((1 << width) - 1) << (part * width)
                yield Segment(step, unit, mask, ((step * 2 + unit) * UNIT) // pitch + part)

    # Shared memory

    @property
    def weight_stage_bytes(self) -> int:
        return self.block_tiles * self.block_steps * self.weight.step_bytes

    @property
    def row_stage_bytes(self) -> int:
        return self.schedule.block_m * self.schedule.block_k // UNIT * self.rows.unit_bytes

    @property
    def stage_bytes(self) -> int:
        return self.weight_stage_bytes + self.row_stage_bytes

    @property
    def lane_values(self) -> int:
        """Results of a lane."""
        return self.token_tiles * self.warp_tiles * 2 * self.lane_tokens

    @property
    def meeting_bytes(self) -> int:
        """For the sums of warps that share a block's results."""
        schedule = self.schedule
        warps = (schedule.warps_k - 1) * schedule.warps_m * schedule.warps_n
        return 4 * WARP * warps * self.lane_values

    @property
    def shared_bytes(self) -> int:
        return max(self.schedule.stages * self.stage_bytes, self.meeting_bytes)

    # What is possible

    @property
    def registers(self) -> int:
        """Of a lane: fragments of a group's part of a block, sums; addresses come on top."""
        steps = self.warp_steps
        if self.whole_groups:
            steps = max(1, self.group_pitch // STEP)
        tiles = self.token_tiles * self.warp_tiles
        row_tiles = self.token_tiles * self.bit_tiles
        fragments = steps * (2 * row_tiles + 4)
        sums = 4 * row_tiles + 4 * tiles + (0 if self.one_group else self.lane_values)
        return fragments + sums

    @property
    def products(self) -> int:
        """MMAs of a warp's part of a block."""
        pairs = self.bit_tiles * self.weight_planes
        tiles = self.token_tiles * self.warp_tiles
        parts = max(1, STEP // self.group_pitch) if self.whole_groups else 1
        return self.warp_steps * parts * pairs * tiles

    def problem(self, arch: GpuArch) -> str | None:
        """Why this schedule cannot run on `arch`, or None."""
        schedule, pitch = self.schedule, self.group_pitch
        if self.shared_bytes > arch.shared_per_block:
            return "not enough shared memory"
        used = self.registers + ADDRESSES
        if used > MOST_REGISTERS or schedule.threads * used > arch.registers_per_sm:
            return "not enough registers"
        scaled = self.warp_groups * self.lane_values if self.whole_groups else 0
        if max(self.products, scaled) > MOST_PRODUCTS:
            return "too much code"
        parted = not self.one_group and not self.whole_groups
        if parted and (schedule.warps_k > 1 or pitch % schedule.block_k):
            return "groups do not fit the blocks of K"
        if schedule.split > 1 and (schedule.split - 1) * self.split_blocks >= self.k_blocks:
            return "a split would have nothing to do"
        return None
