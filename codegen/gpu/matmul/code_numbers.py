"""What the machine code of kernels depends on, for `costmodel/assembly.py`.

The numbers are those of the kernels' plans, under the same names; those of one family have all the
same names. `instructions` is what the plan reckons with for `work`, a turn of its main loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from abqc.codegen.strategy import MatmulSpec
from abqc.costmodel.assembly import KernelCode

from ..few_rows.plan import MMA_ROWS, RowsPlan
from ..packing.layout import Activation, Int8Rows
from ..planes.layout import STEP
from ..planes.mma import WHOLE
from ..planes.plan import ADDRESSES, PlanesPlan
from ..tiles.int8_arithmetic import Int8Arithmetic, largest
from ..tiles.plan import PIECE_BYTES, TilePlan
from ..weights import issue_counts
from ..weights.layout import WeightLayout
from .schedule import Schedule

MANY = 64  # units of a group: more make no difference to the code
FEW = 4  # turns of a loop, and groups: likewise
UNROLLED = 64  # turns of a loop that LLVM unrolls where it knows how many there are, at most


@lru_cache(maxsize=256)
def _weight_numbers(spec: MatmulSpec, activation: Activation) -> Mapping[str, float]:
    """Of the formats, the same for all schedules."""
    layout = WeightLayout.of(spec)
    unsigned = activation == "int8" and Int8Rows.of(spec).unsigned
    return {
        "bits": layout.bits,
        "parts": len(layout.parts),
        "lane_bits": layout.lane_bits,
        "indexed": layout.format.indexed,
        "in_digits": layout.format.in_digits,
        "has_zeros": layout.has_zeros,
        "has_sums": layout.has_sums,
        "scale_bytes": layout.scale_bytes,
        "bf16": activation == "bf16",
        "codes": spec.activation is not None,
        "largest_code": largest(spec.activation.format) if spec.activation is not None else 0,
        "sum_bytes": layout.sum_bytes if layout.has_sums else 0,
        "unsigned": unsigned,
        "groups": min(layout.grouped.groups, FEW),
        "more_groups": min(layout.grouped.groups, UNROLLED),
        "group_units": min(layout.grouped.group_units, MANY) if layout.grouped.groups > 1 else 0,
        "ragged_k": layout.grouped.padded_k != spec.k,
        "chunk_units": layout.chunk_units,
        "chunk_loads": layout.chunk_loads,
        "ragged_chunks": layout.grouped.units % layout.chunk_units,
        "decode": issue_counts.decode(layout),
    }


def _schedule_numbers(schedule: Schedule) -> dict[str, float]:
    return {
        "warps": schedule.threads // 32,
        "warps_m": schedule.warps_m,
        "warps_n": schedule.warps_n,
        "warps_k": schedule.warps_k,
        "stages": schedule.stages,
        "is_split": schedule.split > 1,
    }


def rows_code(spec: MatmulSpec, schedule: Schedule, activation: Activation) -> KernelCode:
    """Of few_rows/."""
    plan = RowsPlan(WeightLayout.of(spec), schedule)
    turns = -(-plan.run // plan.ahead)
    by_mma = schedule.block_m == MMA_ROWS
    units = plan.ahead * plan.layout.chunk_units
    ends = [plan.ends_group(unit) for unit in range(units)]
    instructions = issue_counts.rows_unit(plan.layout, schedule.block_m, by_mma)
    return KernelCode(
        "rows",
        {
            **_weight_numbers(spec, activation),
            **_schedule_numbers(schedule),
            "rows": schedule.block_m,
            "ahead": plan.ahead,
            "turn_units": units,
            "words": plan.ahead * plan.layout.chunk_words,
            "turns": min(turns, FEW),
            "more_turns": min(turns, UNROLLED),
            "always_ends": ends.count("always"),
            "maybe_ends": ends.count("maybe"),
            "guarded": plan.guarded,
            "even": plan.even,
            "step": min(plan.step, MANY),
            "products": units * schedule.block_m,
            "instructions": instructions * units,
        },
        schedule.threads,
        plan.registers,
    )


def tile_code(spec: MatmulSpec, plan: TilePlan, activation: Activation) -> KernelCode:
    """Of tiles/."""
    layout = plan.weights
    ends = plan.stage_units / plan.group_units if plan.grouped else 0.0
    flushes = [plan.flush(unit) for unit in range(plan.stage_units)]
    is_split, threads = plan.schedule.split > 1, plan.schedule.threads
    row_pieces = plan.rows_bytes // plan.pitch * plan.stage_row_bytes // PIECE_BYTES
    weight_pieces = plan.block_tiles * plan.stage_tile_bytes // PIECE_BYTES
    return KernelCode(
        "tile",
        {
            **_weight_numbers(spec, activation),
            **_schedule_numbers(plan.schedule),
            "planned_registers": plan.registers,
            "accumulators": plan.accumulators,
            "sums": plan.accumulators * (2 if plan.grouped else 1),
            "words": layout.chunk_words * plan.warp_tiles,
            "fragments": 4 * plan.row_blocks + layout.chunk_words * plan.warp_tiles,
            "shared_blocks": plan.shared_bytes // 1024,
            "row_blocks": plan.row_blocks,
            "column_blocks": plan.column_blocks,
            "stage_units": plan.stage_units,
            "stage_chunks": plan.stage_chunks,
            "pitch": plan.pitch,
            "pieces": plan.pieces,
            "turns": min(plan.split_iterations, FEW),
            "more_turns": min(plan.split_iterations, UNROLLED),
            "known_turns": 0 if is_split else min(plan.split_iterations, UNROLLED),
            "ends": ends,
            "always_ends": flushes.count("always"),
            "maybe_ends": flushes.count("sometimes"),
            "by_magic": activation == "int8" and Int8Arithmetic(spec).by_magic,
            "rows_tail": plan.code_bytes % plan.stage_row_bytes != 0,
            "weight_tail": layout.chunks % plan.stage_chunks != 0,
            "row_pieces": row_pieces / threads,
            "weight_pieces": weight_pieces / threads,
            "guarded": (row_pieces % threads != 0) + (weight_pieces % threads != 0),
            "group_m": plan.group_m,
            "runs_over": plan.runs_over,
            "ends_inside": plan.ends_inside,
            "decoded": plan.stage_units * plan.column_blocks * issue_counts.decode(layout),
            "products": plan.row_blocks * plan.column_blocks * plan.stage_row_bytes / 32,
            "instructions": issue_counts.tile_stage(plan),
        },
        plan.schedule.threads,
    )


def planes_code(plan: PlanesPlan) -> KernelCode:
    """Of planes/."""
    threads, schedule = plan.schedule.threads, plan.schedule
    turns = UNROLLED if plan.few_blocks else plan.split_blocks  # the same code as of many
    pieces = (
        plan.weight_stage_bytes // PIECE_BYTES,
        plan.row_pieces.tokens * plan.row_pieces.per_token,
        plan.record_stage_bytes // PIECE_BYTES,
    )
    segments = list(plan.segments())
    within = not (plan.one_group or plan.whole_groups)
    return KernelCode(
        "planes",
        {
            **_schedule_numbers(plan.schedule),
            "weight_planes": plan.weight_planes,
            "row_planes": plan.row_planes,
            "weight_offset": plan.weight_offset,
            "row_offset": plan.row_offset,
            "has_zeros": plan.weight.has_zeros,
            "has_sums": plan.rows.has_sums,
            "scale_bytes": plan.weight.scale_bytes,
            "groups": min(plan.groups, FEW),
            "group_pitch": 0 if plan.one_group else min(plan.group_pitch, 32 * MANY),
            "whole_groups": plan.whole_groups,
            "warp_groups": plan.warp_groups if plan.whole_groups else 0,
            "by_magic": plan.by_magic,
            "more_groups": min(plan.groups, UNROLLED),
            "group_blocks": min(plan.blocks_per_group, UNROLLED) if within else 0,
            "beyond": plan.k_blocks * schedule.block_k > plan.groups * plan.group_pitch,
            "record_bytes": plan.weight.record_bytes,
            "row_sum_bytes": plan.row_sum_stage_bytes,
            "weight_pieces": pieces[0] / threads,
            "row_pieces": pieces[1] / threads,
            "record_pieces": pieces[2] / threads,
            "guarded": sum(count % threads != 0 for count in pieces),
            "piece_period": plan.row_pieces.period,
            "group_m": plan.group_m,
            "parts": len(plan.groups_by_steps),
            "segments": len(segments),
            "masked": sum(segment.mask != WHOLE for segment in segments),
            "bits": plan.bits,
            "spare_bits": plan.bits * plan.bit_tiles - plan.row_planes,
            "positive": sum(len(p) for c in plan.chains for p in c.positive.values()),
            "powers": sum(len(chain.powers) for chain in plan.chains),
            "tokens": plan.tokens,
            "token_tiles": plan.token_tiles,
            "bit_tiles": plan.bit_tiles,
            "warp_tiles": plan.warp_tiles,
            "warp_steps": plan.warp_steps,
            "chains": len(plan.chains),
            "chain_steps": sum(chain.steps for chain in plan.chains),
            "negative": sum(bool(chain.negative) for chain in plan.chains),
            "few_blocks": plan.few_blocks,
            "turns": min(turns, FEW),
            "more_turns": min(turns, UNROLLED),
            "ragged_k": plan.ragged,
            "planned_registers": plan.registers + ADDRESSES,
            "lane_values": plan.lane_values,
            "operands": _operands(plan),
            "counts": 4 * plan.token_tiles * (plan.bit_tiles if plan.bits > 1 else 1),
            "shared_blocks": plan.shared_bytes // 1024,
            "pieces": plan.stage_bytes / (16 * plan.schedule.threads),
            "products": plan.products,
            "sum_instructions": plan.sum_instructions,
            "instructions": plan.instructions,
        },
        plan.schedule.threads,
    )


def _operands(plan: PlanesPlan) -> int:
    """Registers of a lane for the operands of a group's part of a block."""
    steps = max(1, plan.group_pitch // STEP) if plan.whole_groups else plan.warp_steps
    return steps * (2 * plan.token_tiles * plan.bit_tiles + 4 * plan.weight_planes)
