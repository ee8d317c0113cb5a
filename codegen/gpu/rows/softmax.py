"""Softmax over rows, one launch.

softmax   (x, y f32; columns i32)                                        grid = rows
"""

from __future__ import annotations

from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel

from ..arch import GpuArch
from ..builder import POINTER, kernel
from .reduction import RowReduction
from .threads import Place, RowThreads

THREADS = RowThreads(warps=4, rows=1, held=1, spans=1)
LOG2_E = 1.4426950408889634


def softmax_kernel() -> Kernel:
    """A block a row, of any length. See the file's head."""
    return Kernel("softmax", (1,), _emit)


def _emit(module: Any, arch: GpuArch) -> None:
    types = [POINTER, POINTER, "i32"]
    scratch = RowReduction.scratch_bytes(THREADS, 1)
    threads = THREADS.threads
    with kernel(module, arch, "softmax", types, threads=threads, shared=2 * scratch) as (
        b,
        block,
        x,
        y,
        columns,
    ):
        place = Place.of(b, THREADS)
        start = b.wide(block) * (b.wide(columns) * 4)
        x, y = b.at(x, start), b.at(y, start)
        minus = b.const(float("-inf"), "f32")
        with b.loop(b.thread, columns, threads, [minus]) as loop:
            loop.carry(b.max(b.load(x, "f32", b.wide(loop.i) * 4), loop.args[0]))
        (largest,) = RowReduction.at(b, THREADS, place, 0).run(loop.results, [b.max])
        # Scores that are all minus infinity: 0 / 0. A NaN among them is one of its weight.
        base = b.select(largest == float("-inf"), b.const(0.0, "f32"), largest)

        def weight(i: Value) -> Value:
            return b.exp2((b.load(x, "f32", b.wide(i) * 4) - base) * LOG2_E)

        with b.loop(b.thread, columns, threads, [b.const(0.0, "f32")]) as loop:
            loop.carry(loop.args[0] + weight(loop.i))
        reduction = RowReduction.at(b, THREADS, place, scratch)
        (total,) = reduction.run(loop.results, [lambda v, w: v + w])
        with b.loop(b.thread, columns, threads) as loop:
            b.store(weight(loop.i) / total, y, b.wide(loop.i) * 4)
