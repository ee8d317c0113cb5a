"""The GPU kernels that the assembly model is trained on and judged by.

They are numbered: of a task (formats, K, target) at random one kernel: a strategy, a kind, a
schedule, all as likely as each other. K of every `HELD_OUT_EVERY`th is one that no kernel of
training has. Machine code does not depend on N, which only decides what splits there are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache, cached_property

from abqc.codegen.gpu.arch import ALL, SM_75, GpuArch
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.matmul.strategy import GpuStrategy, KnownCode
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.dialects.formats import Half, parse_scheme

TARGETS = tuple(arch for arch in ALL if arch != SM_75)

GROUPS = ("", "", "", ":channel", ":channel", ":g32", ":g64", ":g128:asym", ":g64:asym")
OTHER_WEIGHTS = ("wt:g128", "wt:channel", "w2*", "w4:asym", "wnf4", "wfp4:g32", "w8:channel:asym")
WIDTHS = (1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 8)
ACTIVATIONS = (None, None, None, "a8", "a8", "a8", *(f"a{bits}" for bits in range(1, 8)), "a8:asym")
SIZES = (96, 1000, 4096, 11008, 28672)  # N
# K, among them some that fill no group, no chunk or no stage.
DEPTHS = (
    *(256, 384, 512, 576, 640, 768, 1000, 1024, 1152, 1536, 2048, 2304, 2560, 3000, 3072, 3584),
    *(4096, 5120, 6144, 7168, 8192, 9728, 11008, 13824, 14336, 18944, 28672),
)
HELD_OUT_DEPTHS = (320, 896, 1100, 1280, 1792, 2880, 3200, 4544, 5632, 8960, 12288, 16384)
HELD_OUT_EVERY = 6
SPLIT_SHARE = 0.3  # of kernels that may be split
OTHER_BOUNDS = 0.12  # of kernels with a bound on registers: another one than their plan's


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
    held_out: bool
    other_bound: int = 0

    @cached_property
    def kernel(self) -> Kernel:
        return self.strategy.kernel(self.task.spec, self.schedule)


def draw(number: int) -> GpuCandidate | None:
    """Kernel `number`; None where what was drawn is not possible."""
    rng = random.Random(number)
    task = _task(rng, held_out := number % HELD_OUT_EVERY == 0)
    try:
        spec = task.spec
        able = [s for s in _strategies(task.target) if s.unsupported(spec, task.arch) is None]
        if not able:
            return None
        strategy = rng.choice(able)
        every = list(strategy.schedules(spec, task.arch))
    except ValueError:  # groups that do not divide K, of some formats
        return None
    kind = rng.choice(sorted({s.kind for s in every}) or [None])
    split = rng.random() < SPLIT_SHARE
    every = [s for s in every if s.kind == kind and (split or s.split == 1)]
    if not every:
        return None
    bound = rng.randrange(48, 200, 8) if rng.random() < OTHER_BOUNDS and kind == "rows" else 0
    return GpuCandidate(task, strategy, rng.choice(every), held_out, bound)


@cache
def _strategies(target: str) -> list[GpuStrategy]:
    """Those of whose code something can be learned: float and trellis have few kernels."""
    found = CudaTarget.named(target)
    assert found is not None
    return [s.strategy for s in found.strategies if isinstance(s.strategy, KnownCode)]


def _task(rng: random.Random, held_out: bool) -> GpuTask:
    bits, group = rng.choice(WIDTHS), rng.choice(GROUPS)
    weight = f"w{bits}{group}" if rng.random() < 0.85 else rng.choice(OTHER_WEIGHTS)
    return GpuTask(
        weight,
        rng.choice(ACTIVATIONS),
        rng.choice(SIZES),
        rng.choice(HELD_OUT_DEPTHS if held_out else DEPTHS),
        rng.choice(("f16", "f16", "bf16")),
        rng.choice(TARGETS).name,
    )
