"""Which tiles a matmul can be cut into, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

from abqc.codegen.strategy import MatmulSpec
from abqc.costmodel.interface import KernelFeatures

from ..arch import FEW_BLOCKS, GpuArch
from ..matmul.launch import launch_features
from ..matmul.schedule import Schedule
from ..packing.layout import K_UNIT, Activation, rows_of
from ..weights import issue_counts
from ..weights.layout import WeightLayout
from .plan import TilePlan

# (block_m, block_n, warps_m, warps_n): warps of 16 x 32 to 64 x 64, which reuse what they decode.
TILES = (
    (16, 64, 1, 2),
    (16, 128, 1, 4),
    (16, 256, 1, 8),
    (32, 64, 1, 2),
    (32, 128, 1, 4),
    (32, 256, 1, 8),
    (64, 64, 2, 2),
    (64, 128, 1, 4),
    (64, 128, 2, 2),
    (64, 256, 1, 8),
    (128, 64, 2, 2),
    (128, 128, 2, 2),
    (128, 128, 2, 4),
    (128, 256, 2, 4),
    (256, 128, 4, 2),
)
STAGES = (2, 3, 4)
STAGE_ROW_BYTES = (64, 128, 256)  # of an activation row, where chunks and groups allow
SPLITS = (1, 2, 4, 8)


@lru_cache(maxsize=4096)
def plan_of(spec: MatmulSpec, schedule: Schedule, activation: Activation) -> TilePlan:
    """The plan of a tile kernel over rows of that kind: many are asked often in a choice."""
    rows = rows_of(spec, activation)
    return TilePlan(WeightLayout.of(spec), schedule, rows.row_bytes, rows.code_bytes)


def tile_schedules(
    spec: MatmulSpec, arch: GpuArch, activation: Activation, *, always_split: bool = False
) -> list[Schedule]:
    """Every schedule that can run on `arch`; splits where they help, or with `always_split`."""
    return [
        schedule
        for schedule in _all(spec, always_split)
        if plan_of(spec, schedule, activation).problem(arch) is None
    ]


def _all(spec: MatmulSpec, always_split: bool) -> Iterator[Schedule]:
    layout = WeightLayout.of(spec)
    depths = dict.fromkeys(block_k_of(layout, row_bytes) for row_bytes in STAGE_ROW_BYTES)
    for tile, block_k, stages, split in product(TILES, depths, STAGES, SPLITS):
        block_m, block_n, warps_m, warps_n = tile
        if block_n > TILES[0][1] and block_n >= 2 * layout.padded_n(spec.n):
            continue
        if split > 1 and -(-spec.n // block_n) > FEW_BLOCKS and not always_split:
            continue
        yield Schedule("tile", block_m, block_n, block_k, warps_m, warps_n, 1, stages, split)


def block_k_of(layout: WeightLayout, row_bytes: int) -> int:
    """The K of a stage whose rows have about `row_bytes`: whole chunks, the whole K at most."""
    wanted = row_bytes * 8 // layout.lane_bits // K_UNIT
    chunk = layout.chunk_units
    return min(max(wanted // chunk, 1), layout.chunks) * chunk * K_UNIT


def tile_features(
    spec: MatmulSpec, schedule: Schedule, m: int, strategy: str, activation: Activation
) -> KernelFeatures:
    """What a launch (and its reduction) does for `m` rows."""
    plan = plan_of(spec, schedule, activation)
    layout = plan.weights
    blocks_m, blocks_n = -(-m // schedule.block_m), -(-spec.n // schedule.block_n)
    tiles = blocks_m * blocks_n
    area = schedule.block_m * schedule.block_n
    depth = plan.iterations * schedule.block_k
    mma_ops = 2.0 * tiles * area * depth
    quantized = activation == "int8"
    decoded = blocks_m * schedule.warps_m * blocks_n * schedule.block_n * depth
    stages = tiles * plan.iterations * schedule.threads  # of all threads
    reads = schedule.warps_n * schedule.block_m * plan.stage_row_bytes
    reads += schedule.warps_m * plan.block_tiles * plan.stage_tile_bytes
    launch = launch_features(
        spec,
        schedule,
        m,
        strategy=strategy,
        weight_bits=layout.bits,
        weight_bytes=layout.nbytes(spec.n),
        row_bytes=plan.row_bytes,
    )
    return launch.changed(
        group_m=plan.group_m,
        bytes_in_flight=(schedule.stages - 1) * plan.stage_bytes,
        s8_ops=mma_ops if quantized else 0.0,
        f16_ops=0.0 if quantized else mma_ops,
        alu_ops=issue_counts.decode_integer(layout) * decoded,
        issued=stages * issue_counts.tile_stage(plan),
        shared_traffic=float(tiles * plan.iterations * (plan.stage_bytes + reads)),
        shared_bytes=plan.shared_bytes,
    )
