"""The matmul kernels that cost models are trained on and judged by.

A task is a product on one instruction set; its candidates are the kernels of all strategies and
schedules that can do it. Training takes several candidates of many tasks at random, each timed for
the same rows, so that they compare; `HELD_OUT` are tasks of sizes that no task of training has, and
all of their candidates.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from abqc.codegen import isa as isas
from abqc.codegen.cpu.schedule import (
    BASE_ISAS,
    COLUMNS,
    ROW_RANGES,
    CpuSchedule,
    CpuStrategy,
    KernelSchedule,
    RangeSchedule,
    RowRange,
)
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.cpu_plans import matmul_features
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.interface import MatmulFeatures
from abqc.dialects.formats import Half, parse_scheme

COLD_BYTES = 64 << 20  # weights that pass before the same ones are read again

WIDTHS = range(1, 9)
GROUPS = (":g128", ":g128", ":channel", ":channel", ":g32", ":g64")
OTHER_WEIGHTS = ("wnf4", "wfp4:g32", "wt:g64", "w4v", "w2v", "w4:asym", "w3:g64:asym")
WEIGHTS = (
    None,
    None,
    *(f"w{bits}{group}" for bits, group in itertools.product(WIDTHS, GROUPS)),
    *OTHER_WEIGHTS,
)
ACTIVATIONS = (None, None, "a8", "a8", *(f"a{bits}" for bits in WIDTHS))
HALVES: tuple[Half, ...] = ("f16", "bf16")
SIZES = (192, 256, 384, 512, 576, 768, 1000, 1024, 1536, 2048, 3072, 4096)  # N
DEPTHS = (100, 256, 384, 576, 768, 1024, 1536, 2048, 3072, 4096)  # K
LARGEST = {"avx512": 6 << 20, "avx2": 4 << 20, "plain": 3 << 19}  # N * K
ROWS = {31: (2, 3, 4, 6, 8, 12, 16, 24, 31), None: (32, 48, 64, 100, 128, 200, 256)}
CANDIDATES = 8  # of a task in training
TIMES = 3  # numbers of rows for which the candidates of a task of training are timed
MORE_SIZES = 3  # other N for which its kernels are timed, where their blocks are the same
STREAMED = ("w4", "w8:g128", "w4:channel", "w8:channel", "w6:g128", "w3:g128")
LARGE = 4096
STREAMED_SIZES = (384, 576, 1536, 3072, 4096)  # N
CHAINS = 4  # sums of a row that are under way, of all panels
CHOSEN_ISAS = ("avx512", "avx512", "avx512", "avx2", "avx2", "plain")  # as often as they come here


@dataclass(frozen=True)
class Task:
    """Products of `weight` [n, k] and `activation`, texts of schemes or None for floats, which are
    rounded to bf16 where that is the `half`."""

    weight: str | None
    activation: str | None
    n: int
    k: int
    isa: Isa
    rows: RowRange
    half: Half = "f16"

    @property
    def spec(self) -> MatmulSpec:
        weight, activation = (
            parse_scheme(text) if text else None for text in (self.weight, self.activation)
        )
        return MatmulSpec(self.n, self.k, weight, activation, half=self.half)


@dataclass(frozen=True)
class Candidate:
    """A kernel that does a task."""

    task: Task
    strategy: CpuStrategy
    schedule: CpuSchedule
    default: bool
    kernel: Kernel

    def features(
        self, m: int, working_set: int, operations: tuple[tuple[str, int], ...]
    ) -> MatmulFeatures:
        """What a cost model is told of `m` rows."""
        spec = self.task.spec
        told = matmul_features(
            self.strategy.name,
            spec,
            self.schedule,
            m,
            self.task.isa,
            weight_bytes=spec.n * spec.k * spec.weight_bits // 8,
            working_set=working_set,
        )
        return replace(told, operations=operations)


def candidates(task: Task) -> list[Candidate]:
    """All of a task."""
    spec, found = task.spec, []
    strategies = CpuTarget(cost_model=AnalyticModel()).strategies
    for strategy in strategies:
        if strategy.unsupported(spec) is not None:
            continue
        for number, schedule in enumerate(strategy.schedules(spec, task.rows, task.isa)):
            one = KernelSchedule(((task.isa.vector_bits, schedule),))
            ranges = [RangeSchedule(task.rows.first, task.rows.last, one)]
            (variant,) = strategy.matmul_kernels(spec, ranges)
            found.append(Candidate(task, strategy, schedule, number == 0, variant.kernel))
    return found


@dataclass(frozen=True)
class Timing:
    """A candidate to be timed: rows, and whether its weight comes from DRAM."""

    candidate: Candidate
    m: int
    cold: bool


def training(seed: int = 0, one_row: bool = False) -> Iterator[Timing]:
    """Without end: `large`, then tasks at random, and of each one candidate of every strategy and
    some others; `one_row`: `streams`, then none of several rows."""
    yield from streams() if one_row else large()
    rng, sizes = random.Random(seed), random.Random(seed)
    here = {isa.name: isa for isa in isas.available()}
    while True:
        weight = rng.choice(WEIGHTS)
        activation = rng.choice(ACTIVATIONS) if weight else None
        half = rng.choice(HALVES) if activation is None else "f16"
        n, k = rng.choice(SIZES), rng.choice(DEPTHS)
        isa = here[rng.choice(CHOSEN_ISAS)]
        rows = ROW_RANGES[0] if one_row else rng.choice(ROW_RANGES)
        if n * k > LARGEST[isa.name]:
            continue
        try:
            able = candidates(Task(weight, activation, n, k, isa, rows, half))
        except ValueError:  # groups that do not divide, such as those of some formats
            continue
        rng.shuffle(able)
        each = list({candidate.strategy.name: candidate for candidate in able}.values())
        others = [candidate for candidate in able if candidate not in each]
        chosen = [*each, *others][:CANDIDATES]
        timed = [(1, False), (1, True)]
        if not rows.one:
            timed = [(m, rng.random() < 0.5) for m in rng.sample(ROWS[rows.last], TIMES)]
        yield from (Timing(candidate, m, cold) for m, cold in timed for candidate in chosen)
        kernels = {candidate.kernel.name for candidate in chosen}
        for size in sizes.sample(SIZES, MORE_SIZES):
            if size * k <= LARGEST[isa.name]:
                m = 1 if rows.one else sizes.choice(ROWS[rows.last])
                for candidate in candidates(replace(chosen[0].task, n=size)):
                    if candidate.kernel.name in kernels:
                        yield Timing(candidate, m, True)


def streams() -> Iterator[Timing]:
    """One row times codes of few and many bits, from DRAM: how many panels are read at once and
    whether they are prefetched, against the length of a panel and of its groups."""
    tasks = itertools.product(("a8", None), STREAMED, DEPTHS[1:], STREAMED_SIZES)
    for activation, weight, k, n in tasks:
        for each in candidates(Task(weight, activation, n, k, isas.AVX512, ROW_RANGES[0])):
            s = each.schedule
            usual = s.panels * s.chains == CHAINS and s.block_n == COLUMNS
            if each.strategy.name in ("int8", "dequantize") and usual:
                yield Timing(each, 1, True)


def large() -> Iterator[Timing]:
    """Many rows times the codes of a large matrix: tiles by chance, the default one among them."""
    rng = random.Random(0)
    for bits, group in itertools.product(WIDTHS, (":g128", ":channel")):
        task = Task(f"w{bits}{group}", "a8", LARGE, LARGE, isas.AVX512, ROW_RANGES[-1])
        tiles = [each for each in candidates(task) if each.strategy.name == "int8"]
        for each in (tiles[0], *rng.sample(tiles[1:], CANDIDATES - 1)):
            yield Timing(each, task.rows.typical, True)


def _held_out() -> tuple[tuple[Task, int, bool], ...]:
    one, few, many = ROW_RANGES
    rows: list[tuple[Isa, str | None, str | None, int, int, RowRange, int, bool]] = [
        (isas.AVX512, "w4", "a8", 1280, 896, one, 1, True),
        (isas.AVX512, "w4", "a8", 960, 640, many, 128, True),
        (isas.AVX512, "w8:channel", "a8", 640, 1920, many, 80, True),
        (isas.AVX512, "w3", "a3", 448, 1344, few, 16, False),
        (isas.AVX512, "w2", "a2", 960, 1152, many, 112, True),
        (isas.AVX512, "w1:g64", "a1", 1280, 896, many, 128, True),
        (isas.AVX512, "w6", "a6", 2304, 448, few, 10, True),
        (isas.AVX512, "w5", None, 1792, 1152, one, 1, True),
        (isas.AVX512, "w4", None, 960, 640, many, 128, True),
        (isas.AVX512, None, None, 1280, 448, many, 72, True),
        (isas.AVX512, "w3:g64", "a8", 1792, 640, many, 144, True),
        (isas.AVX512, "w4:g32", "a8", 640, 1920, few, 5, False),
        (isas.AVX512, "w1", "a8", 1280, 448, many, 40, False),
        (isas.AVX512, "w2", "a4", 2304, 448, many, 60, True),
        (isas.AVX512, "w7", "a5", 448, 1344, one, 1, False),
        (isas.AVX2, "w4", "a8", 1280, 896, one, 1, True),
        (isas.AVX2, "w4", "a8", 640, 640, many, 128, True),
        (isas.AVX2, "w2", "a2", 448, 1344, few, 16, True),
        (isas.AVX2, "w8", None, 960, 640, many, 96, True),
        (isas.PLAIN, "w8", "a8", 448, 640, many, 64, True),
        (isas.PLAIN, "w1", "a1", 960, 896, few, 8, False),
        (isas.AVX512, "w3", None, 1280, 896, one, 1, True),
        (isas.AVX512, "w6", "a8", 1792, 640, many, 90, True),
        (isas.AVX512, "w3", "a2", 960, 1152, many, 128, True),
        (isas.AVX2, "w6", None, 1280, 448, few, 12, True),
        (isas.AVX2, "w8:channel", "a8", 2304, 448, few, 20, True),
    ]
    return tuple(
        (Task(weight, activation, n, k, isa, ranges), m, cold)
        for isa, weight, activation, n, k, ranges, m, cold in rows
    )


HELD_OUT = _held_out()


def exhaustive() -> Iterator[tuple[int, Timing]]:
    """Every candidate of the tasks that are held out, with the number of its task: on the task's
    instruction set, and on the lesser ones, which a CPU that has it can run too."""
    base = [isa for isa in isas.available() if isa in BASE_ISAS]
    for number, (task, m, cold) in enumerate(HELD_OUT):
        for isa in base:
            if task.isa in base and isa.vector_bits <= task.isa.vector_bits:
                for candidate in candidates(replace(task, isa=isa)):
                    yield number, Timing(candidate, m, cold)
