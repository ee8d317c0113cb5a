"""Boosted trees by LightGBM, as the arrays of costmodel/trees.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
from abqc.costmodel.trees import F64, Trees
from numpy.typing import NDArray

THRESHOLD_DIGITS, LEAF_DIGITS = 6, 3
CLIP = 0.1  # of errors: timings have outliers

Objective = Callable[[F64, lightgbm.Dataset], tuple[F64, F64]]


@dataclass(frozen=True)
class Boosting:
    """A `FitTrees` (costmodel/residual.py). The numbers are those of least error in three-fold
    cross-validation over tasks of training."""

    trees: int = 400
    depth: int = 6
    leaves: int = 40
    rate: float = 0.08
    objective: str = "huber"  # or "binary": targets are 0 or 1, sums log-odds
    columns: float = 0.5  # part of the features that a tree looks at
    groups: NDArray[np.int64] | None = None  # of each row: those of a group are compared
    within: float = 2.0  # weight of differences from the mean of a group, beside the value itself

    def __call__(self, rows: F64, targets: F64) -> Trees:
        base = float(targets.mean())
        if self.objective == "binary":
            share = min(max(base, 1e-3), 1 - 1e-3)
            base = math.log(share / (1 - share))
        parameters = {
            "objective": self.objective,
            "alpha": CLIP,
            "max_depth": self.depth,
            "num_leaves": self.leaves,
            "learning_rate": self.rate,
            "min_data_in_leaf": 6,
            "lambda_l2": 0.5,
            "feature_fraction": self.columns,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "boost_from_average": False,
            "num_threads": 1,
            "deterministic": True,
            "seed": 1,
            "verbose": -1,
        }
        if self.objective == "binary":
            begin = np.full(len(targets), base)
            data = lightgbm.Dataset(rows, targets, init_score=begin)
        else:
            data = lightgbm.Dataset(rows, targets - base)
        if self.groups is not None:
            parameters["objective"] = _compared(self.groups, targets - base, self.within)
        booster = lightgbm.train(parameters, data, self.trees)
        return self._arrays(base, booster.dump_model()["tree_info"])

    def _arrays(self, base: float, dumped: list[dict[str, Any]]) -> Trees:
        inner = (1 << self.depth) - 1
        feature = np.zeros((len(dumped), inner), np.int64)
        threshold = np.full((len(dumped), inner), np.inf)
        leaf = np.zeros((len(dumped), inner + 1))

        def fill(tree: int, node: int, part: dict[str, Any]) -> None:
            if node >= inner:
                leaf[tree, node - inner] = _rounded(part["leaf_value"], LEAF_DIGITS)
                return
            if "leaf_value" in part:  # of a smaller depth: all that comes goes left
                fill(tree, 2 * node + 1, part)
                return
            assert part["decision_type"] == "<="
            feature[tree, node] = part["split_feature"]
            threshold[tree, node] = _rounded(part["threshold"], THRESHOLD_DIGITS)
            fill(tree, 2 * node + 1, part["left_child"])
            fill(tree, 2 * node + 2, part["right_child"])

        for number, tree in enumerate(dumped):
            fill(number, 0, tree["tree_structure"])
        return Trees(base, feature, threshold, leaf)


def _compared(groups: NDArray[np.int64], targets: F64, within: float) -> Objective:
    """Huber's loss of the error, and `within` times that of the error less the mean of its group:
    a choice is among the rows of a group, whose common error does not matter."""
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weight = np.where(counts > 1, within, 0.0)[place]

    def gradients(sums: F64, data: lightgbm.Dataset) -> tuple[F64, F64]:
        errors = sums - targets
        own = errors - (np.bincount(place, errors) / counts)[place]
        gradient = np.clip(errors, -CLIP, CLIP) + weight * np.clip(own, -CLIP, CLIP)
        return gradient, 1 + weight

    return gradients


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
