"""Few rows (M = 1 to 8) on CUDA cores, for the strategies `int8` and `dequantize`.

    rows_schedules(spec, arch)                      schedules of kind "rows"
    rows_kernel(spec, schedule, activation)         the matmul, or split matmul, of docs/gpu.md
    rows_reduce_kernel(spec, schedule, activation)  where schedule.split > 1, else None
    rows_features(spec, schedule, m, activation)    for the cost model; `arch` is left open

`activation` says what packed rows hold: "int8" (rows_layout.Int8Rows), "f16" or "bf16" (FloatRows).
A schedule's `block_n` is 32 columns for each of `warps_n`; `block_k` is what a warp multiplies
between two loads, and `stages` how many 16-byte loads each thread has under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Literal

from ...costmodel.interface import KernelFeatures
from ..strategy import Kernel, MatmulSpec
from .arch import GpuArch
from .rows_kernel import REDUCE_THREADS, emit_reduce_kernel, emit_rows_kernel, shared_bytes
from .rows_layout import K_UNIT
from .rows_plan import RowsPlan
from .rows_products import HalfProducts, Int8Products, RowProducts
from .schedule import Schedule
from .weights import TILE_COLUMNS, WeightLayout

Activation = Literal["int8", "f16", "bf16"]

BLOCK_ROWS = (1, 2, 4, 8)
WARPS = ((1, 4), (1, 8), (1, 16), (2, 4), (4, 2), (8, 1))  # of N and of K
SPLITS = (1, 2, 4, 8)
LOADS_AHEAD = (4, 8)
FEW_TILES = 2 * 132  # of 32 columns; with more, blocks need not share K

# Instructions to decode a code, by bits (decode.py), and to make a float of an f16.
S8_DECODE = (0.47, 0.44, 0.95, 0.38, 0.95, 0.95, 1.45, 0.0)
HALF_DECODE = (1.05, 1.06, 1.9, 1.1, 1.9, 1.9, 3.0, 1.25)
HALF_ZERO, HALF_EXTEND = 0.5, 1.0
LINE_BYTES = 128  # that a load of activations by a warp takes of the L1 cache


def rows_schedules(spec: MatmulSpec, arch: GpuArch) -> Sequence[Schedule]:
    """Every schedule for 1, 2, up to 4 and up to 8 rows; the same on all targets."""
    layout = WeightLayout.of(spec)
    schedules = []
    for rows, (warps_n, warps_k), split, stages in product(BLOCK_ROWS, WARPS, SPLITS, LOADS_AHEAD):
        block_k = layout.chunk_units * K_UNIT
        schedule = Schedule(
            "rows", rows, TILE_COLUMNS * warps_n, block_k, 1, warps_n, warps_k, stages, split
        )
        plan = RowsPlan(layout, schedule)
        if plan.steps < plan.parts > 1 or warps_n > layout.tiles(spec.n):
            continue
        if split > 1 and layout.tiles(spec.n) > FEW_TILES:
            continue
        schedules.append(schedule)
    return schedules


def rows_kernel(spec: MatmulSpec, schedule: Schedule, activation: Activation) -> Kernel:
    """The kernel; its block is (rows, columns)."""
    products = _products(spec, activation)
    plan = RowsPlan(products.layout, schedule)
    name = f"{_stem(spec, products)}_{schedule.name}"
    block = (schedule.block_m, schedule.block_n)
    return Kernel(name, block, partial(emit_rows_kernel, name, products, plan))


def rows_reduce_kernel(
    spec: MatmulSpec, schedule: Schedule, activation: Activation
) -> Kernel | None:
    """The kernel that adds the parts of a split; None without a split."""
    if schedule.split == 1:
        return None
    products = _products(spec, activation)
    name = f"{_stem(spec, products)}_reduce{schedule.split}"
    emit = partial(emit_reduce_kernel, name, products, schedule.split)
    return Kernel(name, (1, REDUCE_THREADS), emit)


def rows_features(
    spec: MatmulSpec, schedule: Schedule, m: int, activation: Activation
) -> KernelFeatures:
    """What a launch (and its reduction) does for `m` rows."""
    products = _products(spec, activation)
    layout, plan = products.layout, RowsPlan(products.layout, schedule)
    blocks_m, blocks_n = -(-m // schedule.block_m), -(-spec.n // schedule.block_n)
    rows, columns = blocks_m * schedule.block_m, blocks_n * schedule.block_n
    codes = columns * layout.grouped.padded_k
    products_ops = 2.0 * rows * codes
    quantized = activation == "int8"
    decode = (S8_DECODE if quantized else HALF_DECODE)[layout.bits - 1]
    if not quantized:
        decode += HALF_EXTEND + (HALF_ZERO if layout.has_zeros else 0.0)
    line_loads = rows * (codes / TILE_COLUMNS) / K_UNIT * layout.registers_per_block
    workspace = schedule.split * m * spec.n * 4 if schedule.split > 1 else 0
    return KernelFeatures(
        arch="",
        strategy="int8" if quantized else "dequantize",
        schedule=schedule.name,
        kind=schedule.kind,
        m=m,
        n=spec.n,
        k=spec.k,
        weight_bits=layout.bits,
        activation_bits=spec.activation.bits if spec.activation is not None else 16,
        block_m=schedule.block_m,
        block_n=schedule.block_n,
        block_k=schedule.block_k,
        blocks=blocks_m * blocks_n * schedule.split,
        threads=schedule.threads,
        weight_bytes=layout.nbytes(spec.n),
        activation_bytes=m * products.row_bytes,
        written_bytes=4 * m * spec.n,
        bytes_in_flight=plan.bytes_in_flight,
        f32_ops=0.0 if quantized else products_ops,
        dp4a_ops=products_ops if quantized else 0.0,
        alu_ops=decode * blocks_m * codes,
        shared_traffic=line_loads * LINE_BYTES,
        workspace_bytes=workspace,
        warps_k=schedule.warps_k,
        stages=schedule.stages,
        split=schedule.split,
        shared_bytes=shared_bytes(plan),
        launches=2 if schedule.split > 1 else 1,
    )


def _products(spec: MatmulSpec, activation: Activation) -> RowProducts:
    if activation == "int8":
        return Int8Products(spec)
    return HalfProducts(spec, activation)


def _stem(spec: MatmulSpec, products: RowProducts) -> str:
    """What the body depends on beside its schedule."""
    layout = products.layout
    return (
        f"rows_{layout.format.name}_{products.name}_g{layout.grouped.group_size}"
        f"_s{layout.scale_bits}_k{spec.k}"
    )
