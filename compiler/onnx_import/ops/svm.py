"""ai.onnx.ml: support vector machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from abqc.dialects.mlir import ir, linalg

from ..building.emit import Builder
from ..building.scalars import Scalar, const, index
from ..parts.sampling import repeat
from ..parts.scores import (
    TRANSFORMS,
    class_labels,
    columns,
    labels_of,
    largest,
    matrix,
    pair,
    transform,
    transformed,
    vector,
)
from ..parts.sliding import sum_over
from ..registry import ML, Node, lowers
from ..values.element_types import BOOL, F32, I64, INDEX
from ..values.symbolic import Dim
from ..values.value import Value
from .matmul import batched

# libsvm's bound for the coupling of pairwise probabilities.
MAX_ITERATIONS = 100
# Its loop is unrolled over pairs of classes.
MAX_CLASSES = 32


@dataclass(frozen=True)
class Kernel:
    """A kernel by its name in ONNX: LINEAR, POLY, RBF or SIGMOID."""

    name: str
    gamma: float = 0.0
    coef0: float = 0.0
    degree: float = 0.0

    @staticmethod
    def of(node: Node) -> Kernel:
        name = node.choice("kernel_type", "LINEAR", "POLY", "RBF", "SIGMOID")
        parameters = node.floats("kernel_params", []) or [0.0, 0.0, 0.0]
        if len(parameters) != 3:
            raise node.error(f"kernel_params is {parameters}, expected three numbers")
        return Kernel(name, *parameters)


def kernel_values(b: Builder, x: Value, vectors: np.ndarray, kernel: Kernel) -> Value:
    """N x vectors: the kernel of each row of `x` and each support vector."""
    if kernel.name == "RBF":
        return _radial(b, x, vectors, kernel.gamma)
    products = _times(b, x, vectors.T)
    gamma, coef0, degree = kernel.gamma, kernel.coef0, kernel.degree
    if kernel.name == "POLY":
        return b.elementwise(
            [products], F32, lambda v: _whole_power(v * gamma + coef0, int(degree))
        )
    if kernel.name == "SIGMOID":
        return b.elementwise([products], F32, lambda v: (v * gamma + coef0).tanh())
    return products


def _whole_power(x: Scalar, exponent: int) -> Scalar:
    """x^exponent for a whole exponent, also of negative numbers."""
    result = x.like(1.0)
    for _ in range(abs(exponent)):
        result = result * x
    return 1.0 / result if exponent < 0 else result


def _radial(b: Builder, x: Value, vectors: np.ndarray, gamma: float) -> Value:
    rows = Value(x.dtype, x.dims, ssa=b.tensor(x))
    made = vector(np.ascontiguousarray(vectors.T))
    others = Value(F32, made.dims, ssa=b.tensor(made))

    def term(place: list[Scalar], inner: list[Scalar]) -> Scalar:
        difference = b.read(rows, [place[0], inner[0]]) - b.read(others, [inner[0], place[1]])
        return difference * difference

    dims = [x.dims[0], Dim.of(len(vectors))]
    squares = sum_over(b, dims, [made.dims[0]], F32, term)
    return b.elementwise([squares], F32, lambda v: (v * -gamma).exp())


def _times(b: Builder, x: Value, matrix_: np.ndarray) -> Value:
    """`x @ matrix_` in f32: coefficients of a model, which no recipe quantizes."""
    return batched(b, x, vector(np.ascontiguousarray(matrix_)))


def _support_vectors(node: Node, x: Value, count: int) -> np.ndarray:
    numbers = np.array(node.floats("support_vectors"), np.float32)
    if count < 1 or numbers.size % count:
        raise node.error(f"{numbers.size} numbers make no {count} support vectors")
    vectors = numbers.reshape(count, -1)
    _require_width(node, x, vectors.shape[1])
    return vectors


def _require_width(node: Node, x: Value, width: int) -> None:
    node.b.require_equal(x.dims[1], Dim.of(width), f"its input {x} must have {width} features")


def _floats(node: Node) -> Value:
    x = matrix(node, node.input(0))
    return x if x.dtype is F32 else node.b.elementwise([x], F32, lambda v: v.cast(F32))


@lowers("SVMRegressor", domain=ML)
def svm_regressor(node: Node) -> Value:
    b, x, count = node.b, _floats(node), node.int("n_supports", 0)
    coefficients = np.array(node.floats("coefficients"), np.float32)
    rho = node.floats("rho")
    if len(rho) != 1 or (count and coefficients.size != count):
        raise node.error("it predicts one number: expected one rho, a coefficient for each vector")
    if count:
        kernels = kernel_values(b, x, _support_vectors(node, x, count), Kernel.of(node))
    else:
        _require_width(node, x, coefficients.size)
        kernels = x
    y = _times(b, kernels, coefficients.reshape(-1, 1))
    y = b.elementwise([y], F32, lambda v: v + rho[0])
    if node.int("one_class", 0):
        y = b.elementwise([y], F32, lambda v: (v > 0.0).select(v.like(1.0), -1.0))
    return transformed(node, y)


@lowers("SVMClassifier", domain=ML)
def svm_classifier(node: Node) -> list[Value]:
    """Labels and scores; without support vectors a linear model."""
    x, labels = _floats(node), class_labels(node, "classlabels_ints")
    per_class = node.ints("vectors_per_class", [])
    if not sum(per_class):
        return _linear(node, x, labels)
    if len(per_class) != len(labels) or len(labels) < 2:
        raise node.error(f"it has {len(labels)} labels and vectors of {len(per_class)} classes")
    return _by_vectors(node, x, labels, per_class)


def _linear(node: Node, x: Value, labels: list[int]) -> list[Value]:
    b, classes = node.b, max(1, len(labels))
    coefficients = np.array(node.floats("coefficients"), np.float32)
    if coefficients.size % classes:
        raise node.error(f"{coefficients.size} coefficients for {classes} classes")
    rows = coefficients.reshape(classes, -1)
    _require_width(node, x, rows.shape[1])
    rho = node.floats("rho")[0]
    scores = b.elementwise([_times(b, x, rows.T)], F32, lambda v: v + rho)
    if classes < 2:
        raise node.error("it has one class only")
    return [labels_of(b, largest(b, scores), labels), transformed(node, scores)]


def _by_vectors(node: Node, x: Value, labels: list[int], per_class: Sequence[int]) -> list[Value]:
    """Every pair of classes votes for one of them; labels go by votes."""
    b, count, classes = node.b, sum(per_class), len(labels)
    vectors = _support_vectors(node, x, count)
    coefficients = np.array(node.floats("coefficients"), np.float32).reshape(-1, count)
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    rho = np.array(node.floats("rho"), np.float32)
    if len(rho) != len(pairs) or len(coefficients) != classes - 1:
        raise node.error(f"it has {len(rho)} rho and coefficients of {len(coefficients)} classes")
    kernels = kernel_values(b, x, vectors, Kernel.of(node))
    raw = _times(b, kernels, _pair_weights(coefficients, per_class, pairs))
    scores = b.elementwise([raw, vector(rho)], F32, lambda v, r: v + r)
    where = largest(b, _votes(b, scores, pairs, classes))
    prob_a, prob_b = node.floats("prob_a", []), node.floats("prob_b", [])
    if prob_a:
        if len(prob_a) != len(pairs) or len(prob_b) != len(pairs):
            raise node.error(f"it has {len(prob_a)} and {len(prob_b)} parameters of probabilities")
        result = transformed(node, _probabilities(node, scores, prob_a, prob_b, pairs, classes))
    elif classes == 2:
        result = _of_both(node, scores)
        if coefficients.min() >= 0:
            # All vectors speak for the second class, and a vote counts as 1.
            ones = b.elementwise([where], I64, lambda v: v.like(1))
            return [labels_of(b, ones, labels), result]
    else:
        result = transformed(node, scores)
    return [labels_of(b, where, labels), result]


def _of_both(node: Node, scores: Value) -> Value:
    kind = node.choice("post_transform", TRANSFORMS[0], *TRANSFORMS[1:])
    if kind == "PROBIT":
        return transform(node.b, scores, kind)
    return transform(node.b, pair(node.b, scores, lambda s: -s), kind)


def _pair_weights(
    coefficients: np.ndarray, per_class: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> np.ndarray:
    """vectors x pairs: with which factor a vector's kernel counts for a pair of classes."""
    ends = np.cumsum(per_class)
    begins = ends - np.array(per_class)
    weights = np.zeros((coefficients.shape[1], len(pairs)), np.float32)
    for column, (i, j) in enumerate(pairs):
        of_i, of_j = slice(begins[i], ends[i]), slice(begins[j], ends[j])
        weights[of_i, column] = coefficients[j - 1, of_i]
        weights[of_j, column] = coefficients[i, of_j]
    return weights


def _votes(b: Builder, scores: Value, pairs: Sequence[tuple[int, int]], classes: int) -> Value:
    """N x classes: how many pairs are for each class; a positive score is for the first of two."""
    first, second = (np.zeros((len(pairs), classes), np.float32) for _ in range(2))
    for row, (i, j) in enumerate(pairs):
        first[row, i] = second[row, j] = 1.0
    positive = b.elementwise([scores], F32, lambda s: (s > 0.0).select(s.like(1.0), 0.0))
    return b.elementwise(
        [_times(b, positive, first - second), vector(second.sum(axis=0))], F32, lambda v, w: v + w
    )


def _probabilities(
    node: Node,
    scores: Value,
    prob_a: Sequence[float],
    prob_b: Sequence[float],
    pairs: Sequence[tuple[int, int]],
    classes: int,
) -> Value:
    """Probabilities of the classes from those of pairs (Wu, Lin and Weng 2004, as libsvm)."""
    if classes > MAX_CLASSES:
        raise node.error(f"probabilities of more than {MAX_CLASSES} classes are not supported")
    b = node.b

    def likely(s: Scalar, slope: Scalar, offset: Scalar) -> Scalar:
        return (1.0 / ((s * slope + offset).exp() + 1.0)).clamp(1e-7, 1.0 - 1e-7)

    likelihoods = b.elementwise([scores, vector(prob_a), vector(prob_b)], F32, likely)
    source = Value(F32, likelihoods.dims, ssa=b.tensor(likelihoods))
    number = {pair: at for at, pair in enumerate(pairs)}

    def coupled(row: Scalar) -> list[Scalar]:
        values = [b.read(source, [row, index(at)]) for at in range(len(pairs))]
        r = {
            (i, j): values[number[i, j]] if i < j else 1.0 - values[number[j, i]]
            for i in range(classes) for j in range(classes) if i != j
        }  # fmt: skip
        return _couple(b, r, classes)

    return columns(b, _rows(b, scores.dims[0], classes, coupled))


def _rows(
    b: Builder, count: Dim, results: int, body: Callable[[Scalar], list[Scalar]]
) -> list[Value]:
    """Vectors of `count` f32, of which `body` computes one element each."""

    def full_body() -> list[ir.Value]:
        return [s.ssa for s in body(Scalar(linalg.IndexOp(0).result, INDEX))]

    made = b.generic([count], [], [], [F32] * results, full_body)
    return [Value(F32, (count,), ssa=ssa) for ssa in made]


def _couple(b: Builder, r: dict[tuple[int, int], Scalar], k: int) -> list[Scalar]:
    """P with the least sum of (r_ji P_i - r_ij P_j)^2, by iteration until no change matters."""
    q: dict[tuple[int, int], Scalar] = {}
    for t in range(k):
        others = [j for j in range(k) if j != t]
        q[t, t] = _total([r[j, t] * r[j, t] for j in others])
        for j in others:
            q[t, j] = -(r[j, t] * r[t, j])
    start = [const(1.0 / k, F32) for _ in range(k)]

    def iterate(_: Scalar, done: Scalar, *p: Scalar) -> list[Scalar]:
        qp = [_total([q[t, j] * p[j] for j in range(k)]) for t in range(k)]
        pqp = _total([p[t] * qp[t] for t in range(k)])
        worst = (qp[0] - pqp).abs()
        for t in range(1, k):
            worst = worst.maximum((qp[t] - pqp).abs())
        finished = done | (worst < 0.005 / k)
        new = list(p)
        for t in range(k):
            step = (pqp - qp[t]) / q[t, t]
            new[t] = new[t] + step
            scale = step + 1.0
            pqp = (pqp + step * (step * q[t, t] + qp[t] * 2.0)) / (scale * scale)
            new = [value / scale for value in new]
            qp = [(qp[j] + step * q[t, j]) / scale for j in range(k)]
        kept = [finished.select(old, value) for old, value in zip(p, new, strict=True)]
        return [finished, *kept]

    rounds = index(max(MAX_ITERATIONS, k))
    return repeat(b, index(0), rounds, [const(False, BOOL), *start], iterate)[1:]


def _total(terms: Sequence[Scalar]) -> Scalar:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
