"""Which schedules the strategy `planes` has, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

from abqc.codegen.strategy import MatmulSpec
from abqc.costmodel.interface import KernelFeatures

from ..arch import FEW_BLOCKS, GpuArch
from ..matmul.launch import launch_features
from ..matmul.schedule import Schedule
from ..packing.layout import align
from ..rows.threads import power_of_two
from .layout import STEP, TILE_COLUMNS
from .plan import MMA_COLUMNS, PlanesPlan
from .wgmma_plan import WgmmaPlanesPlan

# (block_n, warps_n, warps_k) for one MMA tile of tokens: warps share K, so that few columns keep a
# multiprocessor busy.
FEW_TOKENS = ((16, 1, 4), (16, 1, 8), (32, 1, 4), (32, 2, 2), (32, 2, 4), (64, 4, 1), (64, 4, 2))
# (block_m, block_n, warps_m, warps_n)
TILES = (
    (16, 32, 1, 2),
    (16, 64, 1, 4),
    (16, 128, 1, 4),
    (32, 32, 1, 2),
    (32, 64, 2, 2),
    (32, 128, 2, 4),
    (64, 32, 2, 2),
    (64, 64, 2, 2),
    (64, 128, 2, 4),
    (64, 128, 4, 2),
    (128, 64, 4, 2),
    (128, 128, 4, 2),
    (128, 128, 4, 4),
    (128, 256, 4, 4),
)
WARP_DEPTHS = (256, 512, 1024)  # of K, for a warp in a block of K
STAGES = (2, 3, 4)
SPLITS = (1, 2, 4, 8)


def planes_schedules(spec: MatmulSpec, arch: GpuArch) -> list[Schedule]:
    """Every schedule that can run on `arch`."""
    return [s for s in _all(spec) if plan_of(spec, s).problem(arch) is None]


@lru_cache(maxsize=4096)
def plan_of(spec: MatmulSpec, schedule: Schedule) -> PlanesPlan:
    """The plan of a kernel: many are asked often in a choice."""
    if schedule.kind == "wgmma":
        return WgmmaPlanesPlan(spec, schedule)
    return PlanesPlan(spec, schedule)


def _all(spec: MatmulSpec) -> Iterator[Schedule]:
    for block_m, block_n, warps_m, warps_n, warps_k in _blocks(spec):
        if block_n > 32 and block_n >= 2 * align(spec.n, TILE_COLUMNS):
            continue
        splits = SPLITS if -(-spec.n // block_n) <= FEW_BLOCKS else (1,)
        depths = sorted({warps_k * depth for depth in WARP_DEPTHS})
        whole = align(spec.k, STEP * warps_k)
        for block_k, stages, split in product(depths, STAGES, splits):
            if block_k <= whole or block_k == depths[0]:
                yield Schedule(
                    "tile", block_m, block_n, block_k, warps_m, warps_n, warps_k, stages, split
                )


def _blocks(spec: MatmulSpec) -> Iterator[tuple[int, int, int, int, int]]:
    assert spec.activation is not None
    tokens = MMA_COLUMNS // power_of_two(spec.activation.bits)
    while tokens <= MMA_COLUMNS:
        for block_n, warps_n, warps_k in FEW_TOKENS:
            yield tokens, block_n, 1, warps_n, warps_k
        tokens *= 2
    for block_m, block_n, warps_m, warps_n in TILES:
        yield block_m, block_n, warps_m, warps_n, 1


def planes_features(plan: PlanesPlan, m: int) -> KernelFeatures:
    """What a launch (and its reduction) does for `m` rows."""
    spec, schedule = plan.spec, plan.schedule
    assert spec.activation is not None
    blocks = -(-m // schedule.block_m) * -(-spec.n // schedule.block_n)
    depth = plan.k_blocks * schedule.block_k
    tiles = blocks * plan.block_tiles * plan.token_tiles * schedule.warps_m  # 16 x 8 counts
    pairs = plan.bit_tiles * plan.weight_planes
    parts = max(1, STEP // plan.group_pitch) if plan.whole_groups else 1
    step_ops = 2.0 * TILE_COLUMNS * MMA_COLUMNS * STEP
    mma_ops = tiles * pairs * (depth // STEP) * step_ops * max(1, parts // 2)
    turns = blocks * plan.k_blocks * schedule.threads
    ends = plan.warp_groups if plan.whole_groups else 1  # of groups in a turn
    reads = schedule.warps_m * plan.weight_stage_bytes + schedule.warps_n * (
        plan.warp_tokens * schedule.warps_m * plan.row_stage_bytes // schedule.block_m
    )
    return planes_launch(plan, m).changed(
        b1_ops=mma_ops,
        alu_ops=turns * plan.sum_instructions * ends / 2,
        issued=float(turns * plan.instructions),
        shared_traffic=float(blocks * plan.k_blocks * (plan.stage_bytes + reads)),
    )


def planes_launch(plan: PlanesPlan, m: int) -> KernelFeatures:
    """What sizes and schedule say of a launch, whatever multiplies; no arithmetic."""
    spec, schedule = plan.spec, plan.schedule
    launch = launch_features(
        spec,
        schedule,
        m,
        strategy="planes",
        weight_bits=plan.weight_planes,
        weight_bytes=plan.weight.nbytes(spec.n),
        row_bytes=plan.rows.row_bytes,
    )
    return launch.changed(
        activation_bits=plan.row_planes,
        group_m=plan.group_m,
        bytes_in_flight=(schedule.stages - 1) * plan.stage_bytes,
        shared_bytes=plan.shared_bytes,
    )
