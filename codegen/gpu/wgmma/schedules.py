"""Which tiles a matmul can be cut into for wgmma, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product

from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.costmodel.interface import KernelFeatures

from ..arch import GpuArch
from ..matmul.launch import launch_features
from ..matmul.schedule import Schedule
from ..packing.layout import Activation, rows_of
from ..tiles.schedules import STAGE_ROW_BYTES, block_k_of
from ..weights import issue_counts
from ..weights.layout import WeightLayout
from .half import HalfProducts
from .instructions import ROWS, WARPGROUP_WARPS
from .int8 import Int8Accumulators, Int8Products
from .kernel import Arithmetic, emit_wgmma_kernel
from .plan import WgmmaPlan
from .warpgroups import Warpgroups

BLOCK_ROWS = (16, 32, 64, 80, 96, 128, 192, 256)
PAIRED_ROWS = 176  # the most of two halves
WARPGROUPS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1))  # and halves of each
STAGES = (2, 3, 4, 6)
SPLITS = (1, 2, 3, 4, 6, 8)
SHARED_BY = (2, 4)  # blocks that share a tile, at most
BOXES = True  # cost a copying thread less than what threads copy one by one, whatever the tile


@lru_cache(maxsize=4096)
def plan_of(spec: MatmulSpec, schedule: Schedule, activation: Activation) -> WgmmaPlan:
    """The plan of a kernel by wgmma over rows of that kind: many are asked often in a choice."""
    rows = rows_of(spec, activation)
    return WgmmaPlan(WeightLayout.of(spec), schedule, rows.row_bytes, rows.code_bytes)


def wgmma_schedules(spec: MatmulSpec, arch: GpuArch, activation: Activation) -> list[Schedule]:
    """Every schedule that can run on `arch`."""
    family = "s8" if activation == "int8" else activation
    if family not in arch.wgmma:
        return []
    able = [s for s in _all(spec, arch) if plan_of(spec, s, activation).problem(arch) is None]
    shared = stream_schedules(spec, able, arch, lambda s: plan_of(spec, s, activation))
    return able + [s for s in shared if plan_of(spec, s, activation).problem(arch) is None]


def _all(spec: MatmulSpec, arch: GpuArch) -> Iterator[Schedule]:
    layout = WeightLayout.of(spec)
    depths = dict.fromkeys(block_k_of(layout, row_bytes) for row_bytes in STAGE_ROW_BYTES)
    for rows, groups, block_k, stages, split in product(
        (*BLOCK_ROWS, PAIRED_ROWS), WARPGROUPS, depths, STAGES, SPLITS
    ):
        warpgroups, halves = groups
        if rows == PAIRED_ROWS and halves == 1:
            continue
        columns = ROWS * warpgroups * halves
        if columns > ROWS and columns >= 2 * layout.padded_n(spec.n):
            continue
        if split > 1 and not splits_pay(arch, -(-spec.n // columns), split, stages):
            continue
        warps = warpgroups * WARPGROUP_WARPS
        stay = persistent_blocks(arch, warpgroups, split)
        yield Schedule("wgmma", rows, columns, block_k, 1, warps, 1, stages, split, stay, BOXES)


def splits_pay(arch: GpuArch, columns: int, split: int, stages: int) -> bool:
    """Whether so many parts of so many columns of blocks may be of use: there are no more blocks
    than run at once, two on a multiprocessor, and enough of each part's K is under way."""
    return columns * split <= 2 * arch.multiprocessors and stages > 2


def persistent_blocks(arch: GpuArch, warpgroups: int, split: int) -> int:
    """How many blocks stay, one on each multiprocessor, where two do not fit; 0: none."""
    return arch.multiprocessors if warpgroups > 1 and split == 1 else 0


def stream_schedules(
    spec: MatmulSpec,
    schedules: Sequence[Schedule],
    arch: GpuArch,
    plan_of: Callable[[Schedule], Warpgroups],
) -> Iterator[Schedule]:
    """Of those without a split, the same with blocks that stay and share tiles along K: as many as
    run at once, with as many stages as let these run. Where half as many parts of each tile are
    enough for them, more are the same."""
    deepest: dict[Schedule, Schedule] = {}
    for s in sorted(schedules, key=lambda s: s.stages):
        if s.grid_split == 1 and s.stages > 2:
            shared = replace(s, persistent=plan_of(s).resident_blocks(arch))
            deepest[replace(shared, stages=0)] = shared
    for s in deepest.values():
        columns = -(-spec.n // s.block_n)
        for parts in SHARED_BY:
            if parts == SHARED_BY[0] or columns * parts // 2 < s.persistent:
                yield replace(s, split=parts)


def wgmma_kernel(name: str, spec: MatmulSpec, schedule: Schedule, activation: Activation) -> Kernel:
    """The kernel called `name`."""
    arithmetic: Arithmetic
    if activation == "int8":
        arithmetic = Int8Products(spec)
    else:
        arithmetic = HalfProducts(spec, activation)
    return _kernel(name, spec, schedule, activation, arithmetic)


def wgmma_accumulator_kernel(name: str, spec: MatmulSpec, schedule: Schedule) -> Kernel:
    """The kernel that stores acc, i32 [groups][m][n], in the place of y."""
    return _kernel(name, spec, schedule, "int8", Int8Accumulators(spec))


def _kernel(
    name: str,
    spec: MatmulSpec,
    schedule: Schedule,
    activation: Activation,
    arithmetic: Arithmetic,
) -> Kernel:
    plan = plan_of(spec, schedule, activation)
    emit = partial(emit_wgmma_kernel, name=name, plan=plan, arithmetic=arithmetic)
    block = schedule.block_m, schedule.block_n
    most, stream = schedule.persistent, plan.stream
    return WgmmaKernel(name, block, emit, most_blocks=most, stream=stream)


@dataclass(frozen=True)
class WgmmaKernel(Kernel):
    """A kernel whose warps have different numbers of registers: nothing can follow its body."""


def wgmma_features(
    spec: MatmulSpec, schedule: Schedule, m: int, strategy: str, activation: Activation
) -> KernelFeatures:
    """What a launch (and its reduction) does for `m` rows."""
    plan = plan_of(spec, schedule, activation)
    layout = plan.weights
    blocks_m, blocks_n = -(-m // schedule.block_m), -(-spec.n // schedule.block_n)
    tiles = blocks_m * blocks_n
    depth = plan.iterations * schedule.block_k
    mma_ops = 2.0 * tiles * schedule.block_m * schedule.block_n * depth
    decoded = tiles * schedule.block_n * depth
    quantized = activation == "int8"
    # A warpgroup reads all rows of a stage, for each half.
    reads = plan.consumers * plan.halves * plan.rows_bytes
    reads += plan.weights_bytes * (2 // plan.halves)
    stage = 32 * schedule.warps_n * issue_counts.wgmma_stage(plan)
    stage += issue_counts.wgmma_copies(plan)
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
        wgmma_s8_ops=mma_ops if quantized else 0.0,
        wgmma_f16_ops=0.0 if quantized else mma_ops,
        alu_ops=issue_counts.decode_integer(layout) * decoded,
        issued=float(tiles * plan.iterations) * stage,
        shared_traffic=float(tiles * plan.iterations * (plan.stage_bytes + reads)),
        registers=plan.launch_registers,
        shared_bytes=plan.shared_bytes,
    )
