"""Decision trees as tables, in one form whatever version of the operator they come from.

A node compares a feature of the row with a number; which branch it takes is a bit of `rule`, by
how they compare. A leaf leads to itself, so that a walk of `depth` steps ends in a leaf from
everywhere. A leaf has a row of numbers, one for each target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from ..registry import Node

# Bits of a rule: the branch is taken where the feature is less than the number, equal, greater, or
# no number.
LESS, EQUAL, GREATER, NAN = 1, 2, 4, 8

_BY_NAME = {
    "BRANCH_LEQ": LESS | EQUAL, "BRANCH_LT": LESS, "BRANCH_GTE": GREATER | EQUAL,
    "BRANCH_GT": GREATER, "BRANCH_EQ": EQUAL, "BRANCH_NEQ": LESS | GREATER,
}  # fmt: skip

# Of TreeEnsemble, where NaN is different from every number. 6 is membership.
_BY_NUMBER = (LESS | EQUAL, LESS, GREATER | EQUAL, GREATER, EQUAL, LESS | GREATER | NAN)
_MEMBER = 6


@dataclass
class Forest:
    """Arrays over nodes, but `roots` over trees and `leaves`, numbers, rows x targets."""

    feature: np.ndarray
    split: np.ndarray
    rule: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    row: np.ndarray  # of `leaves`, 0 for inner nodes
    roots: np.ndarray
    leaves: np.ndarray
    depth: int

    @property
    def features(self) -> int:
        """Features that a row must have."""
        inner = self.yes != np.arange(len(self.yes))
        return int(self.feature[inner].max(initial=-1)) + 1


# How numbers of one target come together: a ufunc, and what an absent one is.
COMBINED = {
    "SUM": (np.add, 0.0), "AVERAGE": (np.add, 0.0),
    "MIN": (np.minimum, np.finfo(np.float32).max), "MAX": (np.maximum, np.finfo(np.float32).min),
}  # fmt: skip


def forest_of_lists(node: Node, prefix: str, targets: int, aggregate: str) -> Forest:
    """Of TreeEnsembleRegressor (`prefix` "target") and TreeEnsembleClassifier ("class")."""
    trees, ids = node.ints("nodes_treeids"), node.ints("nodes_nodeids")
    modes = node.strings("nodes_modes")
    number = {key: i for i, key in enumerate(zip(trees, ids, strict=True))}
    if len(number) < len(trees):
        raise node.error("a tree has two nodes of one number")
    missing = node.ints("nodes_missing_value_tracks_true", []) or [0] * len(trees)
    splits = numbers_of(node, "nodes_values")
    unknown = set(modes) - {"LEAF", *_BY_NAME}
    if unknown:
        raise node.error(f"a node has the mode '{min(unknown)}'")
    yes, no = (
        _targets_of_branches(node, trees, modes, node.ints(f"nodes_{side}nodeids"), number)
        for side in ("true", "false")
    )
    rules = [
        (_BY_NAME.get(mode, 0) | (NAN if tracks else 0))
        for mode, tracks in zip(modes, missing, strict=True)
    ]
    roots: dict[int, int] = {}
    for at, tree in enumerate(trees):
        roots.setdefault(tree, at)
    owners = [
        number.get(key, -1)
        for key in zip(node.ints(f"{prefix}_treeids"), node.ints(f"{prefix}_nodeids"), strict=True)
    ]
    weights = numbers_of(node, f"{prefix}_weights")
    row, leaves = _rows(
        node, len(trees), owners, node.ints(f"{prefix}_ids"), weights, targets, aggregate
    )
    return _checked(
        node, np.array(node.ints("nodes_featureids")), splits, np.array(rules), yes, no, row,
        np.array(list(roots.values())), leaves,
    )  # fmt: skip


def numbers_of(node: Node, name: str) -> np.ndarray:
    """Floats that are a list or, of doubles, a tensor."""
    if node.has(f"{name}_as_tensor"):
        return numpy_helper.to_array(node.tensor(f"{name}_as_tensor")).reshape(-1)
    return np.array(node.floats(name, []), np.float32)


def _targets_of_branches(
    node: Node,
    trees: Sequence[int],
    modes: Sequence[str],
    ids: Sequence[int],
    number: dict[tuple[int, int], int],
) -> np.ndarray:
    result = []
    for at, (tree, mode, target) in enumerate(zip(trees, modes, ids, strict=True)):
        where = at if mode == "LEAF" else number.get((tree, target))
        if where is None:
            raise node.error(f"a branch of tree {tree} leads to node {target}, which it has not")
        result.append(where)
    return np.array(result)


def _rows(
    node: Node,
    nodes: int,
    owners: Sequence[int],
    columns: Sequence[int],
    weights: np.ndarray,
    targets: int,
    aggregate: str,
) -> tuple[np.ndarray, np.ndarray]:
    """For each node the row of numbers that it has; row 0 is that of nodes without any."""
    combine, start = COMBINED[aggregate]
    if any(not 0 <= owner < nodes for owner in owners):
        raise node.error("a leaf is of a node that there is not")
    if any(not 0 <= column < targets for column in columns) or len(weights) != len(owners):
        raise node.error(f"a leaf is of a target beyond {targets}, or has no weight")
    row = np.zeros(nodes, np.int64)
    for owner in owners:
        if not row[owner]:
            row[owner] = row.max() + 1
    leaves = np.full((int(row.max(initial=0)) + 1, targets), start, weights.dtype)
    for owner, column, weight in zip(owners, columns, weights, strict=True):
        leaves[row[owner], column] = combine(leaves[row[owner], column], weight)
    return row, leaves


def _checked(
    node: Node,
    feature: np.ndarray,
    split: np.ndarray,
    rule: np.ndarray,
    yes: np.ndarray,
    no: np.ndarray,
    row: np.ndarray,
    roots: np.ndarray,
    leaves: np.ndarray,
) -> Forest:
    lengths = {len(array) for array in (feature, split, rule, yes, no, row)}
    if len(lengths) != 1 or not len(roots) or feature.min(initial=0) < 0:
        raise node.error("its lists of nodes differ in length, or it has no tree")
    depth = _depth(node, yes, no, roots)
    return Forest(feature, split, rule, yes, no, row, roots, leaves, depth)


def _depth(node: Node, yes: np.ndarray, no: np.ndarray, roots: np.ndarray) -> int:
    """Steps from a root to the farthest leaf."""
    level, depth = np.unique(roots), 0
    while True:
        inner = level[(yes[level] != level) | (no[level] != level)]
        if not len(inner):
            return depth
        depth += 1
        if depth > len(yes):
            raise node.error("its branches lead back to where they came from")
        level = np.unique(np.concatenate([yes[inner], no[inner]]))


def forest_of_tensors(node: Node, targets: int, aggregate: str) -> Forest:
    """Of TreeEnsemble: leaves are apart from the inner nodes."""
    modes = numpy_helper.to_array(node.tensor("nodes_modes")).reshape(-1).tolist()
    splits = numpy_helper.to_array(node.tensor("nodes_splits")).reshape(-1)
    features = node.ints("nodes_featureids")
    missing = node.ints("nodes_missing_value_tracks_true", []) or [0] * len(modes)
    weights = numpy_helper.to_array(node.tensor("leaf_weights")).reshape(-1)
    columns = node.ints("leaf_targetids")
    yes, no = (_branches(node, side, len(modes), len(weights)) for side in ("true", "false"))
    builder = _Members(node, modes, splits, features, missing, yes, no, len(weights))
    row, leaves = _rows(
        node, builder.count, [builder.leaf(i) for i in range(len(weights))], columns, weights,
        targets, aggregate,
    )  # fmt: skip
    roots = []
    for root in node.ints("tree_roots"):
        if not 0 <= root < len(modes):
            raise node.error(f"a tree begins at node {root}, which there is not")
        alone = yes[root] == no[root] and yes[root] >= len(modes)
        roots.append(builder.place(yes[root]) if alone else builder.place(root))
    feature, split, rule, to_yes, to_no = builder.arrays()
    return _checked(node, feature, split, rule, to_yes, to_no, row, np.array(roots), leaves)


def _branches(node: Node, side: str, inner: int, leaves: int) -> list[int]:
    """Where branches lead: an inner node, or behind all of them a leaf."""
    result = []
    flags = node.ints(f"nodes_{side}leafs")
    for target, is_leaf in zip(node.ints(f"nodes_{side}nodeids"), flags, strict=True):
        if not 0 <= target < (leaves if is_leaf else inner):
            raise node.error(f"a branch leads to {target}, which there is not")
        result.append(target + inner if is_leaf else target)
    if len(result) != inner:
        raise node.error(f"it has {inner} nodes and {len(result)} branches")
    return result


class _Members:
    """Inner nodes, then leaves; a test for membership becomes one node for each member."""

    def __init__(
        self,
        node: Node,
        modes: Sequence[int],
        splits: np.ndarray,
        features: Sequence[int],
        missing: Sequence[int],
        yes: Sequence[int],
        no: Sequence[int],
        leaves: int,
    ) -> None:
        members = _member_sets(node, modes)
        lengths = [max(1, len(members.get(at, ()))) for at in range(len(modes))]
        self._first = np.concatenate([[0], np.cumsum(lengths)]).astype(int).tolist()
        self._inner, self.count = len(modes), self._first[-1] + leaves
        own = list(range(self.count))
        self._feature, self._yes, self._no = [0] * self.count, list(own), list(own)
        self._split, self._rule = np.zeros(self.count, splits.dtype), [0] * self.count
        for at, mode in enumerate(modes):
            tests = [(EQUAL, member) for member in members.get(at, ())]
            if mode != _MEMBER:
                if not 0 <= mode < len(_BY_NUMBER):
                    raise node.error(f"a node has the mode {mode}")
                tests = [(_BY_NUMBER[mode], splits[at])]
            elif not tests:
                tests = [(0, 0.0)]
            for i, (rule, number) in enumerate(tests):
                place, last = self._first[at] + i, i + 1 == len(tests)
                self._feature[place], self._split[place] = features[at], number
                self._rule[place] = rule | (NAN if missing[at] else 0)
                self._yes[place] = self.place(yes[at])
                self._no[place] = self.place(no[at]) if last else place + 1

    def place(self, target: int) -> int:
        return self._first[target] if target < self._inner else self.leaf(target - self._inner)

    def leaf(self, number: int) -> int:
        return self._first[-1] + number

    def arrays(self) -> tuple[np.ndarray, ...]:
        lists = (self._rule, self._yes, self._no)
        return (np.array(self._feature), self._split, *map(np.array, lists))


def _member_sets(node: Node, modes: Sequence[int]) -> dict[int, list[float]]:
    """The members of each membership node: lists in the order of the nodes, each ended by a NaN."""
    wanted = [at for at, mode in enumerate(modes) if mode == _MEMBER]
    if not wanted:
        return {}
    sets: list[list[float]] = [[]]
    for number in numpy_helper.to_array(node.tensor("membership_values")).reshape(-1).tolist():
        if number != number:
            sets.append([])
        else:
            sets[-1].append(number)
    if len(sets) != len(wanted) + 1 or sets[-1]:
        raise node.error(f"it has {len(sets) - 1} sets of members for {len(wanted)} nodes")
    return dict(zip(wanted, sets, strict=False))
