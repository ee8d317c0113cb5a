"""Measuring a machine and fitting the cost model to it: what `abqc tune` does.

    candidates -> jobs -> measured by a runner -> samples -> residual -> the user's cache folder

Targets differ in their jobs and runners alone (`tune_cpu.py`, `tune_gpu.py`).
"""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from abqc.costmodel.evaluate import Comparison, Evaluation, evaluate
from abqc.costmodel.interface import KernelFeatures, Sample
from abqc.costmodel.load import AnyModel, analytic_model, model_path
from abqc.errors import InputError

J = TypeVar("J", contravariant=True)
T = TypeVar("T")
Progress = Callable[[str, int, int], None]


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
            )


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
    """A model that was fitted and saved."""

    model: AnyModel
    evaluation: Evaluation
    path: Path


def fit_and_save(target: str, samples: Sequence[Sample]) -> Tuned:
    """Fit a residual to the samples of a target and save it where compiles find it."""
    mine = for_target(samples, target)
    model = analytic_model(target, device=mine[0].device)
    evaluation = evaluate(model, mine)
    model.fit(mine)
    path = model_path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    return Tuned(model, evaluation, path)


HEADER = ("strategy", "samples", "error", "fitted", "rank", "fitted rank")


def report_rows(evaluation: Evaluation) -> list[tuple[object, ...]]:
    """Rows under `HEADER`: mean absolute errors and rank correlations, before and after."""
    return [_row(comparison) for comparison in evaluation.comparisons]


def _row(c: Comparison) -> tuple[object, ...]:
    errors = (f"{quality.mape:.1%}" for quality in (c.before, c.after))
    ranks = (f"{quality.spearman:.3f}" for quality in (c.before, c.after))
    return (c.group, c.before.samples, *errors, *ranks)
