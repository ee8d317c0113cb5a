"""How good a cost model is: errors and ranks before and after the residual, held out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .features import category
from .interface import Features, MatmulFeatures, Sample
from .residual import FitTrees
from .roofline import Roofline
from .trees import fit

FOLDS = 5


@dataclass(frozen=True)
class Quality:
    """Of predictions for one group of samples. `mape` is the mean of |predicted / measured - 1|,
    `spearman` the correlation of the ranks (nan for fewer than two samples)."""

    samples: int
    mape: float
    spearman: float


@dataclass(frozen=True)
class Comparison:
    """A model beside one with a residual fitted now, on samples that that was not fitted to."""

    group: str
    before: Quality
    after: Quality


@dataclass(frozen=True)
class Evaluation:
    """`comparisons` by strategy (and ISA), then over `all`. The regrets say how much slower the
    predicted best candidate is than the measured best: geometric means over `problems` that were
    measured with several candidates."""

    comparisons: tuple[Comparison, ...]
    problems: int
    regret_before: float
    regret_after: float

    @property
    def total(self) -> Comparison:
        return self.comparisons[-1]


def evaluate(
    model: Roofline[Any], samples: Sequence[Sample], fit_trees: FitTrees = fit
) -> Evaluation:
    """`model` as it is against its analytic part with a residual cross-validated on `samples`."""
    measured = np.array([sample.seconds for sample in samples])
    before = _predictions(model, samples)
    learned = _held_out(model, samples, fit_trees)
    groups = [category(sample.features) for sample in samples]
    comparisons = []
    for name in (*sorted(set(groups)), "all"):
        at = np.array([name in (group, "all") for group in groups])
        comparisons.append(
            Comparison(
                name, _quality(before[at], measured[at]), _quality(learned[at], measured[at])
            )
        )
    problems = _problems(samples)
    return Evaluation(
        tuple(comparisons),
        len(problems),
        _regret(problems, before, measured),
        _regret(problems, learned, measured),
    )


def _problems(samples: Sequence[Sample]) -> list[list[int]]:
    """Places of samples of the same problem, where there are several candidates for it."""
    problems: dict[tuple[object, ...], list[int]] = {}
    for place, sample in enumerate(samples):
        problems.setdefault(problem(sample.features), []).append(place)
    return [places for places in problems.values() if len(places) > 1]


def problem(f: Features) -> tuple[object, ...]:
    """What is to be computed, whoever does it."""
    sizes = (f.m, f.n, f.k, f.weight_bits, f.activation_bits)
    if isinstance(f, MatmulFeatures):
        return (*sizes, f.groups, f.isa, f.threads, f.working_set > 0)
    return (*sizes, f.arch)


def product(f: Features) -> tuple[object, ...]:
    """The weight's sizes and the formats, for however many rows."""
    sizes = (f.n, f.k, f.weight_bits, f.activation_bits)
    return (*sizes, f.groups) if isinstance(f, MatmulFeatures) else (*sizes, f.arch)


def _regret(
    problems: Sequence[Sequence[int]],
    predicted: NDArray[np.float64],
    measured: NDArray[np.float64],
) -> float:
    if not problems:
        return 1.0
    chosen = [measured[places][np.argmin(predicted[places])] for places in map(list, problems)]
    best = [measured[places].min() for places in map(list, problems)]
    return float(np.exp(np.mean(np.log(chosen) - np.log(best))))


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The correlation of ranks, ties at the mean of their ranks; nan where it is undefined."""
    if len(a) < 2:
        return float("nan")
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / norm) if norm > 0 else float("nan")


def without_residual(model: Roofline[Any]) -> Roofline[Any]:
    """The same model, analytic only."""
    analytic = copy.copy(model)
    analytic.residual = None
    return analytic


def _predictions(model: Roofline[Any], samples: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array(model.predict_all([sample.features for sample in samples]))


def _held_out(
    model: Roofline[Any], samples: Sequence[Sample], fit_trees: FitTrees
) -> NDArray[np.float64]:
    """Each sample predicted by a residual that was fitted to those of other products."""
    fold = _folds(samples)
    predicted = np.empty(len(samples))
    for number in range(fold.max() + 1):
        others = [s for s, f in zip(samples, fold, strict=True) if f != number]
        own = [s for s, f in zip(samples, fold, strict=True) if f == number]
        trained = without_residual(model)
        if others:
            trained.fit(others, fit_trees)
        predicted[fold == number] = _predictions(trained, own)
    return predicted


def _folds(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """The fold of each sample. Samples of one product (weight and formats) share one: its kernels
    are measured for several numbers of rows, warm and cold, and those resemble each other more than
    what a model will be asked about."""
    numbers: dict[tuple[object, ...], int] = {}
    own = [numbers.setdefault(product(s.features), len(numbers)) for s in samples]
    folds = np.random.default_rng(0).permutation(len(numbers)) % min(FOLDS, len(numbers))
    return np.array(folds[own], np.int64)


def _quality(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> Quality:
    return Quality(
        samples=len(measured),
        mape=float(np.abs(predicted / measured - 1).mean()),
        spearman=spearman(predicted, measured),
    )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
