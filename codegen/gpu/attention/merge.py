"""Splits of the keys come together: in the last block that is done with a unit, or in a kernel.

The workspace has, for every row of a split, its sums, then maximum and total (`partial_pitch`
floats): rows of a block of rows behind each other, splits behind each other, then blocks of rows.
Splits are added in order, whoever does it: results do not depend on the order in which blocks run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from abqc.codegen.builder import Value, vec
from abqc.codegen.strategy import Kernel

from ..arch import WARP, GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from ..rows.chunks import store4
from .row_lanes import THREADS, WARPS
from .spec import (
    LOG2_E,
    MINUS_INFINITY,
    AttentionSpec,
    Problem,
    argument_types,
    finite,
    quotients,
)

UNROLL = 16  # splits whose loads are under way at once


def partial_pitch(spec: AttentionSpec) -> int:
    """Floats of one row of one split in the workspace; a multiple of 4."""
    return chunks_of(spec) * 4 + 4


def chunks_of(spec: AttentionSpec) -> int:
    """Chunks of 4 columns of y."""
    return -(-spec.value_head // 4)


def merge_kernel(spec: AttentionSpec, rows: int) -> Kernel:
    """One block of rows, `rows` of a unit, of all that `rows_kernel` leaves; same arguments."""
    name = f"attention_merge{rows}_{spec.name}"
    return Kernel(name, (rows,), partial(_emit, name, spec, rows))


def _emit(name: str, spec: AttentionSpec, rows: int, module: Any, arch: GpuArch) -> None:
    types = [*argument_types(spec), *split_types()]
    with kernel(module, arch, name, types, threads=THREADS, shared=rows * 4) as (
        b,
        block,
        *arguments,
    ):
        problem = Problem(b, spec, arguments[: -len(split_types())])
        workspace, _, _, splits, _ = arguments[-len(split_types()) :]
        Merge(b, spec, problem, rows, b.shared).emit(workspace, block, splits)


def split_types() -> list[str]:
    """Further arguments of kernels whose blocks share the keys: workspace f32, counters i32, number
    of the first counter (negative: there are none), splits, keys of a split."""
    return [POINTER, POINTER, "i32", "i32", "i32"]


class Merge:
    """The rows of one block of rows; `shared` has room for `rows` floats."""

    def __init__(
        self, b: GpuBuilder, spec: AttentionSpec, problem: Problem, rows: int, shared: Value
    ) -> None:
        self.b, self.spec, self.problem, self.rows, self.shared = b, spec, problem, rows, shared

    def emit(self, workspace: Value, number: Value, splits: Value) -> None:
        """`number` (i32): of the block of rows, counted through all units."""
        b, spec = self.b, self.spec
        pitch = partial_pitch(spec) * 4
        start = b.at(workspace, b.wide(number) * b.wide(splits) * (self.rows * pitch))
        blocks = b.ceil_div(self.problem.unit_rows, self.rows)
        unit, first = number // blocks, number % blocks * self.rows
        wanted = b.min(self.problem.unit_rows - first, self.rows)
        self._greatest(start, splits, wanted)
        b.barrier()
        chunks = chunks_of(spec)
        for begin in range(0, self.rows * chunks, THREADS):
            item = b.thread + begin
            row, chunk = item // chunks, item % chunks
            with b.when(row < wanted):
                y = self.problem.query_row(unit, row + first).y
                values = self._row(b.at(start, row * pitch), chunk, splits, row)
                store4(b, values, y, chunk * 4, spec.value_head)

    def _greatest(self, start: Value, splits: Value, wanted: Value) -> None:
        """The maxima of the first `wanted` rows, which splits have left, to shared memory; a warp
        has a row."""
        b, pitch = self.b, partial_pitch(self.spec) * 4
        for begin in range(0, self.rows, WARPS):
            row = b.warp + begin
            with b.when(row < wanted):
                at = b.at(start, row * pitch)
                low = [b.const(MINUS_INFINITY, "f32")]
                with b.loop(b.lane, splits, WARP, low) as loop:
                    top, _ = self._stats(at, loop.i)
                    loop.carry(b.max(top, loop.args[0]))
                largest = b.warp_max(loop.results[0])
                b.store(finite(b, largest), self.shared, row * 4)

    def _stats(self, row: Value, split: Value) -> tuple[Value, Value]:
        b, spec = self.b, self.spec
        at = b.at(row, b.wide(split) * (self.rows * partial_pitch(spec) * 4))
        top, total = b.lanes_of(b.load(at, vec(2, "f32"), chunks_of(spec) * 16))
        return top, total

    def _row(self, start: Value, chunk: Value, splits: Value, row: Value) -> list[Value]:
        """Four columns of a row of y."""
        b = self.b
        largest = b.load(self.shared, "f32", row * 4)
        state = [b.const(0.0, "f32")] * 5

        def add(state: Sequence[Value], first: Value, count: int) -> list[Value]:
            step = self.rows * partial_pitch(self.spec) * 4
            places = [b.at(start, b.wide(first + u) * step) for u in range(count)]
            loaded = [b.load(at, vec(4, "f32"), chunk * 16) for at in places]
            stats = [self._stats(start, first + u) for u in range(count)]
            for sums, (top, total) in zip(loaded, stats, strict=True):
                factor = b.exp2((top - largest) * LOG2_E)
                terms = zip([*b.lanes_of(sums), total], state, strict=True)
                state = [b.fma(factor, term, old) for term, old in terms]
            return list(state)

        with b.loop(0, splits - (UNROLL - 1), UNROLL, state) as loop:
            loop.carry(*add(loop.args, loop.i, UNROLL))
        with b.loop(splits // UNROLL * UNROLL, splits, 1, loop.results) as tail:
            tail.carry(*add(tail.args, tail.i, 1))
        *sums, total = tail.results
        return quotients(b, self.spec, sums, total, self.problem.keys)
