"""Kernels whose blocks do attention for a tile of rows of one head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel
from abqc.runtime.tensor_parameter import TensorParameter

from ..arch import WARP, GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from .limits import RowLimits
from .spec import AttentionSpec, Problem, argument_types


class AttentionTile:
    """One block's work: rows from `first` (i32) on of head `number`."""

    def __init__(
        self,
        b: GpuBuilder,
        spec: AttentionSpec,
        problem: Problem,
        number: Value,
        first: Value,
        limits: RowLimits | None,
    ) -> None:
        self.b, self.spec, self.problem = b, spec, problem
        self.head = problem.head(number)
        self.number, self.first = number, first
        self._limits = limits

    def emit(self, last: Sequence[Value]) -> None:
        """The body of the kernel; `last` are its arguments behind those of `tile_types`."""
        raise NotImplementedError

    def row_limits(self, rows: Sequence[Value]) -> list[tuple[Value, Value]] | None:
        """Of rows of the head (i32), those past the last one repeating it: which keys they see
        (limits.py). None where the mask is not one that is added."""
        if self._limits is None:
            return None
        b, heads = self.b, self.problem.heads
        batch, head = self.number // heads, self.number % heads
        last = self.problem.rows - 1
        return [self._limits.of(batch, head, b.min(row, last)) for row in rows]

    def last_end(self, limits: list[tuple[Value, Value]] | None, place: int) -> Value:
        """Behind the last key that one of the block's rows sees; `limits` are those of the thread's
        rows. Shared memory from byte `place` on has 4 bytes a warp for it; all threads meet."""
        b = self.b
        if limits is None:
            return self.problem.keys
        mine = limits[0][0]
        for end, _ in limits[1:]:
            mine = b.max(mine, end)
        b.store(b.warp_max(mine), b.shared, b.warp * 4 + place)
        b.barrier()
        warps = range(b.threads // WARP)
        ends = [b.load(b.shared, "i32", place + 4 * warp) for warp in warps]
        last = ends[0]
        for end in ends[1:]:
            last = b.max(last, end)
        return last


MakeTile = Callable[
    [GpuBuilder, AttentionSpec, Problem, Value, Value, RowLimits | None], AttentionTile
]


def tile_types(spec: AttentionSpec) -> list[str]:
    """The first arguments of kernels of tiles: those of `Problem`; where a mask is added, limits
    i32 and their strides by batch, head and row (limits.py)."""
    limits = [POINTER, "i32", "i32", "i32"] if spec.mask == "add" else []
    return [*argument_types(spec), *limits]


def tile_kernel(
    name: str,
    spec: AttentionSpec,
    make: MakeTile,
    *,
    rows: int,
    threads: int,
    shared: int,
    registers: int = 0,
    last: Sequence[str | TensorParameter] = (POINTER,),
) -> Kernel:
    """Any number of rows, `rows` of them a block; see kernels.py for the arguments, `last` are the
    types of those behind `tile_types`."""
    emit = partial(_emit, name, spec, make, rows, threads, shared, registers, last)
    return Kernel(name, (rows,), emit)


def _emit(
    name: str,
    spec: AttentionSpec,
    make: MakeTile,
    rows: int,
    threads: int,
    shared: int,
    registers: int,
    last: Sequence[str | TensorParameter],
    module: Any,
    arch: GpuArch,
) -> None:
    types = [*tile_types(spec), *last]
    with kernel(
        module,
        arch,
        name,
        types,
        threads=threads,
        shared=shared,
        registers=registers,
        blocks=0 if registers else 1,
    ) as (
        b,
        block,
        *arguments,
    ):
        limits, behind = None, arguments[-len(last) :]
        arguments = arguments[: -len(last)]
        if spec.mask == "add":
            *arguments, pointer, of_batch, of_head, of_row = arguments
            limits = RowLimits(b, pointer, [of_batch, of_head, of_row])
        problem = Problem(b, spec, arguments)
        blocks = b.ceil_div(problem.rows, rows)
        # The last rows first: under a causal mask they take longest.
        first = (blocks - 1 - block % blocks) * rows
        make(b, spec, problem, block // blocks, first, limits).emit(behind)
