"""Boosted trees by LightGBM, as the arrays of costmodel/trees.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
from abqc.costmodel.trees import F64, Trees

THRESHOLD_DIGITS, LEAF_DIGITS = 6, 3


@dataclass(frozen=True)
class Boosting:
    """A `FitTrees` (costmodel/residual.py). The numbers are those of least error in three-fold
    cross-validation over tasks of training."""

    trees: int = 400
    depth: int = 6
    leaves: int = 40
    rate: float = 0.08
    objective: str = "huber"  # timings have outliers; "binary": targets are 0 or 1, sums log-odds
    columns: float = 0.5  # part of the features that a tree looks at

    def __call__(self, rows: F64, targets: F64) -> Trees:
        base = float(targets.mean())
        if self.objective == "binary":
            share = min(max(base, 1e-3), 1 - 1e-3)
            base = math.log(share / (1 - share))
        parameters = {
            "objective": self.objective,
            "alpha": 0.1,
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


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
