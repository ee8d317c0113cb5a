"""Measuring a machine and fitting the cost model to it: what `abqc tune` does.

    candidates -> jobs -> measured by a runner -> samples -> residual -> the user's cache folder

A residual is installed where it predicts samples that it was not fitted to better than the model
that there is without it. Targets differ in their jobs and runners alone (`tune_cpu.py`,
`tune_gpu.py`).
"""

from __future__ import annotations

import datetime
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from abqc.costmodel import samples as sample_files
from abqc.costmodel.evaluate import Comparison, Evaluation, evaluate
from abqc.costmodel.interface import KernelFeatures, Sample
from abqc.costmodel.load import AnyModel, analytic_model, model_path, shipped_model
from abqc.errors import AbqcError, ArtifactError, InputError

J = TypeVar("J", contravariant=True)
T = TypeVar("T")
Progress = Callable[[str, int, int], None]

SPREAD_LIMIT = 0.25  # of a sample: the middle half of its times over their median
WIDE_SHARE = 0.5  # of samples beyond it, from which on a machine is too busy to learn from


@dataclass(frozen=True)
class Device:
    """What was measured on; both names are free text that samples carry."""

    name: str
    driver: str = ""


class Runner(Protocol[J]):
    """Measures jobs of one kind on one device."""

    @property
    def device(self) -> Device: ...

    def measure(self, job: J) -> Sequence[Sample]:
        """Samples of one job; they need no device and date."""
        ...


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many seconds; `jobs` None means however many."""

    seconds: float
    jobs: int | None = None


def measure(
    runner: Runner[T], jobs: Sequence[T], budget: Budget, progress: Progress
) -> Iterator[Sample]:
    """Measure jobs in an order that makes every beginning a fair selection of them."""
    order = random.Random(0).sample(list(jobs), len(jobs))
    date = datetime.date.today().isoformat()
    device = runner.device
    started = time.perf_counter()
    for done, job in enumerate(order[: budget.jobs]):
        spent = time.perf_counter() - started
        if done and spent > budget.seconds:
            return
        progress("measure", int(spent), int(budget.seconds))
        for sample in runner.measure(job):
            yield Sample(
                features=sample.features,
                seconds=sample.seconds,
                device=device.name,
                driver=device.driver,
                date=date,
                repetitions=sample.repetitions,
                spread=sample.spread,
            )


def spread(times: Sequence[float]) -> float:
    """The range of the middle half of some times over their median; 0 for a single one."""
    if len(times) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


@dataclass(frozen=True)
class Kept:
    """What became of measured samples: those written to a file, and those that spread too wide."""

    samples: list[Sample]
    wide: list[Sample]


def keep(samples: Iterable[Sample], path: Path) -> Kept:
    """Append samples to a file, each as soon as it is measured, so that an interrupt loses none.
    Those that spread too wide are left out; AbqcError where most do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = Kept([], [])
    for sample in samples:
        if sample.spread > SPREAD_LIMIT:
            kept.wide.append(sample)
        else:
            sample_files.write(path, [sample])
            kept.samples.append(sample)
    measured = len(kept.samples) + len(kept.wide)
    if len(kept.wide) > WIDE_SHARE * measured or not kept.samples:
        spread = statistics.median(s.spread for s in (*kept.samples, *kept.wide)) if measured else 0
        raise AbqcError(
            f"the machine is too busy: {len(kept.wide)} of {measured} measurements spread by more "
            f"than {SPREAD_LIMIT:.0%}, {spread:.0%} in the middle; the cost model stays as it was",
            hint="run `abqc tune` when nothing else runs",
        )
    return kept


def for_target(samples: Sequence[Sample], target: str) -> list[Sample]:
    """The samples of one target. InputError where there are none."""
    mine = [
        sample
        for sample in samples
        if (sample.features.arch if isinstance(sample.features, KernelFeatures) else "cpu")
        == target
    ]
    if not mine:
        raise InputError(f"none of the {len(samples)} samples is of target '{target}'")
    return mine


def same_device(samples: Sequence[Sample], device: str) -> list[Sample]:
    """Those that were measured on `device`: samples of several do not mix."""
    return [sample for sample in samples if sample.device == device]


@dataclass(frozen=True)
class Tuned:
    """A model that was fitted. `evaluation` has the model that there is without it beside it, both
    on samples that they were not fitted to; `path` is None where that one is better, and stays."""

    model: AnyModel
    evaluation: Evaluation
    path: Path | None

    @property
    def text(self) -> str:
        """What was installed, or why nothing was."""
        if self.path is not None:
            return f"{self.path}: {self.model.status}"
        total = self.evaluation.total
        return (
            f"nothing is installed: {self.model.status} predicts with an error of "
            f"{total.before.mape:.1%}, what was fitted now with {total.after.mape:.1%}"
        )


def fit_and_save(target: str, samples: Sequence[Sample]) -> Tuned:
    """Fit a residual to the samples of a target; save it where compiles find it, if it is better
    than what they find without it."""
    mine = for_target(samples, target)
    present = shipped_model(target, device=mine[0].device)
    evaluation = evaluate(present, mine)
    total = evaluation.total
    if total.after.mape >= total.before.mape:
        return Tuned(present, evaluation, None)
    model = analytic_model(target, device=mine[0].device)
    model.fit(mine)
    path = model_path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    _set_aside(model, path)
    model.save(path)
    return Tuned(model, evaluation, path)


def _set_aside(model: AnyModel, path: Path) -> None:
    """Keep a file that is none of today's models, such as one of a newer version, under another
    name."""
    try:
        type(model).load(path)
    except ArtifactError:
        if path.exists():
            path.replace(path.with_suffix(".unreadable.json"))


HEADER = ("strategy", "samples", "error", "fitted", "rank", "fitted rank")


def report_rows(evaluation: Evaluation) -> list[tuple[object, ...]]:
    """Rows under `HEADER`: mean absolute errors and rank correlations, before and after."""
    return [_row(comparison) for comparison in evaluation.comparisons]


def _row(c: Comparison) -> tuple[object, ...]:
    errors = (f"{quality.mape:.1%}" for quality in (c.before, c.after))
    ranks = (f"{quality.spearman:.3f}" for quality in (c.before, c.after))
    return (c.group, c.before.samples, *errors, *ranks)
