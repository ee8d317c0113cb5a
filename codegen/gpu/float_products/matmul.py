"""Strategy `float`: weights that stay float times f32 activations, f32 sums, on CUDA cores.

`y[m, n] = x[m, :] . w[n, :] + bias[n]`; x is read as it is, `m x k`. The weight, f32 or 16 bits
that are widened on the way, lies in rows of whole 16 bytes (`layout.py`). Up to four rows take
`dot_rows`, which streams the weight once; more take tiles of 64 x 64 (`simt_tile`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from abqc.codegen.align import align
from abqc.codegen.builder import Value, vec
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.costmodel.interface import KernelFeatures
from abqc.dialects.formats import QuantizedTensor
from abqc.errors import RecipeError

from ..arch import WARP, GpuArch
from ..builder import POINTER, WEIGHT, GpuBuilder, kernel
from ..matmul import block_order
from ..matmul.schedule import Schedule
from . import dot_rows, simt_tile
from .layout import FloatRows, pack_float

ARGUMENTS = [POINTER, WEIGHT, WEIGHT, POINTER, "i32", "i32"]
QUAD = 4  # floats of 16 bytes

FEW_ROWS = (1, 2, 4)
TILE_SCHEDULE = Schedule(
    "tile",
    simt_tile.TILE,
    simt_tile.TILE,
    simt_tile.DEPTH,
    warps_m=simt_tile.THREADS // WARP,
    stages=simt_tile.STAGES,
)


class FloatMatmul:
    """The GpuStrategy for floats times floats."""

    name = "float"
    integers = False

    def unsupported(self, spec: MatmulSpec, arch: GpuArch) -> str | None:
        if spec.weight is not None:
            return "strategy 'float' takes float weights only"
        if spec.activation is not None:
            return "strategy 'float' takes float activations only"
        if spec.in_bf16:
            return "products of floats in bf16 ('none:bf16') are made for CPUs"
        if spec.hadamard_block:
            return "strategy 'float' does not rotate activations"
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, np.ndarray) and weight.shape == (spec.n, spec.k)
        return pack_float(weight)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return 0

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        return None

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        raise RecipeError("strategy 'float' quantizes no activations")

    def schedules(self, spec: MatmulSpec, arch: GpuArch) -> Sequence[Schedule]:
        depth, warps = dot_rows.LANES * QUAD, dot_rows.THREADS // WARP
        few = [Schedule("rows", rows, dot_rows.COLUMNS, depth, warps_n=warps) for rows in FEW_ROWS]
        return [*few, TILE_SCHEDULE]

    def kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel:
        weight = FloatRows.of(spec)
        name = f"float_matmul_{weight.name}_{schedule.name}"
        if schedule.kind == "rows":
            emit: Any = partial(_emit_few_rows, name, weight, schedule.block_m)
        else:
            emit = partial(_emit_tiles, name, weight)
        return Kernel(name, (schedule.block_m, schedule.block_n), emit)

    def reduce_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel | None:
        return None

    def features(self, spec: MatmulSpec, schedule: Schedule, m: int) -> KernelFeatures:
        rows, columns = (
            -(-size // block) for size, block in zip((m, spec.n), _blocks(schedule), strict=True)
        )
        depth = -(-spec.k // schedule.block_k) * schedule.block_k
        blocks, few = rows * columns, schedule.kind == "rows"
        per_term = 0 if few else 4 * (simt_tile.THREAD_ROWS + simt_tile.THREAD_COLUMNS)
        copied = 0 if few else 4 * 2 * simt_tile.TILE  # of a term, into shared memory
        shared = blocks * depth * (per_term * schedule.threads + copied)
        in_flight = (
            schedule.threads * 16 * dot_rows.UNROLL * (1 + schedule.block_m)
            if few
            else 4 * simt_tile.DEPTH * 2 * simt_tile.TILE
        )
        return KernelFeatures(
            arch="",
            strategy=self.name,
            schedule=schedule.name,
            kind=schedule.kind,
            m=m,
            n=spec.n,
            k=spec.k,
            weight_bits=spec.weight_bits,
            activation_bits=32,
            block_m=schedule.block_m,
            block_n=schedule.block_n,
            block_k=schedule.block_k,
            blocks=blocks,
            group_m=1 if few else _group_m(schedule),
            threads=schedule.threads,
            weight_bytes=spec.n * FloatRows.of(spec).row_bytes,
            activation_bytes=4 * m * spec.k,
            written_bytes=4 * m * spec.n,
            bytes_in_flight=in_flight,
            f32_ops=2.0 * blocks * schedule.block_m * schedule.block_n * depth,
            shared_traffic=float(shared),
            stages=schedule.stages,
            shared_bytes=0 if few else simt_tile.SHARED_BYTES,
        )


def _blocks(schedule: Schedule) -> tuple[int, int]:
    return schedule.block_m, schedule.block_n


def _group_m(schedule: Schedule) -> int:
    """Rows of blocks of a group (matmul/block_order.py)."""
    return block_order.group_rows(schedule.block_m, schedule.block_n)


def _emit_few_rows(name: str, weight: FloatRows, rows: int, module: Any, arch: GpuArch) -> None:
    k = weight.k
    with kernel(module, arch, name, ARGUMENTS, threads=dot_rows.THREADS) as (
        b,
        block,
        x,
        w,
        bias,
        y,
        m,
        n,
    ):
        across = b.ceil_div(n, dot_rows.COLUMNS)
        row, first = block // across * rows, block % across * dot_rows.COLUMNS
        place, lane = dot_rows.lane_place(b)
        column = first + place
        weights = b.at(w, b.wide(b.min(column, n - 1)) * weight.row_bytes)
        inputs = [b.at(x, b.wide(b.min(row + r, m - 1)) * (4 * k)) for r in range(rows)]

        def load(at: Value) -> tuple[list[Value], list[list[Value]]]:
            return (
                weight.load(b, weights, at, weight.width, "stream"),
                [_load_row(b, pointer, at, k, weight.width) for pointer in inputs],
            )

        # Behind k the row holds zeros.
        sums = dot_rows.dot_products(b, align(k, weight.width), rows, weight.width, load)
        with b.when((lane == 0) & (column < n)):
            offset = b.load(bias, "f32", b.wide(column) * 4, cache="nc")
            for r, total in enumerate(sums):
                with b.when(row + r < m):
                    at = b.wide(row + r) * b.wide(n) + b.wide(column)
                    b.store(total + offset, y, at * 4)


def _load_row(b: GpuBuilder, x: Value, at: Value, k: int, width: int) -> list[Value]:
    """`width` terms of an x row of `k` terms, zeros behind its end."""
    if k % width == 0:
        quads = [
            b.load(x, vec(QUAD, "f32"), (at + i) * 4, cache="nc") for i in range(0, width, QUAD)
        ]
        return [value for quad in quads for value in b.lanes_of(quad)]
    values = []
    for j in range(width):
        inside = b.min(at + j, k - 1)
        value = b.load(x, "f32", inside * 4, cache="nc")
        values.append(b.select(at + j < k, value, 0.0))
    return values


def _emit_tiles(name: str, weight: FloatRows, module: Any, arch: GpuArch) -> None:
    k = weight.k
    shape = {"threads": simt_tile.THREADS, "shared": simt_tile.SHARED_BYTES}
    with kernel(module, arch, name, ARGUMENTS, **shape) as (b, block, x, w, bias, y, m, n):
        down, across = b.ceil_div(m, simt_tile.TILE), b.ceil_div(n, simt_tile.TILE)
        block_m, block_n = block_order.place(block, down, across, _group_m(TILE_SCHEDULE), b.min)
        row, column = block_m * simt_tile.TILE, block_n * simt_tile.TILE
        extents = simt_tile.extent(b, m, row), simt_tile.extent(b, n, column)
        left = simt_tile.Operand(b.at(x, b.wide(row) * (4 * k)), b.const(k, "i64"), extents[0])
        right = simt_tile.Operand(
            b.at(w, b.wide(column) * weight.row_bytes),
            b.const(weight.pitch, "i64"),
            extents[1],
            element=weight.element,
        )
        sums = simt_tile.multiply(b, left, right, b.const(k, "i32"))
        place = column + simt_tile.thread_place(b)[1]
        offsets = [
            b.load(bias, "f32", b.wide(b.min(place + j, n - 1)) * 4, cache="nc")
            for j in range(simt_tile.THREAD_COLUMNS)
        ]
        total = [[value + offset for value, offset in zip(r, offsets, strict=True)] for r in sums]
        tile = b.at(y, (b.wide(row) * b.wide(n) + b.wide(column)) * 4)
        simt_tile.store_sums(b, tile, n, extents, total)
