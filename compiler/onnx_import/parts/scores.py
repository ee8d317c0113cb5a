"""What the classifiers of ai.onnx.ml share: transforms of scores, and labels by score."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from abqc.dialects.mlir import linalg

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import concat, reshape
from ..registry import Node
from ..values.constants import from_array
from ..values.element_types import F32, I64, INDEX, ElementType
from ..values.symbolic import ONE, Dim, is_less, negated
from ..values.value import Value, constant_value

TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")


def as_floats(b: Builder, x: Value) -> Value:
    """f64 stays, all else becomes f32."""
    if x.dtype.is_float:
        return x
    return b.elementwise([x], F32, lambda v: v.cast(F32))


def vector(numbers: object, dtype: ElementType = F32) -> Value:
    return constant_value(from_array(np.asarray(numbers).astype(dtype.dtype)), dtype)


def transformed(node: Node, scores: Value) -> Value:
    """Scores, N x classes, by the attribute `post_transform`."""
    kind = node.choice("post_transform", TRANSFORMS[0], *TRANSFORMS[1:])
    return transform(node.b, scores, kind)


def transform(b: Builder, scores: Value, kind: str) -> Value:
    if kind == "NONE":
        return scores
    if kind == "LOGISTIC":
        return b.elementwise([scores], scores.dtype, _logistic)
    if kind == "PROBIT":
        return b.elementwise([scores], scores.dtype, _probit)
    return _softmax(b, scores, zeros_stay=kind == "SOFTMAX_ZERO")


def _logistic(x: Scalar) -> Scalar:
    high = 1.0 / ((-x.abs()).exp() + 1.0)
    return (x < 0.0).select(1.0 - high, high)


def _probit(x: Scalar) -> Scalar:
    """The quantile function of the normal distribution, by Winitzki's formula as onnxruntime."""
    y = x * 2.0 - 1.0
    rest = (1.0 - y) * (y + 1.0)
    log = rest.log()
    v = log * 0.5 + 2.0 / (math.pi * 0.147)
    root = ((v * v - log / 0.147).sqrt() - v).sqrt()
    signed = (y < 0.0).select(-root, root)
    return (rest == 0.0).select(y.like(0.0), signed) * 1.41421356


def _softmax(b: Builder, scores: Value, *, zeros_stay: bool) -> Value:
    dtype = scores.dtype
    (top,) = b.reduce(
        [scores], [1], [(dtype, -math.inf)], lambda v, m: [v.maximum(m)], keepdims=True
    )

    def exponential(v: Scalar, m: Scalar) -> Scalar:
        power = (v - m).exp()
        return (v.abs() > 1e-7).select(power, v * (-m).exp()) if zeros_stay else power

    parts = b.elementwise([scores, top], dtype, exponential)
    (total,) = b.reduce([parts], [1], [(dtype, 0)], lambda v, s: [v + s], keepdims=True)
    if not zeros_stay:
        return b.elementwise([parts, total], dtype, lambda v, s: v / s)
    return b.elementwise([parts, total], dtype, lambda v, s: (s == 0.0).select(v.like(0.5), v / s))


def columns(b: Builder, parts: list[Value]) -> Value:
    """Vectors of N side by side."""
    return concat(b, [reshape(b, part, [part.dims[0], ONE]) for part in parts], 1)


def pair(b: Builder, scores: Value, first: Callable[[Scalar], Scalar]) -> Value:
    """Of N x 1 scores of the second class those of both; `first` computes that of the first."""
    other = b.elementwise([scores], scores.dtype, first)
    return concat(b, [other, scores], 1)


def largest(b: Builder, scores: Value) -> Value:
    """The column (i64) of the largest score in each row, the first one of equal ones."""

    def better(value: Scalar, top: Scalar, where: Scalar) -> list[Scalar]:
        column = Scalar(linalg.IndexOp(1).result, INDEX).cast(I64)
        more = (value > top) | (where < 0)
        return [more.select(value, top), more.select(column, where)]

    _, where = b.reduce([scores], [1], [(scores.dtype, -math.inf), (I64, -1)], better)
    return where


def class_labels(node: Node, name: str) -> list[int]:
    """The labels, which must be integers."""
    labels = node.ints(name, [])
    if not labels and node.strings("classlabels_strings", []):
        raise node.error(
            "its labels are strings, which are no tensors here",
            hint="train or convert the classifier with integer labels",
        )
    return labels


def labels_of(b: Builder, where: Value, labels: list[int]) -> Value:
    """The label of each column number; the number itself where there are no labels."""
    if not labels or labels == list(range(len(labels))):
        return where
    table = vector(labels, I64)
    source = Value(I64, table.dims, ssa=b.tensor(table))
    return b.elementwise(
        [where],
        I64,
        lambda column: b.read(source, [column.cast(INDEX).clamp(0, len(labels) - 1)]),
    )


def matrix(node: Node, x: Value) -> Value:
    """The input as N x F floats; one row of a vector."""
    if x.rank == 1:
        x = reshape(node.b, x, [ONE, x.dims[0]])
    if x.rank != 2:
        raise node.error(f"its input is {x}: expected a matrix")
    return as_floats(node.b, x)


def require_features(node: Node, x: Value, count: int) -> None:
    """An error where a row of `x` has less than `count` features."""
    node.b.require(
        negated(is_less(x.dims[1], Dim.of(count))), f"its input {x} has less than {count} features"
    )
