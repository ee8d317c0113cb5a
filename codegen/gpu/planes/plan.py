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
from functools import cached_property, lru_cache

from abqc.codegen.strategy import MatmulSpec

from ..arch import WARP, GpuArch
from ..magic import MAGIC_RANGE
from ..matmul.block_order import group_rows
from ..matmul.schedule import Schedule
from ..packing.layout import align
from .chain import Chain, PairsByPower
from .layout import (
    HALVES,
    STEP,
    TILE_COLUMNS,
    UNIT,
    PlaneRows,
    PlaneWeights,
    offset,
    plane_weights,
    reach,
)
from .row_pieces import RowPieces

MMA_COLUMNS = 8
FORM = "b1.m16n8k256"
ADDRESSES = 40  # registers beside operands and sums
MOST_REGISTERS = 164
AHEAD, AHEAD_STEP = 14, 7  # for what ptxas moves ahead, where groups end in several steps
MOST_INSTRUCTIONS = 1600  # of a block of K, which is unrolled

# Instructions for a record of factors, for 16 copied bytes, and for a turn of the loop beside.
RECORD, COPY, TURN = 5, 5, 45


# What a bit tile of the rows counts for, where its columns are tokens; else 1.
Planes = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]  # of planes of the weight; of tiles


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

    @cached_property
    def row_planes(self) -> int:
        return self.rows.format.bits

    @cached_property
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

    @cached_property
    def chains(self) -> list[Chain]:
        """All pairs of planes where an MMA column is a token; else, as its columns are bits of
        different values, those of each bit tile by themselves."""
        if self.bits == 1:
            return [self._chain(list(range(self.bit_tiles)))]
        return [self._chain([tile]) for tile in range(self.bit_tiles)]

    def _chain(self, bit_tiles: list[int]) -> Chain:
        """That of all pairs, by whichever way is shorter."""
        return _shorter_chain(*self._planes(bit_tiles), self.group_units)

    def _pairs(self, bit_tiles: list[int]) -> Chain:
        """Each pair of planes once."""
        return _pairs_of(*self._planes(bit_tiles))

    def _planes(self, bit_tiles: list[int]) -> Planes:
        rows = [self.row_weights[tile] if self.bits == 1 else 1 for tile in bit_tiles]
        return self.weight_weights, tuple(zip(bit_tiles, rows, strict=True))

    @property
    def group_units(self) -> int:
        """Units of K whose products are counted together."""
        if not self.whole_groups:
            return 2 * self.warp_steps
        return max(1, self.group_pitch // UNIT)

    @property
    def by_magic(self) -> bool:
        """Whether groups' sums begin at MAGIC_BITS (magic.py): they are of whole groups, each in
        one lane, and surely in range."""
        largest = reach(self.weight.format) * reach(self.rows.format)
        fits = 4 * largest * self.weight.grouped.group_size < MAGIC_RANGE  # before corrections too
        return self.whole_groups and self.bits == 1 and fits

    # Tiles of a warp

    @property
    def warp_tokens(self) -> int:
        return self.schedule.block_m // self.schedule.warps_m

    @cached_property
    def tokens(self) -> int:
        """Of an MMA."""
        return min(MMA_COLUMNS, self.warp_tokens)

    @cached_property
    def bits(self) -> int:
        """Of a token in one MMA."""
        return MMA_COLUMNS // self.tokens

    @cached_property
    def bit_tiles(self) -> int:
        return -(-self.row_planes // self.bits)

    @cached_property
    def token_tiles(self) -> int:
        return self.warp_tokens // self.tokens

    @property
    def block_tiles(self) -> int:
        """Tiles of 16 weight columns."""
        return self.schedule.block_n // TILE_COLUMNS

    @cached_property
    def warp_tiles(self) -> int:
        return self.block_tiles // self.schedule.warps_n

    @property
    def lane_tokens(self) -> int:
        """Tokens of an MMA of which a lane has results, once bits are added up."""
        return 2 if self.bits == 1 else 1

    @cached_property
    def group_m(self) -> int:
        """Rows of blocks of a group (matmul/block_order.py)."""
        s = self.schedule
        return group_rows(s.block_m * self.row_planes, s.block_n * self.weight_planes)

    # K

    @cached_property
    def groups(self) -> int:
        return self.weight.grouped.groups

    @cached_property
    def one_group(self) -> bool:
        return self.groups == 1

    @property
    def block_steps(self) -> int:
        return self.schedule.block_k // STEP

    @cached_property
    def warp_steps(self) -> int:
        """Steps of a block that one warp takes."""
        return self.block_steps // self.schedule.warps_k

    @cached_property
    def k_blocks(self) -> int:
        return -(-self.weight.steps // self.block_steps)

    @property
    def ragged(self) -> bool:
        """Whether the last block of K reaches beyond the operands."""
        return self.k_blocks * self.block_steps != self.weight.steps

    @cached_property
    def group_pitch(self) -> int:
        return self.weight.grouped.padded_group

    @cached_property
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

    @cached_property
    def split_unit(self) -> int:
        """Blocks of K that one split does not share with another."""
        return 1 if self.one_group or self.whole_groups else self.blocks_per_group

    @property
    def split_blocks(self) -> int:
        """Blocks of K of a split, the last ones excepted."""
        units = -(-self.k_blocks // self.split_unit)
        return -(-units // self.schedule.split) * self.split_unit

    @property
    def few_blocks(self) -> bool:
        """Whether all of a split fit the stages at once."""
        return self.split_blocks <= self.schedule.stages

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

    @cached_property
    def groups_by_steps(self) -> list[dict[int, list[Segment]]]:
        """The segments of each group; groups of the same step together."""
        by_first: dict[int, dict[int, list[Segment]]] = {}
        first: dict[int, int] = {}
        for segment in self.segments():
            step = first.setdefault(segment.group, segment.step)
            by_first.setdefault(step, {}).setdefault(segment.group, []).append(segment)
        return list(by_first.values())

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

    @cached_property
    def row_pieces(self) -> RowPieces:
        """Rows in a stage."""
        return RowPieces(self.schedule.block_m, 2 * self.block_steps * self.row_planes)

    @property
    def block_groups(self) -> int:
        """Groups whose records a stage holds: those of a block of K, where they are whole."""
        return self.warp_groups * self.schedule.warps_k if self.whole_groups else 0

    @property
    def record_stage_bytes(self) -> int:
        return self.block_tiles * self.block_groups * self.weight.record_bytes

    @property
    def row_sum_stage_bytes(self) -> int:
        """Of the rows' sums of these groups, where packed rows have them."""
        return 4 * self.schedule.block_m * self.block_groups * self.rows.has_sums

    @property
    def records_offset(self) -> int:
        """Of the records in a stage, behind the operands."""
        return self.weight_stage_bytes + self.row_stage_bytes

    @property
    def row_sums_offset(self) -> int:
        return self.records_offset + self.record_stage_bytes

    @cached_property
    def stage_bytes(self) -> int:
        return align(self.row_sums_offset + self.row_sum_stage_bytes, 16)

    @cached_property
    def lane_values(self) -> int:
        """Results of a lane."""
        return self.token_tiles * self.warp_tiles * 2 * self.lane_tokens

    @property
    def meeting_bytes(self) -> int:
        """For the sums of warps that share a block's results."""
        schedule = self.schedule
        warps = (schedule.warps_k - 1) * schedule.warps_m * schedule.warps_n
        return 4 * WARP * warps * self.lane_values

    @cached_property
    def shared_bytes(self) -> int:
        return max(self.schedule.stages * self.stage_bytes, self.meeting_bytes)

    # What is possible

    @cached_property
    def registers(self) -> int:
        """Of a lane: operands of a group's part of a block, sums; addresses come on top."""
        steps = self.warp_steps
        if self.whole_groups:
            steps = max(1, self.group_pitch // STEP)
        signs = 1 + any(chain.negative for chain in self.chains)
        of_rows = self.token_tiles * self.bit_tiles
        operands = steps * (2 * of_rows + 4 * self.weight_planes)
        if self.whole_groups and self.group_pitch < UNIT:
            operands += of_rows * UNIT // self.group_pitch  # masked for several groups at once
        sums = 4 * self.token_tiles * (signs + (self.bit_tiles if self.bits > 1 else 0))
        kept = 0 if self.whole_groups else 4 * self.token_tiles * self.warp_tiles
        if not self.one_group:
            each = self.token_tiles * self.lane_tokens  # zero points and sums of rows
            kept += self.lane_values + each * (1 + 2 * self.rows.has_sums)
        parts = len(self.groups_by_steps)
        ahead = AHEAD + AHEAD_STEP * parts if parts > 1 else 0
        return operands + sums + kept + ahead

    @cached_property
    def products(self) -> int:
        """MMAs of a warp's part of a block."""
        pairs = sum(chain.products for chain in self.chains)
        tiles = self.token_tiles * self.warp_tiles
        parts = max(1, STEP // self.group_pitch) if self.whole_groups else 1
        return self.warp_steps * parts * pairs * tiles

    @cached_property
    def sum_instructions(self) -> int:
        """What a lane does with the counts of a group's part of a block, in all its tiles: doubles
        and weighs them, ends groups (read from the machine code for sm_90a)."""
        each = 4 * sum(chain.steps for chain in self.chains)
        each += 4 * len(self.chains) if self.bits > 1 else 0
        values = HALVES * self.lane_tokens
        if self.bits > 1:
            each += values * (1 + 2 * (self.bits.bit_length() - 2))
        if self.whole_groups:
            each += values * (3 if self.by_magic else 5) + values * self.rows.has_sums
        else:
            each += 4
        return each * self.token_tiles * self.warp_tiles

    @cached_property
    def instructions(self) -> int:
        """Of a warp, for a block of K."""
        groups = self.warp_groups if self.whole_groups else 1
        loads = self.warp_steps * self.token_tiles * self.bit_tiles
        loads += self.warp_steps * self.warp_tiles * self.weight_planes
        records = RECORD * groups * self.warp_tiles if self.whole_groups else 0
        copies = COPY * self.stage_bytes // (16 * self.schedule.threads)
        sums = groups * self.sum_instructions
        return self.products + loads + records + copies + sums + TURN

    def problem(self, arch: GpuArch) -> str | None:
        """Why this schedule cannot run on `arch`, or None."""
        schedule, pitch = self.schedule, self.group_pitch
        if self.shared_bytes > arch.shared_per_block:
            return "not enough shared memory"
        used = self.registers + ADDRESSES
        if used > MOST_REGISTERS or schedule.threads * used > arch.registers_per_sm:
            return "not enough registers"
        if self.instructions > MOST_INSTRUCTIONS:
            return "too much code"
        parted = not self.one_group and not self.whole_groups
        if parted and (schedule.warps_k > 1 or pitch % schedule.block_k):
            return "groups do not fit the blocks of K"
        if schedule.split > 1 and (schedule.split - 1) * self.split_blocks >= self.k_blocks:
            return "a split would have nothing to do"
        return None


@lru_cache(maxsize=1024)
def _pairs_of(weights: tuple[int, ...], rows: tuple[tuple[int, int], ...]) -> Chain:
    """Each pair of a plane and a bit tile once."""
    positive: PairsByPower = {}
    negative: PairsByPower = {}
    for plane, weight in enumerate(weights):
        for tile, of_row in rows:
            value = weight * of_row
            power = abs(value).bit_length() - 1
            (positive if value > 0 else negative).setdefault(power, []).append((plane, tile))
    return Chain(positive, negative)


@lru_cache(maxsize=1024)
def _shorter_chain(
    weights: tuple[int, ...], rows: tuple[tuple[int, int], ...], units: int
) -> Chain:
    """Of so many units of K."""
    chain = _pairs_of(weights, rows)
    return min(chain, chain.by_four(), key=lambda c: c.cost(units))
