"""What measurements add to an analytic model: trees over log(measured / analytic)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from . import features as feature_list
from .interface import Estimate, Features, Sample
from .trees import Growth, Trees
from .trees import fit as fit_trees

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Residual:
    """A factor for each query, 1 where the query lies outside of what was measured.

    `names` are the numeric features, `categories` the strategies (with their ISAs) that were
    measured, each a feature of its own, 0 or 1. `low` and `high` are the ranges of the features
    that describe what is asked.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    trees: Trees
    samples: int
    device: str
    date: str

    @classmethod
    def fit(
        cls, samples: Sequence[Sample], estimates: Sequence[Estimate], growth: Growth | None
    ) -> Self:
        """Trained on samples of one kind of features, at least one."""
        kind = type(samples[0].features)
        categories = tuple(sorted({feature_list.category(s.features) for s in samples}))
        pairs = list(zip(samples, estimates, strict=True))
        rows = np.array([_row(s.features, e, categories) for s, e in pairs])
        logs = np.array([math.log(s.seconds / e.seconds) for s, e in pairs])
        asked = rows[:, : len(feature_list.asked_names(kind))]
        return cls(
            names=feature_list.names(kind),
            categories=categories,
            low=tuple(asked.min(axis=0).tolist()),
            high=tuple(asked.max(axis=0).tolist()),
            trees=fit_trees(rows, logs, growth),
            samples=len(samples),
            device=_only({s.device for s in samples}),
            date=max(s.date for s in samples),
        )

    def factor(self, features: Features, estimate: Estimate) -> float:
        """Measured over analytic seconds, as far as the samples tell."""
        if not self.covers(features, estimate):
            return 1.0
        row = _row(features, estimate, self.categories)
        return math.exp(self.trees.predict(np.array([row]))[0])

    @property
    def isas(self) -> frozenset[str]:
        """The ISAs of the code, the last word of each category, that were measured."""
        return frozenset(category.rpartition(" ")[2] for category in self.categories)

    def covers(self, features: Features, estimate: Estimate) -> bool:
        """Whether everything that is asked lies within what was measured."""
        if feature_list.category(features) not in self.categories:
            return False
        asked = feature_list.numbers(features, estimate)[: len(self.low)]
        return all(
            low - TOLERANCE <= value <= high + TOLERANCE
            for low, value, high in zip(self.low, asked, self.high, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "features": self.names,
            "categories": self.categories,
            "low": self.low,
            "high": self.high,
            "trees": self.trees.to_json(),
            "samples": self.samples,
            "device": self.device,
            "date": self.date,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], kind: type) -> Self:
        """Raises ValueError, KeyError or TypeError; a list of features that is not today's is a
        ValueError."""
        names = tuple(data["features"])
        if names != feature_list.names(kind):
            raise ValueError("it was trained on other features")
        categories = tuple(map(str, data["categories"]))
        low, high = (tuple(map(float, data[key])) for key in ("low", "high"))
        if not len(low) == len(high) == len(feature_list.asked_names(kind)):
            raise ValueError("its ranges do not fit its features")
        return cls(
            names=names,
            categories=categories,
            low=low,
            high=high,
            trees=Trees.from_json(data["trees"], len(names) + len(categories)),
            samples=int(data["samples"]),
            device=str(data["device"]),
            date=str(data["date"]),
        )


def _row(features: Features, estimate: Estimate, categories: Sequence[str]) -> list[float]:
    own = feature_list.category(features)
    numbers = feature_list.numbers(features, estimate)
    return numbers + [float(own == category) for category in categories]


def _only(names: set[str]) -> str:
    return names.pop() if len(names) == 1 else "several devices"
