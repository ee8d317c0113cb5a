"""Building the candidates of a GPU target, so that they can be measured where there is a GPU."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from abqc.codegen.gpu.arch import GpuArch
from abqc.codegen.gpu.assembly.spills import compile_kernels
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.matmul.strategy import Scheduled
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.compiler import tune_jobs
from abqc.compiler.tune import Progress
from abqc.compiler.tune_device import GpuRunner, arch_named
from abqc.compiler.tune_jobs import BuiltKernel, GpuJob
from abqc.costmodel.gpu_analytic import GpuAnalyticModel
from abqc.costmodel.hardware import gpu_for
from abqc.costmodel.interface import KernelFeatures
from abqc.dialects.formats import Scheme, parse_scheme
from abqc.errors import InputError

# Weight and activation schemes; None is float.
PAIRS: tuple[tuple[str | None, str | None], ...] = (
    (None, None),
    ("w4", None),
    ("w2", None),
    ("w8", "a8"),
    ("w4", "a8"),
    ("w2", "a8"),
    ("w1", "a8"),
    ("w4", "a4"),
    ("w2", "a4"),
    ("w2", "a2"),
    ("w1", "a1"),
)
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008), (8192, 8192))  # N, K
ROWS = (1, 4, 8, 16, 64, 256, 1024, 4096)
LIMIT = 600  # jobs, unless the user says otherwise
HOPEFUL = 2.0  # times the predicted best: slower candidates are not worth measuring


class Strategy(Protocol):
    """What is needed of a GpuStrategy."""

    @property
    def name(self) -> str: ...

    def features(self, spec: MatmulSpec, schedule: Schedule, m: int) -> KernelFeatures: ...

    def reduce_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel | None: ...


@dataclass(frozen=True)
class Described:
    """A strategy on one target, with what is expected of its machine code."""

    scheduled: Scheduled

    @property
    def name(self) -> str:
        return self.scheduled.name

    def features(self, spec: MatmulSpec, schedule: Schedule, m: int) -> KernelFeatures:
        (features,) = self.scheduled.described(spec, schedule, m)
        return features

    def reduce_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel | None:
        return self.scheduled.strategy.reduce_kernel(spec, schedule)


Candidates = Callable[[MatmulSpec], Sequence[tuple[Strategy, Schedule, Kernel]]]


def target_candidates(target: str) -> tuple[GpuArch, Candidates]:
    """The description of a target, and what lists (strategy, schedule, kernel) for a matmul."""
    arch = arch_named(target)
    from abqc.codegen.targets.cuda import CudaTarget

    # Not the tuned model: one that cannot be read must not keep from tuning anew.
    cuda = CudaTarget(target, (arch,), (GpuAnalyticModel(gpu_for(target)),))

    def candidates(spec: MatmulSpec) -> list[tuple[Strategy, Schedule, Kernel]]:
        return [
            (Described(scheduled), schedule, scheduled.kernel(spec, schedule))
            for scheduled in cuda.strategies
            if scheduled.unsupported(spec) is None
            for schedule in scheduled.candidates(spec)
        ]

    return arch, candidates


@dataclass(frozen=True)
class Candidate:
    """One way to do one matmul."""

    strategy: Strategy
    spec: MatmulSpec
    schedule: Schedule
    kernel: Kernel
    features: KernelFeatures

    @property
    def reduce(self) -> Kernel | None:
        if self.schedule.grid_split == 1:
            return None
        return self.strategy.reduce_kernel(self.spec, self.schedule)


def specs() -> list[MatmulSpec]:
    """The matmuls that are measured."""
    return [
        MatmulSpec(n, k, _scheme(weight), _scheme(activation))
        for (weight, activation), (n, k) in itertools.product(PAIRS, SHAPES)
    ]


def _scheme(text: str | None) -> Scheme | None:
    return parse_scheme(text) if text else None


def select(
    candidates: Candidates, matmuls: Sequence[MatmulSpec], arch: GpuArch, limit: int
) -> list[Candidate]:
    """A fair selection of what may be fast, by the analytic model."""
    model = GpuAnalyticModel(gpu_for(arch.name))

    def features(s: Strategy, spec: MatmulSpec, schedule: Schedule, m: int) -> KernelFeatures:
        return replace(s.features(spec, schedule, m), arch=arch.name)

    found = []
    for spec in matmuls:
        listed = list(candidates(spec))
        for m in ROWS:
            able = [
                Candidate(strategy, spec, schedule, kernel, features(strategy, spec, schedule, m))
                for strategy, schedule, kernel in listed
                if schedule.max_rows is None or m <= schedule.max_rows
            ]
            seconds = model.predict_all([c.features for c in able])
            best = min(seconds, default=0.0)
            found += [c for c, s in zip(able, seconds, strict=True) if s <= HOPEFUL * best]
    return random.Random(0).sample(found, min(limit, len(found)))


def build_jobs(target: str, folder: Path, limit: int | None, progress: Progress) -> tuple[int, int]:
    """Write kernels and `jobs.json` to `folder`; the numbers of jobs and of kernels."""
    arch, candidates = target_candidates(target)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = select(candidates, specs(), arch, limit or LIMIT)
    if not chosen:
        raise InputError(f"target '{target}' has no candidates to measure")
    return build(chosen, arch, folder, progress)


def build(
    chosen: Sequence[Candidate], arch: GpuArch, folder: Path, progress: Progress
) -> tuple[int, int]:
    """Build every kernel of the candidates once; write the jobs."""
    kernels = {k.name: k for c in chosen for k in (c.kernel, c.reduce) if k}
    built: dict[str, _Built] = {}
    for done, (name, kernel) in enumerate(kernels.items()):
        progress("build", done, len(kernels))
        built[name] = _build(kernel, arch, folder)
    tune_jobs.write(folder, arch.name, [_job(c, built) for c in chosen])
    return len(chosen), len(kernels)


@dataclass(frozen=True)
class _Built:
    kernel: BuiltKernel
    registers: int  # of a thread; 0 where there was no assembler


def _build(kernel: Kernel, arch: GpuArch, folder: Path) -> _Built:
    """One kernel as a cubin, or as PTX where there is no assembler."""
    ptx, code = compile_kernels([kernel], arch)
    shape = ptx.kernels[kernel.name]
    registers = 0
    if code is not None:
        image = folder / f"{kernel.name}.cubin"
        image.write_bytes(code.cubin)
        registers = code.resources[kernel.name].registers
    else:
        image = folder / f"{kernel.name}.ptx"
        image.write_text(ptx.text)
    launchable = BuiltKernel(kernel.name, image, shape.threads, shape.shared, shape.maps)
    return _Built(launchable, registers)


def _job(candidate: Candidate, built: dict[str, _Built]) -> GpuJob:
    kernel, reduce = candidate.kernel, candidate.reduce
    m, n = candidate.features.m, candidate.features.n
    own, stream = built[kernel.name], kernel.stream
    grid = kernel.grid(m, n) * candidate.schedule.grid_split
    return GpuJob(
        kernel=own.kernel,
        grid=grid,
        features=replace(candidate.features, registers=own.registers),
        reduce=built[reduce.name].kernel if reduce else None,
        reduce_grid=reduce.grid(m, n) if reduce else 0,
        slots_bytes=grid * stream.slot_bytes if stream else 0,
        counters=grid * stream.flags if stream else 0,
    )


@contextmanager
def open_jobs(
    target: str, folder: Path | None, limit: int | None, progress: Progress
) -> Iterator[tuple[GpuRunner, list[GpuJob]]]:
    """The GPU of this machine and the jobs of `folder`, or jobs that are built now."""
    if folder is not None:
        jobs = tune_jobs.read(folder, target)
        with GpuRunner.for_target(target) as runner:
            yield runner, jobs
        return
    # Without a GPU there is nothing to build for.
    with GpuRunner.for_target(target) as runner, tempfile.TemporaryDirectory() as made:
        build_jobs(target, Path(made), limit, progress)
        yield runner, tune_jobs.read(Path(made), target)
