"""What measurements add to an analytic model: trees over log(measured / analytic)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from . import features as feature_list
from .interface import Estimate, Features, Sample
from .trees import F64, Trees

TOLERANCE = 1e-6
OPEN = frozenset({"m", "n", "k", "group_size"})  # larger ones are like the largest measured

FitTrees = Callable[[F64, F64], Trees]  # from rows [samples, features] and targets [samples]


@dataclass(frozen=True)
class Residual:
    """A factor for each query, 1 where the query lies outside of what was measured; sizes beyond
    the largest are answered as that.

    `names` are the numeric features, `categories` the strategies (with their ISAs) that were
    measured; each of `flags` is a feature, 0 or 1. `low` and `high` are the ranges of the features
    that describe what is asked.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    flags: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    trees: Trees
    samples: int
    device: str
    date: str

    @classmethod
    def fit(
        cls, samples: Sequence[Sample], estimates: Sequence[Estimate], fit_trees: FitTrees
    ) -> Self:
        """Trained on samples of one kind of features, at least one."""
        kind = type(samples[0].features)
        flags = tuple(sorted({feature_list.flag(s.features) for s in samples}))
        pairs = list(zip(samples, estimates, strict=True))
        rows = np.array([_row(s.features, e, flags) for s, e in pairs])
        logs = np.array([math.log(s.seconds / e.seconds) for s, e in pairs])
        asked = rows[:, : len(feature_list.asked_names(kind))]
        return cls(
            names=feature_list.names(kind),
            categories=tuple(sorted({feature_list.category(s.features) for s in samples})),
            flags=flags,
            low=tuple(asked.min(axis=0).tolist()),
            high=tuple(asked.max(axis=0).tolist()),
            trees=fit_trees(rows, logs),
            samples=len(samples),
            device=_only({s.device for s in samples}),
            date=max(s.date for s in samples),
        )

    def factors(self, features: Sequence[Features], estimates: Sequence[Estimate]) -> F64:
        """Measured over analytic seconds of each, as far as the samples tell."""
        factors = np.ones(len(features))
        if not features:
            return factors
        measured = [
            i for i, f in enumerate(features) if feature_list.category(f) in self.categories
        ]
        if not measured:
            return factors
        rows = np.array([_row(features[i], estimates[i], self.flags) for i in measured])
        asked = rows[:, : len(self.low)]
        inside = ((asked >= self._lowest) & (asked <= self._highest)).all(axis=1)
        factors[np.array(measured)[inside]] = np.exp(self.trees.predict(rows[inside]))
        return factors

    def factor(self, features: Features, estimate: Estimate) -> float:
        """The same of one."""
        return float(self.factors([features], [estimate])[0])

    @property
    def isas(self) -> frozenset[str]:
        """The ISAs of the code, the last word of each category, that were measured."""
        return frozenset(category.rpartition(" ")[2] for category in self.categories)

    @cached_property
    def _lowest(self) -> F64:
        return np.array(self.low) - TOLERANCE

    @cached_property
    def _highest(self) -> F64:
        names = self.names[: len(self.high)]
        ends = zip(names, self.high, strict=True)
        return np.array([math.inf if name in OPEN else high + TOLERANCE for name, high in ends])

    def to_json(self) -> dict[str, Any]:
        return {
            "features": self.names,
            "categories": self.categories,
            "flags": self.flags,
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
        categories, flags = (tuple(map(str, data[key])) for key in ("categories", "flags"))
        low, high = (tuple(map(float, data[key])) for key in ("low", "high"))
        if not len(low) == len(high) == len(feature_list.asked_names(kind)):
            raise ValueError("its ranges do not fit its features")
        return cls(
            names=names,
            categories=categories,
            flags=flags,
            low=low,
            high=high,
            trees=Trees.from_json(data["trees"], len(names) + len(flags)),
            samples=int(data["samples"]),
            device=str(data["device"]),
            date=str(data["date"]),
        )


def _row(features: Features, estimate: Estimate, flags: Sequence[str]) -> list[float]:
    own = feature_list.flag(features)
    numbers = feature_list.numbers(features, estimate)
    return numbers + [float(own == flag) for flag in flags]


def _only(names: set[str]) -> str:
    return names.pop() if len(names) == 1 else "several devices"
