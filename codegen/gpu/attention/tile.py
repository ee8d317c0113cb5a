"""Kernels whose blocks do attention for a tile of rows of one head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel

from ..arch import GpuArch
from ..builder import GpuBuilder, kernel
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
    ) -> None:
        self.b, self.spec, self.problem = b, spec, problem
        self.head = problem.head(number)
        self.first = first

    def emit(self) -> None:
        """The body of the kernel."""
        raise NotImplementedError


MakeTile = Callable[[GpuBuilder, AttentionSpec, Problem, Value, Value], AttentionTile]


def tile_kernel(
    name: str, spec: AttentionSpec, make: MakeTile, *, rows: int, threads: int, shared: int
) -> Kernel:
    """Any number of rows, `rows` of them a block; see kernels.py for the arguments."""
    return Kernel(name, (rows,), partial(_emit, name, spec, make, rows, threads, shared))


def _emit(
    name: str,
    spec: AttentionSpec,
    make: MakeTile,
    rows: int,
    threads: int,
    shared: int,
    module: Any,
    arch: GpuArch,
) -> None:
    types = argument_types(spec)
    with kernel(module, arch, name, types, threads=threads, shared=shared) as (
        b,
        block,
        *arguments,
    ):
        problem = Problem(b, spec, arguments)
        blocks = b.ceil_div(problem.rows, rows)
        make(b, spec, problem, block // blocks, block % blocks * rows).emit()
