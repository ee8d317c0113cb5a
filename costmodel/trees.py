"""Gradient-boosted regression trees: small arrays, evaluated and trained in numpy.

Friedman, "Greedy Function Approximation: A Gradient Boosting Machine" (2001), for squared error;
splits are exact, their gain is that of XGBoost (Chen, Guestrin, KDD 2016) without a penalty for
leaves. Meant for some hundreds to thousands of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


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
        tree = np.arange(len(self.feature))
        sample = np.arange(len(rows))[:, None]
        node = np.zeros((len(rows), len(tree)), np.int64)
        for _ in range(self.depth):
            right = rows[sample, self.feature[tree, node]] > self.threshold[tree, node]
            node = 2 * node + 1 + right
        inner = self.feature.shape[1]
        return self.base + self.leaf[tree, node - inner].sum(axis=1)

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
            split = _best_split(rows[here], rest[here], growth)
            if split is not None:
                feature[tree, node], threshold[tree, node] = split
            right = rows[here, feature[tree, node]] > threshold[tree, node]
            members[2 * node + 1], members[2 * node + 2] = here[~right], here[right]
        for node, here in members.items():
            value = rest[here].sum() / (len(here) + growth.regularization)
            leaf[tree, node - inner] = growth.shrinkage * value
            rest[here] -= leaf[tree, node - inner]
    return Trees(base, feature, threshold, leaf)


def _best_split(rows: F64, rest: F64, growth: Growth) -> tuple[int, float] | None:
    """The feature and threshold that lower the squared error most; None if nothing does."""
    count = len(rows)
    if count < 2 * growth.min_leaf:
        return None
    order = np.argsort(rows, axis=0, kind="stable")
    values = np.take_along_axis(rows, order, axis=0)
    left_sum = np.cumsum(rest[order], axis=0)[:-1]
    left = np.arange(1, count)[:, None]
    total = rest.sum()

    def score(sums: F64, counts: NDArray[np.int64]) -> F64:
        return sums**2 / (counts + growth.regularization)

    gain = score(left_sum, left) + score(total - left_sum, count - left)
    gain -= total**2 / (count + growth.regularization)
    allowed = (left >= growth.min_leaf) & (count - left >= growth.min_leaf)
    gain = np.where(allowed & (values[1:] > values[:-1]), gain, 0.0)
    at, feature = np.unravel_index(np.argmax(gain), gain.shape)
    if gain[at, feature] <= 1e-12:
        return None
    return int(feature), float((values[at, feature] + values[at + 1, feature]) / 2)
