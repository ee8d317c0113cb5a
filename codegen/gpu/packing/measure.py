"""The kernel that finds the scale and zero point that many values share.

measure (x f32, scale f32, zero i32, count i64)     grid = samples; sample i is the `count` values
                                                    from x + i * count on
"""

from __future__ import annotations

from functools import partial
from typing import Any

from abqc.codegen.strategy import Kernel
from abqc.dialects.formats import NumberFormat

from ..arch import GpuArch
from ..builder import POINTER, kernel
from ..rows.reduction import RowReduction
from ..rows.threads import Place, RowThreads
from .quantize_row import RowRange

WARPS = 32


def measure_kernel(format: NumberFormat) -> Kernel:
    """Scales and zero points of samples; one block looks at one sample."""
    name = f"measure_{format.name}"
    return Kernel(name, (1,), partial(_emit, format, name))


def _emit(format: NumberFormat, name: str, module: Any, arch: GpuArch) -> None:
    threads = RowThreads(WARPS, 1, 1, 1)
    arguments = [POINTER, POINTER, POINTER, "i64"]
    scratch = RowReduction.scratch_bytes(threads, 3)
    with kernel(module, arch, name, arguments, threads=threads.threads, shared=scratch) as (
        b,
        block,
        x,
        scale,
        zero,
        count,
    ):
        ranges = RowRange(b, format)
        sample = b.at(x, b.wide(block) * count * 4)
        with b.loop(
            b.wide(b.thread), count, b.const(threads.threads, "i64"), ranges.start()
        ) as loop:
            value = b.load(sample, "f32", loop.i * 4, cache="nc")
            loop.carry(*ranges.widen(loop.args, value))
        reduction = RowReduction(b, threads, Place.of(b, threads), b.shared)
        found = ranges.scale(reduction.run(loop.results, ranges.combine()), b.to_float(count))
        with b.when(b.thread == 0):
            b.store(found.scale, scale, b.wide(block) * 4)
            b.store(found.zero, zero, b.wide(block) * 4)
