"""The GPU kernels that the assembly model is trained on and judged by.

They are numbered: of a task (formats, K, target) at random one kernel: a strategy, a kind, a
schedule, all as likely as each other. Most have formats that are usual, every `ANY_EVERY`th any
that there are. `doubted` ones have one of the schedules whose registers the present model knows
least surely: they teach most, but say nothing of how well it predicts. Machine code does not depend
on N, which only decides what splits there are, and hardly on K where it fills all groups and
stages.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from abqc.codegen.gpu.arch import ALL, SM_75, GpuArch
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.matmul.strategy import GpuStrategy, KnownCode
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.costmodel import assembly
from abqc.costmodel.assembly import shipped_assembly
from abqc.dialects.formats import Half, parse_scheme

TARGETS = tuple(arch for arch in ALL if arch != SM_75)

# Weights and activations of recipes: (scheme, how often).
USUAL_WEIGHTS = {
    **{"w4": 5, "w8": 3, "w2": 3, "w1": 2, "w3": 2, "w5": 1, "w6": 1, "w7": 1},
    **{"w4:channel": 1, "w2:channel": 1, "w4:g64": 1, "w4:g32": 1, "w4:asym": 1, "w2:g64:asym": 1},
}
USUAL_ACTIVATIONS = {None: 2, "a8": 4, "a4": 1, "a2": 1, "a1": 1}

GROUPS = ("", "", "", ":channel", ":channel", ":g32", ":g64", ":g128:asym", ":g64:asym")
OTHER_WEIGHTS = ("wt:g128", "wt:channel", "w2*", "w4:asym", "wnf4", "wfp4:g32", "w8:channel:asym")
WIDTHS = range(1, 9)
ACTIVATIONS = (None, None, "a8", "a8", "a8:asym", *(f"a{bits}" for bits in range(1, 8)))
SIZES = (96, 1000, 4096, 11008, 28672)  # N
# K, of which `RAGGED` fill no group, no chunk or no stage.
DEPTHS = (
    *(1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 4608, 5120, 6144, 7168, 8192, 9728),
    *(11008, 12288, 13824, 14336, 16384, 18944, 28672),
)
RAGGED = (256, 320, 384, 576, 640, 896, 1000, 1100, 1152, 2304, 2880, 3000, 4544)
RAGGED_SHARE = 0.12
ANY_EVERY = 4
SPLIT_SHARE = 0.2  # of kernels that may be split
DOUBTED_SHARE = 0.2  # of the schedules of a task
OTHER_BOUNDS = 0.05  # of kernels with a bound on registers: another one than their plan's


@dataclass(frozen=True)
class GpuTask:
    """Products of `weight` [n, k] and `activation`, texts of schemes or None for floats."""

    weight: str
    activation: str | None
    n: int
    k: int
    half: Half
    target: str

    @property
    def spec(self) -> MatmulSpec:
        activation = parse_scheme(self.activation) if self.activation else None
        return MatmulSpec(self.n, self.k, parse_scheme(self.weight), activation, half=self.half)

    @property
    def arch(self) -> GpuArch:
        return next(arch for arch in TARGETS if arch.name == self.target)


@dataclass(frozen=True)
class GpuCandidate:
    """A kernel that does a task; `bound` is what its registers are bounded by, 0: nothing."""

    task: GpuTask
    strategy: GpuStrategy
    schedule: Schedule
    usual: bool
    other_bound: int = 0

    @cached_property
    def kernel(self) -> Kernel:
        return self.strategy.kernel(self.task.spec, self.schedule)

    @property
    def family(self) -> str:
        """Of its code (costmodel/assembly.py)."""
        assert isinstance(self.strategy, KnownCode)
        code = self.strategy.code(self.task.spec, self.schedule)
        assert code is not None
        return code.family


def draw(number: int, doubted: bool = False) -> GpuCandidate | None:
    """Kernel `number`, or the doubted one of this number; None where what was drawn is not
    possible."""
    rng = random.Random(number)
    usual = number % ANY_EVERY != 0
    task = _task(rng, usual)
    try:
        spec = task.spec
        able = [s for s in _strategies(task.target) if s.unsupported(spec, task.arch) is None]
        if not able:
            return None
        strategy = rng.choice(able)
        every = [s for s in strategy.schedules(spec, task.arch) if known(strategy, spec, s)]
    except ValueError:  # groups that do not divide K, of some formats
        return None
    kind = rng.choice(sorted({s.kind for s in every}) or [None])
    split = rng.random() < SPLIT_SHARE
    every = [s for s in every if s.kind == kind and (split or s.split == 1)]
    if not every:
        return None
    if doubted:
        every = least_certain(strategy, task, every)
    bound = rng.randrange(48, 200, 8) if rng.random() < OTHER_BOUNDS and kind == "rows" else 0
    return GpuCandidate(task, strategy, rng.choice(every), usual, bound)


def least_certain(
    strategy: GpuStrategy, task: GpuTask, schedules: list[Schedule]
) -> list[Schedule]:
    """A part of `schedules`, of one kind."""
    assert isinstance(strategy, KnownCode)
    codes = [code for s in schedules if (code := strategy.code(task.spec, s)) is not None]
    family = shipped_assembly().families[codes[0].family]
    rows = np.array([assembly.row(code, family.names, task.target, code.bound) for code in codes])
    order = np.argsort(family.registers.certainty(rows), kind="stable")
    return [schedules[i] for i in order[: math.ceil(DOUBTED_SHARE * len(order))]]


def known(strategy: GpuStrategy, spec: MatmulSpec, schedule: Schedule) -> bool:
    """Whether there is something to be learned of a kernel."""
    return isinstance(strategy, KnownCode) and strategy.code(spec, schedule) is not None


@cache
def _strategies(target: str) -> list[GpuStrategy]:
    """Those of whose code something can be learned: float and trellis have few kernels."""
    found = CudaTarget.named(target)
    assert found is not None
    return [s.strategy for s in found.strategies if isinstance(s.strategy, KnownCode)]


def _task(rng: random.Random, usual: bool) -> GpuTask:
    weight, activation = _usual(rng) if usual else _any(rng)
    return GpuTask(
        weight,
        activation,
        rng.choice(SIZES),
        rng.choice(RAGGED if rng.random() < RAGGED_SHARE else DEPTHS),
        rng.choice(("f16", "f16", "bf16")),
        rng.choice(TARGETS).name,
    )


def _usual(rng: random.Random) -> tuple[str, str | None]:
    (weight,) = rng.choices(list(USUAL_WEIGHTS), list(USUAL_WEIGHTS.values()))
    (activation,) = rng.choices(list(USUAL_ACTIVATIONS), list(USUAL_ACTIVATIONS.values()))
    return weight, activation


def _any(rng: random.Random) -> tuple[str, str | None]:
    weight = f"w{rng.choice(WIDTHS)}{rng.choice(GROUPS)}"
    return weight if rng.random() < 0.85 else rng.choice(OTHER_WEIGHTS), rng.choice(ACTIVATIONS)
