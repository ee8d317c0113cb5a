"""The second kernel of a split matmul: parts are added in order, and become y.

reduce (workspace, q or x, w, bias f32, y f32, m, n)     grid m * ceil(n / COLUMNS)

A thread has four neighbouring columns, 16 bytes of every part, all under way at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

from abqc.codegen.builder import Value, vec

from ..arch import GpuArch
from ..builder import POINTER, WEIGHT, GpuBuilder, kernel

THREADS = 128
PER_THREAD = 4
COLUMNS = THREADS * PER_THREAD  # of a block, of one row

Finish = Callable[[Value, Value, Value], Value]  # y of (sum, row, column)
# `Finish` for the operands (b, q or x, w, bias, m, n) of a kernel.
Finisher = Callable[[GpuBuilder, Value, Value, Value, Value, Value], Finish]


def emit_reduction(
    name: str, split: int, element: str, finisher: Finisher, module: Any, arch: GpuArch
) -> None:
    """Parts are of type `element` (i32 or f32)."""
    arguments = [POINTER, POINTER, WEIGHT, WEIGHT, POINTER, "i32", "i32"]
    with kernel(module, arch, name, arguments, threads=THREADS) as (b, block, workspace, *operands):
        q, w, bias, y, m, n = operands
        finish = finisher(b, q, w, bias, m, n)
        blocks_n = b.ceil_div(n, COLUMNS)
        row, first = block // blocks_n, block % blocks_n * COLUMNS + b.thread * PER_THREAD
        line = (b.wide(row) * b.wide(n) + b.wide(first)) * 4
        plane = b.wide(m) * b.wide(n) * 4
        aligned = n % PER_THREAD == 0

        def parts(count: int, at: Value) -> Sequence[Value]:
            """`count` neighbouring sums."""
            type_ = vec(count, element)
            return b.lanes_of(
                reduce(add, [b.load(workspace, type_, at + plane * part) for part in range(split)])
            )

        with b.when(aligned & (first < n)):
            sums = parts(PER_THREAD, line)
            values = [finish(total, row, first + i) for i, total in enumerate(sums)]
            b.store(b.vector(values), y, line)
        for i in range(PER_THREAD):
            with b.when((aligned == 0) & (first + i < n)):
                (total,) = parts(1, line + 4 * i)
                b.store(finish(total, row, first + i), y, line + 4 * i)
