"""What `assemble_gpu_kernels.py` has written, as rows of numbers and what is to be predicted.

`slots` is what a turn of the main loop issues, over what its plan reckons with (`instructions` of
`code_numbers.py`), for the part of the work that the loop does in a turn; nan without a loop.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
sys.path.insert(0, str(Path(__file__).parent))

import compile_kernels
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.matmul.strategy import KnownCode
from abqc.codegen.gpu.weights.layout import WeightLayout
from abqc.codegen.targets.cuda import CudaTarget
from abqc.costmodel.assembly import KernelCode
from gpu_kernel_set import TARGETS, GpuTask
from gpubuild.machine_loops import Turn


@dataclass(frozen=True)
class Assembled:
    """A kernel, bounded as it was assembled, with what became of it. `as_planned`: with the bound
    that its plan has, not another one or a raised one."""

    row: Mapping[str, Any]
    code: KernelCode
    as_planned: bool

    @property
    def registers(self) -> int:
        return int(self.row["registers"])

    @property
    def spills(self) -> bool:
        return bool(self.row["spill_stores"] or self.row["spill_loads"])

    @property
    def usual(self) -> bool:
        """Whether its formats are usual ones."""
        return bool(self.row["usual"])

    @property
    def sampled(self) -> bool:
        """Whether it was drawn as all families are, and not added for what it teaches."""
        return not self.row["added"]

    @property
    def target(self) -> str:
        return str(self.row["target"])

    @property
    def task(self) -> GpuTask:
        return GpuTask(**self.row["task"])

    @cached_property
    def slots(self) -> float:
        if not self.row["loop"]:
            return float("nan")
        turn, schedule = Turn(Counter(self.row["loop"])), Schedule(**self.row["schedule"])
        if self.code.family == "rows":
            layout = WeightLayout.of(self.task.spec)
            part = turn.streamed_bytes / (layout.chunk_bytes * self.code.numbers["ahead"])
        elif self.code.family == "planes":
            part = turn.of("mma") / self.code.numbers["products"]
        else:
            block = schedule.block_m * schedule.block_n * schedule.block_k
            part = turn.mma_operations / (2 * block / self.code.numbers["warps"])
        return turn.issued / part / self.code.numbers["instructions"] if part else float("nan")


@dataclass(frozen=True)
class Expected:
    """What is predicted of one kernel."""

    registers: float
    spills: bool
    slots: float


Predictor = Callable[[Sequence[Assembled]], list[Expected]]


def load(folder: Path) -> list[Assembled]:
    targets = {arch.name: CudaTarget.named(arch.name) for arch in TARGETS}
    found = []
    for row in compile_kernels.read(folder / "gpu_kernels.jsonl.gz"):
        task, target = GpuTask(**row["task"]), targets[row["target"]]
        assert target is not None
        strategy = next(
            s.strategy
            for s in target.strategies
            if s.name == row["strategy"] and s.strategy.unsupported(task.spec, task.arch) is None
        )
        assert isinstance(strategy, KnownCode)
        code = strategy.code(task.spec, Schedule(**row["schedule"]))
        if code is not None:
            as_planned = row["bound"] == code.bound
            found.append(Assembled(row, replace(code, bound=row["bound"]), as_planned))
    return found
