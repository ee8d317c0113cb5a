"""The predictors that evaluate.py compares: each is fitted to timings and predicts others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from abqc.costmodel import features as feature_list
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.evaluate import problem
from abqc.costmodel.residual import FitTrees, Residual
from abqc.costmodel.trees import F64
from data import Timed, blind
from gradient_boosting import Boosting

Predictor = Callable[[Sequence[Timed]], F64]


def roofline(timed: Sequence[Timed]) -> F64:
    """The analytic model, which learns nothing."""
    return np.array(AnalyticModel().predict_all([each.features for each in timed]))


def trees_only(training: Sequence[Timed], fit: FitTrees | None = None) -> Predictor:
    """Trees over the same numbers but what the analytic model says."""
    fit = fit or Boosting()
    columns = [
        number
        for number, name in enumerate(feature_list.names(type(training[0].features)))
        if not name.endswith(" share")
    ]
    flags = sorted({feature_list.flag(each.features) for each in training})

    def rows(timed: Sequence[Timed]) -> F64:
        model = AnalyticModel()
        found = []
        for each in timed:
            numbers = feature_list.numbers(each.features, model.estimate(each.features))
            own = feature_list.flag(each.features)
            found.append([numbers[c] for c in columns] + [float(own == flag) for flag in flags])
        return np.array(found)

    trees = fit(rows(training), np.log([each.sample.seconds for each in training]))
    return lambda timed: np.exp(trees.predict(rows(timed)))


def roofline_and_trees(training: Sequence[Timed], fit: FitTrees | None = None) -> Predictor:
    """The analytic model times a residual, which answers whatever it is asked of strategies that it
    was trained on."""
    model = AnalyticModel()
    fit_seeing_and_blind(model, training, fit)
    assert model.residual is not None
    everywhere = unlimited(model.residual)

    def predict(timed: Sequence[Timed]) -> F64:
        kernels = [each.features for each in timed]
        estimates = [model.estimate(f) for f in kernels]
        learned = [f for f in kernels if feature_list.flag(f) in everywhere.flags]
        categories = tuple({feature_list.category(f) for f in learned})
        residual = dataclasses.replace(everywhere, categories=categories)
        return np.array([e.seconds for e in estimates]) * residual.factors(kernels, estimates)

    return predict


def fit_seeing_and_blind(
    model: AnalyticModel, training: Sequence[Timed], fit: FitTrees | None = None
) -> None:
    """Fit a residual to timings with and without the operations of their kernels, so that it can be
    asked both ways. Candidates for the same are compared."""
    samples = [each.sample for each in training]
    numbers: dict[tuple[object, ...], int] = {}
    own = [numbers.setdefault(problem(s.features), len(numbers)) for s in samples]
    groups = np.array([*own, *(len(numbers) + number for number in own)])
    both = [*samples, *(blind(each).sample for each in training)]
    model.fit(both, fit or Boosting(groups=groups))
    assert model.residual is not None
    model.residual = dataclasses.replace(model.residual, samples=len(samples))


def without_operations(predict: Predictor) -> Predictor:
    """A model that is asked without the operations of kernels."""
    return lambda timed: predict([blind(each) for each in timed])


def unlimited(residual: Residual) -> Residual:
    width = len(residual.low)
    low, high = (-math.inf,) * width, (math.inf,) * width
    return dataclasses.replace(residual, low=low, high=high)
