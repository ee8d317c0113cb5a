"""Which schedules the strategy `planes` has by wgmma b1, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from abqc.codegen.strategy import MatmulSpec
from abqc.costmodel.interface import KernelFeatures

from ..arch import GpuArch
from ..matmul.schedule import Schedule
from ..packing.layout import align
from ..wgmma.instructions import ROWS, WARPGROUP_WARPS
from ..wgmma.plan import PRODUCERS
from ..wgmma.schedules import SPLITS, persistent_blocks, splits_pay, stream_schedules
from .layout import STEP, TILE_COLUMNS, PlaneWeights
from .schedules import planes_launch
from .wgmma_plan import WgmmaPlanesPlan

BLOCK_ROWS = (16, 32, 64, 96, 128, 176, 192, 256)
WARPGROUPS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1))  # and halves of each
DEPTHS = (512, 1024, 2048)  # of K
STAGES = (2, 3, 4, 6)
# Products of planes that one of bytes takes the time of (measured on an H200: 15,400 to 1,865
# TOPS): whoever has more planes, or masks a step for each of the groups in it, multiplies bytes.
MOST_PAIRS = 8


def wgmma_planes_schedules(spec: MatmulSpec, arch: GpuArch) -> list[Schedule]:
    """Every schedule that can run on `arch`."""
    if "b1" not in arch.wgmma or pairs_of(spec) > MOST_PAIRS:
        return []
    plans = (WgmmaPlanesPlan(spec, s) for s in _all(spec, arch))
    able = [
        plan.schedule
        for plan in plans
        if pairs_of(spec) * plan.parts <= MOST_PAIRS and plan.problem(arch) is None
    ]
    shared = stream_schedules(spec, able, arch, lambda s: WgmmaPlanesPlan(spec, s))
    return able + [s for s in shared if WgmmaPlanesPlan(spec, s).problem(arch) is None]


def pairs_of(spec: MatmulSpec) -> int:
    """Pairs of a plane of the weight and one of the rows."""
    assert spec.weight is not None and spec.activation is not None
    return spec.weight.format.bits * spec.activation.format.bits


def _all(spec: MatmulSpec, arch: GpuArch) -> Iterator[Schedule]:
    whole = align(spec.k, DEPTHS[0])
    grouped = PlaneWeights.of(spec).grouped.groups > 1
    for rows, groups, depth, stages, split in product(
        BLOCK_ROWS, WARPGROUPS, DEPTHS, STAGES, SPLITS
    ):
        warpgroups, halves = groups
        columns = ROWS * warpgroups * halves
        if depth > whole or (columns > ROWS and columns >= 2 * align(spec.n, TILE_COLUMNS)):
            continue
        # While one alone scales a group nothing is multiplied; three have too few registers for it.
        if grouped and warpgroups != 2:
            continue
        if split > 1 and not splits_pay(arch, -(-spec.n // columns), split, stages):
            continue
        warps = warpgroups * WARPGROUP_WARPS
        stay = persistent_blocks(arch, warpgroups, split)
        yield Schedule("wgmma", rows, columns, depth, 1, warps, 1, stages, split, stay)


def wgmma_planes_features(plan: WgmmaPlanesPlan, m: int) -> KernelFeatures:
    """What a launch (and its reduction) does for `m` rows."""
    spec, schedule = plan.spec, plan.schedule
    tiles = -(-m // schedule.block_m) * -(-spec.n // schedule.block_n)
    steps = plan.k_blocks * plan.block_steps
    step_ops = 2.0 * schedule.block_m * schedule.block_n * STEP * plan.parts
    threads = 32 * schedule.warps_n
    turns = float(tiles * plan.k_blocks)
    groups = plan.warp_groups if plan.whole_groups else 1
    # A warpgroup reads the rows of a step for each product, and its weights.
    per_product = (schedule.block_m + ROWS) * STEP // 8
    reads = plan.products * plan.consumers * per_product
    return planes_launch(plan, m).changed(
        wgmma_b1_ops=tiles * steps * step_ops * plan.sums_of_pairs.products,
        alu_ops=turns * threads * groups * plan.sum_instructions / 2,  # the FMA pipe has half
        issued=turns * (threads * plan.instructions + PRODUCERS * plan.copy_instructions),
        shared_traffic=turns * (plan.stage_bytes + reads),
        registers=plan.launch_registers,
    )
