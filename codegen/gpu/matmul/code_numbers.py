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
from ..planes.plan import ADDRESSES, PlanesPlan
from ..tiles.plan import TilePlan
from ..weights import issue_counts
from ..weights.layout import WeightLayout
from .schedule import Schedule

MANY = 64  # units of a group: more make no difference to the code
FEW = 4  # turns of a loop, and groups: likewise


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
        "unsigned": unsigned,
        "groups": min(layout.grouped.groups, FEW),
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
    instructions = issue_counts.rows_unit(plan.layout, schedule.block_m, by_mma)
    return KernelCode(
        "rows",
        {
            **_weight_numbers(spec, activation),
            **_schedule_numbers(schedule),
            "rows": schedule.block_m,
            "ahead": plan.ahead,
            "turn_units": plan.ahead * plan.layout.chunk_units,
            "words": plan.ahead * plan.layout.chunk_words,
            "turns": min(turns, FEW),
            "guarded": plan.guarded,
            "even": plan.even,
            "step": min(plan.step, MANY),
            "products": plan.ahead * plan.layout.chunk_units * schedule.block_m,
            "instructions": instructions * plan.ahead * plan.layout.chunk_units,
        },
        schedule.threads,
        plan.registers,
    )


def tile_code(spec: MatmulSpec, plan: TilePlan, activation: Activation) -> KernelCode:
    """Of tiles/."""
    layout = plan.weights
    ends = plan.stage_units / plan.group_units if plan.grouped else 0.0
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
            "ends": ends,
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
            "tokens": plan.tokens,
            "token_tiles": plan.token_tiles,
            "bit_tiles": plan.bit_tiles,
            "warp_tiles": plan.warp_tiles,
            "warp_steps": plan.warp_steps,
            "chains": len(plan.chains),
            "chain_steps": sum(chain.steps for chain in plan.chains),
            "negative": sum(bool(chain.negative) for chain in plan.chains),
            "turns": min(plan.split_blocks, FEW),
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
