"""Few rows (M = 1 to 8) that stream the weight once, for the strategies `int8` and `dequantize`.

    rows_schedules(spec, arch, activation)          schedules of kind "rows"
    rows_kernel(spec, schedule, activation)         the matmul, or split matmul, of docs/gpu.md
    rows_reduce_kernel(spec, schedule, activation)  where schedule.split > 1, else None
    rows_features(spec, schedule, m, activation)    for the cost model; `arch` is left open

`activation` says what packed rows hold: "int8" (packing/layout.py: Int8Rows), "f16" or "bf16"
(FloatRows, CentredRows).
Schedules of 1, 2 and 4 rows multiply on CUDA cores, those of 8 by `mma.sync` (lanes.py), which
costs no more for 8 rows than for one. `block_n` is 32 columns for each of `warps_n`; `block_k` is
what a warp multiplies of a load, and `stages` how many 16-byte loads a thread has under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.costmodel.interface import KernelFeatures
from abqc.dialects.scale_types import scale_label

from ..arch import FEW_BLOCKS, WARP, GpuArch
from ..matmul import reduction
from ..matmul.launch import launch_features
from ..matmul.reduction import emit_reduction
from ..matmul.schedule import Schedule
from ..packing.layout import K_UNIT, Activation
from ..weights import issue_counts
from ..weights.layout import TILE_COLUMNS, WeightLayout
from .kernel import emit_rows_kernel, finisher, rows_mma_step, shared_bytes
from .plan import MMA_ROWS, RowsPlan
from .values import HalfValues, Int8Values, RowValues

BLOCK_ROWS = (1, 2, 4, MMA_ROWS)
WARPS = ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (2, 4), (4, 2), (8, 1))  # of N and of K
USUAL_WARPS = 4  # of a block; fewer only where K is too short to be shared
SPLITS = (1, 2, 4, 8)
LOADS_AHEAD = (4, 8)

LINE_BYTES = 128  # that a load of activations by a warp takes of the L1 cache


def rows_schedules(spec: MatmulSpec, arch: GpuArch, activation: Activation) -> Sequence[Schedule]:
    """Every schedule for 1, 2, up to 4 and up to 8 rows that can run there."""
    layout = WeightLayout.of(spec)
    values = _values(spec, activation)
    native = rows_mma_step(values, arch) is not None
    able = BLOCK_ROWS if native else BLOCK_ROWS[:-1]
    schedules = []
    for rows, (warps_n, warps_k), split, stages in product(able, WARPS, SPLITS, LOADS_AHEAD):
        block_k = layout.chunk_units * K_UNIT
        schedule = Schedule(
            "rows", rows, TILE_COLUMNS * warps_n, block_k, 1, warps_n, warps_k, stages, split
        )
        plan = RowsPlan(layout, schedule)
        tiles = layout.tiles(spec.n)
        idle = plan.steps < plan.parts > 1 or warps_n > tiles
        small = warps_n * warps_k < USUAL_WARPS <= plan.steps
        needless = split > 1 and tiles > FEW_BLOCKS
        fits = plan.fits and shared_bytes(plan, values.unit_bytes) <= arch.shared_per_block
        if fits and not (idle or small or needless):
            schedules.append(schedule)
    return schedules


def by_mma(schedule: Schedule) -> bool:
    """Whether a schedule multiplies on tensor cores."""
    return schedule.block_m == MMA_ROWS


def rows_kernel(spec: MatmulSpec, schedule: Schedule, activation: Activation) -> Kernel:
    """The kernel; its block is (rows, columns)."""
    values = _values(spec, activation)
    plan = RowsPlan(values.layout, schedule)
    name = f"{_stem(spec, values)}_{schedule.name}"
    block = (schedule.block_m, schedule.block_n)
    return Kernel(name, block, partial(emit_rows_kernel, name, values, plan, by_mma(schedule)))


def rows_reduce_kernel(
    spec: MatmulSpec, schedule: Schedule, activation: Activation
) -> Kernel | None:
    """The kernel that adds the parts of a split; None without a split."""
    if schedule.grid_split == 1:
        return None
    values = _values(spec, activation)
    name = f"{_stem(spec, values)}_reduce{schedule.split}"
    element = "f32" if values.layout.grouped.groups > 1 else values.accumulator
    emit = partial(emit_reduction, name, schedule.split, element, finisher(values))
    return Kernel(name, (1, reduction.COLUMNS), emit)


def rows_features(
    spec: MatmulSpec, schedule: Schedule, m: int, activation: Activation
) -> KernelFeatures:
    """What a launch (and its reduction) does for `m` rows."""
    values = _values(spec, activation)
    layout, plan = values.layout, RowsPlan(values.layout, schedule)
    blocks_m, blocks_n = -(-m // schedule.block_m), -(-spec.n // schedule.block_n)
    rows, columns = blocks_m * schedule.block_m, blocks_n * schedule.block_n
    codes = columns * layout.grouped.padded_k
    ops = 2.0 * rows * codes
    quantized, mma = activation == "int8", by_mma(schedule)
    units = blocks_m * (columns / TILE_COLUMNS) * layout.grouped.units
    line_loads = (
        (blocks_m if mma else rows) * (codes / TILE_COLUMNS) / K_UNIT * layout.registers_per_block
    )
    launch = launch_features(
        spec,
        schedule,
        m,
        strategy="int8" if quantized else "dequantize",
        weight_bits=layout.bits,
        weight_bytes=layout.nbytes(spec.n),
        row_bytes=values.row_bytes,
    )
    return launch.changed(
        bytes_in_flight=plan.bytes_in_flight,
        s8_ops=ops if mma and quantized else 0.0,
        f16_ops=ops if mma and not quantized else 0.0,
        f32_ops=0.0 if mma or quantized else ops,
        dp4a_ops=ops if quantized and not mma else 0.0,
        alu_ops=issue_counts.decode_integer(layout) * blocks_m * codes,
        issued=WARP * units * issue_counts.rows_unit(layout, schedule.block_m, mma),
        shared_traffic=line_loads * LINE_BYTES,
        registers=plan.registers,
        shared_bytes=shared_bytes(plan, values.unit_bytes),
    )


def _values(spec: MatmulSpec, activation: Activation) -> RowValues:
    if activation == "int8":
        return Int8Values(spec)
    return HalfValues(spec, activation)


def _stem(spec: MatmulSpec, values: RowValues) -> str:
    """What the body depends on beside its schedule."""
    layout = values.layout
    return (
        f"rows_{layout.format.name}_{values.name}_g{layout.grouped.group_size}"
        f"_{scale_label(layout.scale)}_k{spec.k}"
    )
