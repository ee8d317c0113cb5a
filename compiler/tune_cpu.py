"""Measuring CPU kernels in this process, through the JIT, on one thread."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from abqc.codegen import isa as isas
from abqc.codegen.cpu.schedule import (
    ROW_RANGES,
    CpuSchedule,
    CpuStrategy,
    KernelSchedule,
    RangeSchedule,
    RowRange,
)
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import Jit
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.cpu_plans import matmul_features
from abqc.compiler.tune import Device, spread
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.interface import MatmulFeatures, Sample
from abqc.costmodel.load import shipped_model
from abqc.costmodel.shortlist import shortlist
from abqc.dialects import trellis
from abqc.dialects.formats import QuantizedTensor, Scheme, parse_scheme
from abqc.dialects.mlir import ir
from abqc.runtime.aligned import empty_aligned

# Weight and activation schemes; None is float.
PAIRS: tuple[tuple[str | None, str | None], ...] = (
    (None, None),
    ("w4", None),
    ("w8", None),
    ("w8", "a8"),
    ("w4", "a8"),
    ("w2", "a8"),
    ("w1", "a8"),
    ("w6", "a6"),
    ("w4", "a4"),
    ("w3", "a3"),
    ("w2", "a2"),
    ("w1", "a1"),
)
SHAPES = ((384, 384), (1536, 384), (384, 1536), (1024, 1024), (4096, 576), (2048, 2048))  # N, K
ROWS = (1, 4, 16, 48, 128)
PROMISING, BY_CHANCE = 3, 3  # schedules that are measured beside the default ones
DRAWS = PROMISING + BY_CHANCE
COLD_BYTES = 64 << 20  # weights that pass before the same ones are read again

MIN_CALLS, MAX_CALLS, SECONDS = 5, 50, 0.02  # of one sample


@dataclass(frozen=True)
class CpuJob:
    """Matmuls of one kind with the kernels of one ISA: every strategy that can do them is measured
    for all `ROWS`, warm and cold. Of its schedules for a range of rows it takes the default
    (`draw` 0), one of the fastest by prediction or one by chance, another in each draw."""

    spec: MatmulSpec
    isa: Isa
    draw: int = 0

    def schedules(self, strategy: CpuStrategy) -> tuple[RangeSchedule, ...]:
        """What is measured of a strategy, by ranges of rows."""
        out = []
        for rows in ROW_RANGES:
            default, *others = strategy.schedules(self.spec, rows, self.isa)
            promising = self._promising(strategy, others, rows)
            others = [each for each in others if each not in promising]
            seed = f"{self.spec} {self.isa.name} {rows.first}"
            chance = random.Random(seed).sample(others, min(BY_CHANCE, len(others)))
            drawn = [default, *promising, *chance]
            schedule = KernelSchedule(((self.isa.vector_bits, drawn[self.draw % len(drawn)]),))
            out.append(RangeSchedule(rows.first, rows.last, schedule))
        return tuple(out)

    def _promising(
        self, strategy: CpuStrategy, schedules: Sequence[CpuSchedule], rows: RowRange
    ) -> list[CpuSchedule]:
        """The fastest with weights from DRAM, by the model that comes with the package: one that
        was tuned and cannot be read must not keep from tuning anew."""
        spec, m, isa = self.spec, rows.typical, self.isa
        asked = [
            matmul_features(
                *(strategy.name, spec, schedule, m, isa),
                weight_bytes=spec.n * spec.k * spec.weight_bits // 8,
                working_set=COLD_BYTES,
            )
            for schedule in schedules
        ]
        model = shipped_model("cpu")
        assert isinstance(model, AnalyticModel)
        places = shortlist(asked, model.predict_all(asked), PROMISING)
        return [schedules[place] for place in places]


def jobs(shapes: Sequence[tuple[int, int]] = SHAPES) -> list[CpuJob]:
    """All pairs of schemes and shapes, for every ISA that this CPU has, and draws of schedules."""
    return [
        CpuJob(MatmulSpec(n, k, _scheme(weight), _scheme(activation)), isa, draw)
        for (weight, activation), (n, k) in itertools.product(PAIRS, shapes)
        for isa in isas.available()
        for draw in range(1 + DRAWS)
    ]


def _scheme(text: str | None) -> Scheme | None:
    return parse_scheme(text) if text else None


class CpuRunner:
    """Runs kernels on the calling thread. Times are of the thread, so that preemption is left
    out; a sample is the median."""

    @cached_property
    def device(self) -> Device:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return Device(next(names, "CPU"))

    def measure(self, job: CpuJob) -> list[Sample]:
        # Not the tuned model: one that cannot be read must not keep from tuning anew.
        strategies = CpuTarget(cost_model=AnalyticModel()).strategies
        matmuls = [MeasuredMatmul(s, job) for s in strategies if s.unsupported(job.spec) is None]
        return [m.sample(rows, cold) for m in matmuls for rows in ROWS for cold in (False, True)]


class MeasuredMatmul:
    """One strategy's kernels, compiled, and its weight."""

    def __init__(self, strategy: CpuStrategy, job: CpuJob) -> None:
        self.strategy = strategy
        self.job = job
        self.pack = strategy.pack_kernel(job.spec)
        self.schedules = job.schedules(strategy)
        self.variants = strategy.matmul_kernels(job.spec, self.schedules)
        self.weight = strategy.pack_weight(job.spec, random_weight(job.spec))
        kernels = [variant.kernel for variant in self.variants]
        kernels += [self.pack] if self.pack else []
        with ir.Context(), ir.Location.unknown():
            module = ir.Module.create()
            for kernel in {kernel.name: kernel for kernel in kernels}.values():
                kernel.emit(module, job.isa)
            self.jit = Jit(module, job.isa, list(dict.fromkeys(k.name for k in kernels)))

    @cached_property
    def copies(self) -> list[np.ndarray]:
        """Of the weight, as many as are read before the first comes again."""
        count = -(-COLD_BYTES // self.weight.nbytes)
        return [aligned(self.weight) for _ in range(count)]

    @cached_property
    def turns(self) -> Iterator[np.ndarray]:
        """The copies, which all samples go on through: one that began anew would find those of the
        last sample in a cache."""
        return itertools.cycle(self.copies)

    def sample(self, rows: int, cold: bool) -> Sample:
        """Packing and matmul of `rows` rows; `cold`: another copy of the weight each time."""
        weights = self.turns if cold else itertools.repeat(self.copies[0])
        times = time_calls(self._calls(rows, weights))
        return Sample(
            features=self._features(rows, self.weight.nbytes * len(self.copies) if cold else 0),
            seconds=statistics.median(times),
            repetitions=len(times),
            spread=spread(times),
        )

    def _calls(self, rows: int, weights: Iterator[np.ndarray]) -> Iterator[Callable[[], None]]:
        """A call for each weight."""
        spec, strategy = self.job.spec, self.strategy
        x = aligned(np.random.default_rng(1).standard_normal(rows * spec.k, np.float32))
        y, bias = (aligned(np.zeros(size, np.float32)) for size in (rows * spec.n, spec.n))
        q = x
        pack: Callable[[], None] = lambda: None  # noqa: E731
        if self.pack:
            q = aligned(np.zeros(rows * strategy.row_bytes(spec), np.uint8))
            pack = self.jit.prepare(self.pack.name, self.pack.grid(rows), [x, q, rows])
        kernel = next(variant.kernel for variant in self.variants if variant.covers(rows))
        grid = kernel.grid(rows, spec.n)
        for weight in weights:
            matmul = self.jit.prepare(kernel.name, grid, [q, weight, bias, y, rows, spec.n])

            def both(matmul: Callable[[], None] = matmul) -> None:
                pack()
                matmul()

            yield both

    def _features(self, rows: int, working_set: int) -> MatmulFeatures:
        of_rows = next(s for s in self.schedules if s.last is None or rows <= s.last)
        return matmul_features(
            self.strategy.name,
            self.job.spec,
            of_rows.schedule.on(self.job.isa),
            rows,
            self.job.isa,
            weight_bytes=self.weight.nbytes,
            working_set=working_set,
        )


def time_calls(
    calls: Iterator[Callable[[], None]],
    fewest: int = MIN_CALLS,
    most: int = MAX_CALLS,
    seconds: float = SECONDS,
) -> list[float]:
    """Seconds of the thread in each of several calls, after one that warms up."""
    next(calls)()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < fewest or (time.perf_counter() < end and len(times) < most):
        call = next(calls)
        begin = time.thread_time()
        call()
        times.append(time.thread_time() - begin)
    return times


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins where weights and buffers of an artifact do."""
    copy = empty_aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def random_weight(spec: MatmulSpec) -> QuantizedTensor | np.ndarray:
    """Random codes (or floats) of a spec's weight: quantizing floats would take longer."""
    rng = np.random.default_rng(0)
    if spec.weight is None:
        return rng.standard_normal((spec.n, spec.k), np.float32)
    format = spec.weight.format
    codes = rng.choice(format.codes, (spec.n, spec.k)).astype(format.dtype)
    groups = (spec.n, spec.weight.n_groups(spec.k))
    scale = np.full(groups, 0.01, np.float16 if spec.scale_bits == 16 else np.float32)
    zero = None if spec.weight.symmetric else np.zeros(groups, np.uint8)
    symbols = None
    if spec.trellis:
        shape = trellis.Panels(spec.n).padded_n, spec.k
        symbols = rng.integers(0, 1 << spec.weight.bits, shape, np.uint8)
        codes = trellis.decode(symbols, spec.n, spec.weight.bits)
    return QuantizedTensor(codes, scale, zero, spec.weight, symbols=symbols)
