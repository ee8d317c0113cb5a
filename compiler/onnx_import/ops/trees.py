"""ai.onnx.ml: decision trees and ensembles of them.

One loop walks every tree for every row and notes the leaf, another adds up what the leaves say.
"""

from __future__ import annotations

import numpy as np

from ..building.scalars import Scalar, const
from ..building.shaping import reshape
from ..parts.forest import (
    EQUAL,
    GREATER,
    LESS,
    NAN,
    Forest,
    forest_of_lists,
    forest_of_tensors,
    numbers_of,
)
from ..parts.sampling import repeat
from ..parts.scores import (
    TRANSFORMS,
    class_labels,
    labels_of,
    largest,
    matrix,
    pair,
    require_features,
    transform,
    transformed,
    vector,
)
from ..parts.sliding import reduce_over
from ..registry import ML, Node, lowers
from ..values.element_types import F32, F64, I32, I64, INDEX, ElementType
from ..values.symbolic import Dim
from ..values.value import Value

AGGREGATES = ("SUM", "AVERAGE", "MIN", "MAX")


@lowers("TreeEnsembleRegressor", domain=ML)
def tree_ensemble_regressor(node: Node) -> Value:
    x = matrix(node, node.input(0))
    aggregate = node.choice("aggregate_function", *AGGREGATES)
    forest = forest_of_lists(node, "target", node.int("n_targets"), aggregate)
    y = _scores(node, x, forest, aggregate, base=numbers_of(node, "base_values"))
    return _as_f32(node, transformed(node, y))


@lowers("TreeEnsembleClassifier", domain=ML)
def tree_ensemble_classifier(node: Node) -> list[Value]:
    """Labels and scores. (Where leaves speak of one of two classes only: `_of_one_class`.)"""
    x = matrix(node, node.input(0))
    labels = class_labels(node, "classlabels_int64s")
    if len(labels) < 2:
        raise node.error(f"it has {len(labels)} integer labels, expected two or more")
    forest = forest_of_lists(node, "class", len(labels), "SUM")
    ids, base = set(node.ints("class_ids")), numbers_of(node, "base_values")
    if len(labels) == 2 and len(ids) == 1:
        where, scores = _of_one_class(node, x, forest, ids.pop(), base)
    else:
        raw = _scores(node, x, forest, "SUM", base=base)
        where, scores = largest(node.b, raw), transformed(node, raw)
    return [labels_of(node.b, where, labels), _as_f32(node, scores)]


def _of_one_class(
    node: Node, x: Value, forest: Forest, only: int, base: np.ndarray
) -> tuple[Value, Value]:
    """The number of the class and the scores of both, as onnxruntime has them.

    The second class is the positive one: its score s is above 0.5 where no weight is negative, else
    above 0. Leaves that speak of class 0 mean it; the other's score is then 1 - s or -s.
    """
    b = node.b
    if len(base) > 1:
        raise node.error("it has base values of two classes, but weights of one")
    forest.leaves = forest.leaves[:, only : only + 1]
    score = _scores(node, x, forest, "SUM", base=np.zeros(0) if only else base)
    flat = reshape(b, score, [score.dims[0]])
    positive = bool((numbers_of(node, "class_weights") >= 0).all())
    border = 0.5 if positive else 0.0
    where = b.elementwise([flat], I64, lambda s: (s > border).select(const(1, I64), 0))
    kind = node.choice("post_transform", TRANSFORMS[0], *TRANSFORMS[1:])
    if only:
        return where, transform(b, pair(b, score, lambda s: s.like(0.0)), kind)
    if kind == "PROBIT":
        raise node.error("the transform PROBIT of weights of one class has no meaning")
    if positive and kind != "LOGISTIC":
        return where, pair(b, score, lambda s: 1.0 - s)
    both = pair(b, score, lambda s: -s)
    return where, transform(b, both, kind) if kind == "LOGISTIC" else both


@lowers("TreeEnsemble", domain=ML)
def tree_ensemble(node: Node) -> Value:
    x = matrix(node, node.input(0))
    aggregate = ("AVERAGE", "SUM", "MIN", "MAX")[node.int("aggregate_function", 1)]
    forest = forest_of_tensors(node, node.int("n_targets"), aggregate)
    scores = _scores(node, x, forest, aggregate, base=np.zeros(0))
    kind = TRANSFORMS[node.int("post_transform", 0)]
    y = transform(node.b, scores, kind)
    return y if y.dtype is x.dtype else node.b.elementwise([y], x.dtype, lambda v: v.cast(x.dtype))


def _as_f32(node: Node, y: Value) -> Value:
    return y if y.dtype is F32 else node.b.elementwise([y], F32, lambda v: v.cast(F32))


def _scores(node: Node, x: Value, forest: Forest, aggregate: str, *, base: np.ndarray) -> Value:
    """N x targets: what all trees say, plus `base`; in f64 where thresholds or rows are."""
    b = node.b
    require_features(node, x, forest.features)
    wide = F64 if F64.dtype in (forest.split.dtype, forest.leaves.dtype) else x.dtype
    rows = x if x.dtype is wide else b.elementwise([x], wide, lambda v: v.cast(wide))
    found = _walk(node, rows, forest)
    total = _gathered(node, found, forest, aggregate, wide)
    if aggregate == "AVERAGE":
        factor = 1.0 / len(forest.roots)
        total = b.elementwise([total], wide, lambda v: v * factor)
    if not len(base):
        return total
    return b.elementwise([total, vector(base, wide)], wide, lambda v, w: v + w)


def _walk(node: Node, x: Value, forest: Forest) -> Value:
    """For each row and tree the row of `forest.leaves` that it ends in."""
    b = node.b

    def table(array: np.ndarray, dtype: ElementType) -> Value:
        made = vector(array, dtype)
        return Value(dtype, made.dims, ssa=b.tensor(made))

    rows = Value(x.dtype, x.dims, ssa=b.tensor(x))
    feature, split = table(forest.feature, I64), table(forest.split, x.dtype)
    yes, no = table(forest.yes, I64), table(forest.no, I64)
    rule, roots = table(forest.rule, I32), table(forest.roots, I64)
    leaf = table(forest.row, I64)
    rules = np.unique(forest.rule)

    def step(row: Scalar, at: Scalar) -> Scalar:
        value = b.read(rows, [row, b.read(feature, [at]).cast(INDEX)])
        number = b.read(split, [at])
        if set(rules.tolist()) <= {0, LESS | EQUAL}:
            taken = value <= number
        else:
            bits = const(NAN, I32)
            for holds, bit in (
                (value < number, LESS), (value == number, EQUAL), (value > number, GREATER),
            ):  # fmt: skip
                bits = holds.select(const(bit, I32), bits)
            taken = (b.read(rule, [at]) & bits) != 0
        target = taken.select(b.read(yes, [at]), b.read(no, [at]))
        return target.cast(INDEX)

    def walk(indices: list[Scalar]) -> Scalar:
        row, tree = indices
        start = b.read(roots, [tree]).cast(INDEX)
        steps = const(forest.depth, INDEX)
        (end,) = repeat(b, const(0, INDEX), steps, [start], lambda _, at: [step(row, at)])
        return b.read(leaf, [end])

    return b.tabulate([x.dims[0], Dim.of(len(forest.roots))], I64, walk)


def _gathered(
    node: Node, found: Value, forest: Forest, aggregate: str, dtype: ElementType
) -> Value:
    b, targets = node.b, forest.leaves.shape[1]
    made = vector(forest.leaves, dtype)
    leaves = Value(dtype, made.dims, ssa=b.tensor(made))
    rows = Value(found.dtype, found.dims, ssa=b.tensor(found))

    def term(place: list[Scalar], inner: list[Scalar]) -> Scalar:
        leaf = b.read(rows, [place[0], inner[0]]).cast(INDEX)
        return b.read(leaves, [leaf, place[1]])

    combine = {"MIN": Scalar.minimum, "MAX": Scalar.maximum}.get(aggregate, Scalar.__add__)
    start = {"MIN": float(np.finfo(np.float32).max), "MAX": float(np.finfo(np.float32).min)}
    dims = [found.dims[0], Dim.of(targets)]
    return reduce_over(
        b, dims, [found.dims[1]], dtype, term, start=start.get(aggregate, 0.0), combine=combine
    )
