"""Gradient-boosted regression trees: small arrays, evaluated and trained in numpy.

Friedman, "Greedy Function Approximation: A Gradient Boosting Machine" (2001), for squared error;
thresholds lie between at most 64 quantiles of a feature, the gain of a split is that of XGBoost
(Chen, Guestrin, KDD 2016) without a penalty for leaves. Meant for some hundreds to thousands of
samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Split = tuple[int, float]  # a feature and a threshold

BINS = 64


@dataclass(frozen=True)
class Growth:
    """How trees are grown. `min_leaf` samples stand behind every leaf; `shrinkage` is what each
    tree adds of its prediction; `regularization` pulls leaves with few samples towards 0."""

    trees: int = 150
    depth: int = 4
    shrinkage: float = 0.1
    min_leaf: int = 3
    regularization: float = 1.0


@dataclass(frozen=True)
class Trees:
    """A sum of complete binary trees of one depth.

    `feature` and `threshold` are [trees, 2^depth - 1], node i's children are 2i + 1 (where the
    value is at most the threshold) and 2i + 2; `leaf` is [trees, 2^depth]. A node that does not
    split has the threshold infinity.
    """

    base: float
    feature: NDArray[np.int64]
    threshold: F64
    leaf: F64

    @property
    def depth(self) -> int:
        return int(self.leaf.shape[1]).bit_length() - 1

    def predict(self, rows: F64) -> F64:
        """The sums for `rows` [samples, features]."""
        trees, inner = self.feature.shape
        feature, threshold, values = self.feature.ravel(), self.threshold.ravel(), rows.ravel()
        root = np.arange(trees) * inner
        row = (np.arange(len(rows)) * rows.shape[1])[:, None]
        node = np.zeros((len(rows), trees), np.intp)
        for _ in range(self.depth):
            at = node + root
            right = values.take(row + feature.take(at)) > threshold.take(at)
            node = 2 * node + 1 + right
        leaf = node + (np.arange(trees) * (inner + 1) - inner)
        return self.base + self.leaf.ravel().take(leaf).sum(axis=1)

    def to_json(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "feature": self.feature.tolist(),
            # JSON has no infinity.
            "threshold": [[t if np.isfinite(t) else None for t in row] for row in self.threshold],
            "leaf": self.leaf.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], features: int) -> Self:
        """Raises ValueError, KeyError or TypeError for arrays that are not of trees."""
        feature = np.array(data["feature"], np.int64)
        rows = [[np.inf if t is None else t for t in row] for row in data["threshold"]]
        threshold, leaf = np.array(rows, np.float64), np.array(data["leaf"], np.float64)
        trees, leaves = leaf.shape if leaf.ndim == 2 else (0, 1)
        if not trees:
            feature, threshold = feature.reshape(0, 0), threshold.reshape(0, 0)
            leaf = leaf.reshape(0, 1)
        if feature.shape != (trees, leaves - 1) or threshold.shape != feature.shape:
            raise ValueError("the arrays of the trees do not fit together")
        if leaves & (leaves - 1) or ((feature < 0) | (feature >= features)).any():
            raise ValueError("the trees ask for features that do not exist")
        return cls(float(data["base"]), feature, threshold, leaf)


def fit(rows: F64, targets: F64, growth: Growth | None = None) -> Trees:
    """Trees whose sum approximates `targets` [samples] from `rows` [samples, features]."""
    growth = growth or Growth()
    bins = _Bins.of(rows)
    base = float(targets.mean())
    rest = targets - base
    inner = (1 << growth.depth) - 1
    feature = np.zeros((growth.trees, inner), np.int64)
    threshold = np.full((growth.trees, inner), np.inf)
    leaf = np.zeros((growth.trees, inner + 1))
    for tree in range(growth.trees):
        members = {0: np.arange(len(rows))}
        for node in range(inner):
            here = members.pop(node)
            split = bins.best_split(here, rest[here], growth)
            right = np.zeros(len(here), bool)
            if split is not None:
                feature[tree, node], threshold[tree, node] = split
                right = rows[here, split[0]] > split[1]
            members[2 * node + 1], members[2 * node + 2] = here[~right], here[right]
        for node, here in members.items():
            value = rest[here].sum() / (len(here) + growth.regularization)
            leaf[tree, node - inner] = growth.shrinkage * value
            rest[here] -= leaf[tree, node - inner]
    return Trees(base, feature, threshold, leaf)


@dataclass(frozen=True)
class _Bins:
    """`slots` [samples, features] are the bins of the values, counted on from feature to feature;
    bin i of a feature ends at `edges` [features, BINS - 1], infinity where there are fewer."""

    slots: NDArray[np.int64]
    edges: F64

    @classmethod
    def of(cls, rows: F64) -> Self:
        edges = np.full((rows.shape[1], BINS - 1), np.inf)
        slots = np.empty(rows.shape, np.int64)
        for number, column in enumerate(rows.T):
            values = np.unique(column)
            if len(values) > BINS:
                values = np.unique(np.quantile(column, np.linspace(0, 1, BINS), method="nearest"))
            edges[number, : len(values) - 1] = (values[1:] + values[:-1]) / 2
            slots[:, number] = np.searchsorted(edges[number], column) + number * BINS
        return cls(slots, edges)

    def best_split(self, here: NDArray[np.int64], rest: F64, growth: Growth) -> Split | None:
        """The feature and threshold that lower the squared error of `rest`, of the samples `here`,
        most; None if nothing does."""
        total = len(here)
        if total < 2 * growth.min_leaf:
            return None
        slots = self.slots[here]
        shape, width = (slots.shape[1], BINS), slots.shape[1]
        counts = np.bincount(slots.ravel(), minlength=width * BINS).reshape(shape)
        sums = np.bincount(slots.ravel(), np.repeat(rest, width), width * BINS).reshape(shape)
        left, left_sum = counts.cumsum(axis=1)[:, :-1], sums.cumsum(axis=1)[:, :-1]

        def score(sums: F64, counts: NDArray[np.int64]) -> F64:
            return sums**2 / (counts + growth.regularization)

        everything = rest.sum()
        gain = score(left_sum, left) + score(everything - left_sum, total - left)
        gain -= everything**2 / (total + growth.regularization)
        allowed = (left >= growth.min_leaf) & (total - left >= growth.min_leaf)
        gain = np.where(allowed, gain, 0.0)
        feature, at = np.unravel_index(np.argmax(gain), gain.shape)
        if gain[feature, at] <= 1e-12:
            return None
        return int(feature), float(self.edges[feature, at])
