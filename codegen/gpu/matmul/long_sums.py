"""Sums of more terms than an i32 holds: a split keeps its part in 32 bits, 64 bits add them up."""

from __future__ import annotations

from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel, MatmulSpec

from ..arch import GpuArch
from ..builder import POINTER, WEIGHT, kernel
from ..packing.layout import GroupedK, Int8Rows
from ..tiles.plan import TilePlan
from ..weights.decode import s8_shift
from ..weights.layout import WeightLayout
from ..weights.pointers import PackedWeight
from .schedule import Schedule

MAX_TERMS = 32768  # of 8 x 8 bits that an i32 holds (docs/numerics.md)
THREADS = 256


def needs_long_sums(spec: MatmulSpec) -> bool:
    """Whether terms with one scale are too many for 32 bits."""
    return GroupedK.of(spec.weight, spec.k).group_size > MAX_TERMS


def parts_fit(plan: TilePlan) -> bool:
    """Whether each split of a plan sums at most MAX_TERMS terms."""
    return plan.split_iterations * plan.schedule.block_k <= MAX_TERMS


def long_reduce_kernel(spec: MatmulSpec, schedule: Schedule, stem: str) -> Kernel:
    """`reduce` of docs/gpu.md for one group: a thread makes one element of y."""
    name = f"{stem}_reduce64_{schedule.split}"
    return Kernel(name, (1, THREADS), partial(_emit, name, spec, schedule.split))


def _emit(name: str, spec: MatmulSpec, split: int, module: Any, arch: GpuArch) -> None:
    arguments = [POINTER, POINTER, WEIGHT, WEIGHT, POINTER, "i32", "i32"]
    rows, layout = Int8Rows.of(spec), WeightLayout.of(spec)
    with kernel(module, arch, name, arguments, threads=THREADS) as (
        b,
        block,
        workspace,
        q,
        packed,
        bias,
        y,
        m,
        n,
    ):
        blocks_n = b.ceil_div(n, THREADS)
        row, column = block // blocks_n, block % blocks_n * THREADS + b.thread
        with b.when(column < n):
            weight = PackedWeight(b, layout, packed, n)
            pointer = b.at(q, b.wide(row) * rows.row_bytes)
            at = (b.wide(row) * b.wide(n) + b.wide(column)) * 4
            plane = b.wide(m) * b.wide(n) * 4

            def signed(value: Value) -> Value:
                return b.sext(value, "i64")

            total = b.const(0, "i64")
            for part in range(split):
                total = total + signed(b.load(workspace, "i32", at + plane * part, cache="nc"))
            if layout.has_sums:
                zero = b.load(pointer, "i32", rows.zero_offset, cache="nc")
                (codes,) = weight.sums(0, column)
                total = total - (signed(zero) * signed(codes) << s8_shift(layout.format))
            if layout.has_zeros:
                (zero,) = weight.zeros(0, column)
                row_sum = b.load(pointer, "i32", rows.sums_offset, cache="nc")
                total = total - signed(zero) * signed(row_sum)
            (scale,) = weight.scales(0, column)
            scale = b.load(pointer, "f32", rows.scale_offset, cache="nc") * scale
            offset = b.load(bias, "f32", b.wide(column) * 4, cache="nc")
            b.store(b.fma(scale, b.to_float(total.sar(s8_shift(layout.format))), offset), y, at)
