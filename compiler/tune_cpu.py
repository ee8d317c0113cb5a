"""Measuring CPU kernels in this process, through the JIT, on one thread."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from abqc.codegen import isa as isas
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import Jit
from abqc.codegen.strategy import Kernel, MatmulSpec, MatmulStrategy
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.tune import Device, spread
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.interface import MatmulFeatures, Sample
from abqc.dialects import trellis
from abqc.dialects.formats import QuantizedTensor, Scheme, parse_scheme
from abqc.dialects.mlir import ir

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
COLD_BYTES = 64 << 20  # weights that pass before the same ones are read again

MIN_CALLS, MAX_CALLS, SECONDS = 5, 50, 0.02  # of one sample


@dataclass(frozen=True)
class CpuJob:
    """Matmuls of one kind with the kernels of one ISA: every strategy that can do them is measured
    for all `ROWS`, warm and cold."""

    spec: MatmulSpec
    isa: Isa


def jobs(shapes: Sequence[tuple[int, int]] = SHAPES) -> list[CpuJob]:
    """All pairs of schemes and shapes, for every ISA that this CPU has."""
    return [
        CpuJob(MatmulSpec(n, k, _scheme(weight), _scheme(activation)), isa)
        for (weight, activation), (n, k) in itertools.product(PAIRS, shapes)
        for isa in isas.available()
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
        matmuls = [_Matmul(s, job) for s in strategies if s.unsupported(job.spec) is None]
        return [m.sample(rows, cold) for m in matmuls for rows in ROWS for cold in (False, True)]


class _Matmul:
    """One strategy's kernels, compiled, and its weight."""

    def __init__(self, strategy: MatmulStrategy, job: CpuJob) -> None:
        self.strategy = strategy
        self.job = job
        self.pack = strategy.pack_kernel(job.spec)
        self.variants = strategy.matmul_kernels(job.spec)
        self.weight = strategy.pack_weight(job.spec, random_weight(job.spec))
        self.copies = [self.weight]
        kernels = [variant.kernel for variant in self.variants]
        kernels += [self.pack] if self.pack else []
        with ir.Context(), ir.Location.unknown():
            module = ir.Module.create()
            for kernel in {kernel.name: kernel for kernel in kernels}.values():
                kernel.emit(module, job.isa)
            self.jit = Jit(module, job.isa, list(dict.fromkeys(k.name for k in kernels)))

    def sample(self, rows: int, cold: bool) -> Sample:
        """Packing and matmul of `rows` rows; `cold`: another copy of the weight each time."""
        count = -(-COLD_BYTES // self.weight.nbytes) if cold else 1
        while len(self.copies) < count:
            self.copies.append(self.weight.copy())
        copies = self.copies[:count]
        times = time_calls(self._calls(rows, copies))
        return Sample(
            features=self._features(rows, self.weight.nbytes * count if cold else 0),
            seconds=statistics.median(times),
            repetitions=len(times),
            spread=spread(times),
        )

    def _calls(self, rows: int, weights: Sequence[np.ndarray]) -> list[Callable[[], None]]:
        """One call for each copy of the weight."""
        spec, strategy = self.job.spec, self.strategy
        x = np.random.default_rng(1).standard_normal(rows * spec.k, np.float32)
        y, bias = np.zeros(rows * spec.n, np.float32), np.zeros(spec.n, np.float32)
        q = x
        pack: Callable[[], None] = lambda: None  # noqa: E731
        if self.pack:
            q = np.zeros(rows * strategy.row_bytes(spec), np.uint8)
            pack = self.jit.prepare(self.pack.name, self.pack.grid(rows), [x, q, rows])
        kernel = self._kernel_for(rows)
        grid = kernel.grid(rows, spec.n)
        matmuls = [
            self.jit.prepare(kernel.name, grid, [q, w, bias, y, rows, spec.n]) for w in weights
        ]

        def both(matmul: Callable[[], None]) -> None:
            pack()
            matmul()

        return [lambda matmul=matmul: both(matmul) for matmul in matmuls]  # type: ignore[misc]

    def _kernel_for(self, rows: int) -> Kernel:
        return next(variant.kernel for variant in self.variants if variant.covers(rows))

    def _features(self, rows: int, working_set: int) -> MatmulFeatures:
        spec = self.job.spec
        return MatmulFeatures(
            strategy=self.strategy.name,
            m=rows,
            n=spec.n,
            k=spec.k,
            weight_bits=spec.weight.bits if spec.weight else 32,
            activation_bits=spec.activation.bits if spec.activation else 32,
            weight_bytes=self.weight.nbytes,
            groups=spec.weight.n_groups(spec.k) if spec.weight else 1,
            isa=self.job.isa.name,
            working_set=working_set,
        )


def time_calls(calls: Sequence[Callable[[], None]]) -> list[float]:
    """Seconds of the thread in each of several calls, which take turns, after one that warms up."""
    calls[0]()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < MIN_CALLS or (time.perf_counter() < end and len(times) < MAX_CALLS):
        call = calls[(len(times) + 1) % len(calls)]
        begin = time.thread_time()
        call()
        times.append(time.thread_time() - begin)
    return times


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
