"""Which schedules of which matmuls are measured, and their launches."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.matmul.strategy import Scheduled
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.costmodel.interface import KernelFeatures
from gpukit.bars import needs
from gpukit.kit import MatmulLaunches, TableJob

from .images import Images
from .plan import Plan


@dataclass(frozen=True)
class Chosen:
    """A schedule of a strategy for one matmul of `features.m` rows; `rank` 0 is the best."""

    format: str
    spec: MatmulSpec
    strategy: Any  # GpuStrategy
    schedule: Schedule
    features: KernelFeatures
    predicted: float
    rank: int = 0

    @property
    def kernel(self) -> Kernel:
        return self.strategy.kernel(self.spec, self.schedule)

    @property
    def kernels(self) -> list[Kernel]:
        """Those of all its launches."""
        pack = self.strategy.pack_kernel(self.spec)
        reduce = self.strategy.reduce_kernel(self.spec, self.schedule)
        return [k for k in (pack, self.kernel, reduce) if k is not None]

    def launches(self, m: int, n: int) -> MatmulLaunches:
        """For m rows of a weight of n columns."""
        pack = self.strategy.pack_kernel(self.spec)
        reduce = self.strategy.reduce_kernel(self.spec, self.schedule)
        kernel, split = self.kernel, self.schedule.grid_split
        grid, stream = kernel.grid(m, n) * split, kernel.stream
        return MatmulLaunches(
            kernel=kernel.name,
            grid=grid,
            split=split,
            pack=pack.name if pack else None,
            pack_grid=pack.grid(m) if pack else 0,
            row_bytes=self.strategy.row_bytes(self.spec) if pack else 0,
            reduce=reduce.name if reduce else None,
            reduce_grid=reduce.grid(m, n) if reduce else 0,
            slots_bytes=grid * stream.slot_bytes if stream else 0,
            counters=grid * stream.flags if stream else 0,
        )

    def job(self, images: Images) -> TableJob:
        registers = images.built[self.kernel.name].registers
        return TableJob(
            self.format,
            self.strategy.name,
            self.rank,
            self.predicted,
            self.launches(self.features.m, self.features.n),
            dataclasses.asdict(replace(self.features, registers=registers)),
        )


def select(plan: Plan, target: CudaTarget) -> list[Chosen]:
    """The best schedule of every line of the table and, where there are many rows, of every
    strategy, of some also without a tensor map; then those that follow, until there are
    `max_kernels` kernels. Lines that bars need come first, one row before many."""
    lines = list(_lines(plan, target, plan.formats, plan.shapes, plan.rows))
    chosen = [every[0] for every in lines]
    for every in lines:
        if every[0].features.m == max(plan.rows):
            chosen += _best_of_others(every)
    chosen += [_without_boxes(c, target) for c in chosen if plan.compares(c.spec, c.features.m)]
    chosen = list(dict.fromkeys(chosen))
    kernels = {k.name for c in chosen for k in c.kernels}
    for rank in range(1, plan.following + 1):
        for every in sorted(lines, key=_importance):
            if rank < len(every):
                added = {k.name for k in every[rank].kernels} - kernels
                if len(kernels) + len(added) <= plan.max_kernels:
                    kernels |= added
                    chosen.append(every[rank])
    return sorted(dict.fromkeys(chosen), key=_urgency)


def sampled(plan: Plan, target: CudaTarget) -> list[Chosen]:
    """The best schedule of a line, and some of the better third that are drawn at random, the same
    in every kit."""
    draw = random.Random(0)
    chosen: list[Chosen] = []
    if not plan.sampled:
        return chosen
    for every in _lines(plan, target, plan.sampled_formats, plan.sampled_shapes, plan.sampled_rows):
        better = every[1 : max(plan.sampled, len(every) // 3)]
        chosen += every[:1] + draw.sample(better, min(plan.sampled - 1, len(better)))
    return chosen


def other_formats(plan: Plan, target: CudaTarget) -> list[Chosen]:
    """The best schedule of every strategy for one row and for the most, of formats that are checked
    alone."""
    k, n = plan.other_shape
    rows = [1, max(plan.rows)]
    return list(_best(plan.others, [(k, n)], rows, plan, target))


def _urgency(chosen: Chosen) -> tuple[bool, int]:
    features = dataclasses.asdict(chosen.features)
    return not needs(features, chosen.format), chosen.features.m


def best_of_each(plan: Plan, target: CudaTarget, rows: list[int]) -> Iterator[Chosen]:
    """The best schedule of every strategy with tensor cores, for each number of rows."""
    return _best(plan.formats, plan.shapes, rows, plan, target)


def _best(
    formats: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    plan: Plan,
    target: CudaTarget,
) -> Iterator[Chosen]:
    for m in rows:
        for format in formats:
            for k, n in shapes:
                spec = plan.spec(format, n, k)
                for s in target.strategies:
                    if s.unsupported(spec) is None:
                        every = _candidates(format, spec, s, m, target)
                        yield min(every, key=lambda c: c.predicted)


def _importance(every: list[Chosen]) -> tuple[bool, int]:
    """The ends of the table first: one row, then the most."""
    m = every[0].features.m
    return m != 1, -m


def _best_of_others(every: list[Chosen]) -> list[Chosen]:
    first: dict[str, Chosen] = {}
    for candidate in every:
        first.setdefault(candidate.strategy.name, candidate)
    return [c for name, c in first.items() if name != every[0].strategy.name]


def _without_boxes(chosen: Chosen, target: CudaTarget) -> Chosen:
    """The same, but that threads copy rows 16 bytes at a time, where boxes of a tensor map do."""
    if not chosen.schedule.boxes:
        return chosen
    schedule = replace(chosen.schedule, boxes=False)
    features = chosen.strategy.features(chosen.spec, schedule, chosen.features.m)
    features = replace(features, arch=target.archs[0].name)
    predicted = target.models[0].predict(features)
    return replace(chosen, schedule=schedule, features=features, predicted=predicted, rank=1)


def _lines(
    plan: Plan,
    target: CudaTarget,
    formats: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
) -> Iterator[list[Chosen]]:
    """For each line of the table its candidates, best first."""
    for format in formats:
        for k, n in shapes:
            spec = plan.spec(format, n, k)
            able = [s for s in target.strategies if s.unsupported(spec) is None]
            for m in rows:
                found = [c for s in able for c in _candidates(format, spec, s, m, target)]
                found.sort(key=lambda c: c.predicted)
                yield [replace(c, rank=rank) for rank, c in enumerate(found)]


def _candidates(
    format: str, spec: MatmulSpec, scheduled: Scheduled, m: int, target: CudaTarget
) -> Iterator[Chosen]:
    schedules = scheduled.able(spec, m)
    features = [scheduled.described(spec, schedule, m)[0] for schedule in schedules]
    predicted = target.models[0].predict_all(features)
    for schedule, described, seconds in zip(schedules, features, predicted, strict=True):
        yield Chosen(format, spec, scheduled.strategy, schedule, described, seconds)
