"""ai.onnx.ml: scaling, encoding and linear models of tables, as sklearn's pipelines have them."""

from __future__ import annotations

import math

import numpy as np
from onnx import numpy_helper

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..building.shaping import concat, pad, reshape
from ..parts.scores import class_labels, labels_of, largest, matrix, pair, transformed, vector
from ..registry import ML, Node, lowers
from ..values.element_types import F32, I64, INDEX, element_type
from ..values.symbolic import ONE, Dim, product
from ..values.value import Value, constant_value
from .indexing import take
from .matmul import product_of


@lowers("Scaler", domain=ML)
def scaler(node: Node) -> Value:
    """`(x - offset) * scale`, one number each or one for each feature, as f32."""
    x, b = node.input(0), node.b
    offset, scale = (vector(node.floats(name)) for name in ("offset", "scale"))
    floats = b.elementwise([x], F32, lambda v: v.cast(F32))
    return b.elementwise([floats, offset, scale], F32, lambda v, o, s: (v - o) * s, dims=x.dims)


@lowers("Normalizer", domain=ML)
def normalizer(node: Node) -> Value:
    """Each row divided by its norm; rows of norm 0 stay."""
    x, b = node.input(0), node.b
    norm = node.choice("norm", "MAX", "L1", "L2")
    floats = b.elementwise([x], F32, lambda v: v.cast(F32))
    start = -math.inf if norm == "MAX" else 0

    def joined(v: Scalar, total: Scalar) -> list[Scalar]:
        if norm == "MAX":
            return [v.maximum(total)]
        return [total + (v.abs() if norm == "L1" else v * v)]

    (total,) = b.reduce([floats], [x.rank - 1], [(F32, start)], joined, keepdims=True)
    if norm == "L2":
        total = b.elementwise([total], F32, lambda v: v.sqrt())
    return b.elementwise([floats, total], F32, lambda v, t: (t == 0.0).select(v, v / t))


@lowers("Imputer", domain=ML)
def imputer(node: Node) -> Value:
    """What is missing, a NaN or a certain number, is replaced, for each feature by its own."""
    x = node.input(0)
    if x.dtype.is_float:
        replaced = node.float("replaced_value_float", 0.0)
        values = vector(node.floats("imputed_value_floats"), x.dtype)
    else:
        replaced = node.int("replaced_value_int64", 0)
        values = vector(node.ints("imputed_value_int64s"), x.dtype)

    def imputed(v: Scalar, new: Scalar) -> Scalar:
        is_nan = isinstance(replaced, float) and math.isnan(replaced)
        missing = v.is_nan() if is_nan else v == replaced
        return missing.select(new, v)

    return node.b.elementwise([x, values], x.dtype, imputed, dims=x.dims)


@lowers("Binarizer", domain=ML)
def binarizer(node: Node) -> Value:
    x, threshold = node.input(0), node.float("threshold", 0.0)
    return node.b.elementwise(
        [x], x.dtype, lambda v: (_as_float(v) > threshold).select(v.like(1), v.like(0))
    )


def _as_float(x: Scalar) -> Scalar:
    return x if x.dtype.is_float else x.cast(F32)


@lowers("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(node: Node) -> Value:
    """Elements of the last axis; a vector counts as one row."""
    x, places = node.input(0), node.input(1)
    flat = reshape(node.b, places, [product(places.dims)])
    y = take(node, x, flat, x.rank - 1)
    return reshape(node.b, y, [ONE, y.dims[0]]) if x.rank == 1 else y


@lowers("FeatureVectorizer", domain=ML)
def feature_vectorizer(node: Node) -> Value:
    """The features of several tables side by side, as f32; each cut or filled up with zeros."""
    b, parts = node.b, []
    widths = node.ints("inputdimensions", [])
    for at, x in enumerate(node.tensors()):
        part = b.elementwise([x], F32, lambda v: v.cast(F32))
        if x.rank == 1:
            part = reshape(b, part, [x.dims[0], ONE])
        if part.rank != 2:
            raise node.error(f"input {at} is {x}: expected a matrix")
        width = Dim.of(widths[at]) if at < len(widths) else part.dims[1]
        parts.append(pad(b, part, [0, 0], [0, width - part.dims[1]]))
    return concat(b, parts, 1)


@lowers("LabelEncoder", domain=ML)
def label_encoder(node: Node) -> Value:
    """Each number replaced by another one, by a table; a default for those it does not have."""
    x, b = node.input(0), node.b
    keys, values = _mapping(node, "keys"), _mapping(node, "values")
    default = _default(node, values)
    if len(keys) != len(values):
        raise node.error(f"it has {len(keys)} keys and {len(values)} values")
    result = element_type(values.data_type)
    if keys.data_type != x.dtype.onnx or result is None:
        raise node.error(f"its keys are not of the type of its input {x}, or values of no number")
    pairs: dict[float, float] = dict(zip(keys.array.tolist(), values.array.tolist(), strict=True))
    ordered = sorted((k, v) for k, v in pairs.items() if k == k)
    missing = [v for k, v in pairs.items() if k != k]  # the key NaN
    known = vector([k for k, _ in ordered], x.dtype)
    table = vector([v for _, v in ordered], result)
    sources = [Value(v.dtype, v.dims, ssa=b.tensor(v)) for v in (known, table)] if ordered else []

    def encoded(v: Scalar) -> Scalar:
        found = const(default, result)
        if ordered:
            at = _search(b, sources[0], v, len(ordered))
            hit = b.read(sources[0], [at]) == v
            found = hit.select(b.read(sources[1], [at]), found)
        if missing:
            found = v.is_nan().select(found.like(missing[-1]), found)  # type: ignore[arg-type]
        return found

    return b.elementwise([x], result, encoded)


def _search(b: Builder, keys: Value, wanted: Scalar, count: int) -> Scalar:
    """The last of `count` ascending keys that is not above `wanted`, the first if all are."""
    at = const(0, INDEX)
    step = 1 << max(0, count.bit_length() - 1)
    while step:
        further = at + step
        exists = further < count
        safe = exists.select(further, at)
        at = (exists & (b.read(keys, [safe]) <= wanted)).select(safe, at)
        step >>= 1
    return at


class _Numbers:
    """A list of numbers in one of the forms that attributes give it."""

    def __init__(self, array: np.ndarray, data_type: int) -> None:
        self.array, self.data_type = array, data_type

    def __len__(self) -> int:
        return len(self.array)


def _mapping(node: Node, name: str) -> _Numbers:
    if node.has(f"{name}_tensor"):
        tensor = node.tensor(f"{name}_tensor")
        return _Numbers(numpy_helper.to_array(tensor).reshape(-1), tensor.data_type)
    if node.has(f"{name}_int64s"):
        return _Numbers(np.array(node.ints(f"{name}_int64s"), np.int64), I64.onnx)
    if node.has(f"{name}_floats"):
        return _Numbers(np.array(node.floats(f"{name}_floats"), np.float32), F32.onnx)
    raise node.error(
        f"its {name} are strings, which are no tensors here",
        hint="encode the labels before the model",
    )


def _default(node: Node, values: _Numbers) -> float | int:
    if node.has("default_tensor"):
        return numpy_helper.to_array(node.tensor("default_tensor")).reshape(-1)[0].item()
    if values.array.dtype.kind == "f":
        return node.float("default_float", -0.0)
    return node.int("default_int64", -1)


@lowers("OneHotEncoder", domain=ML)
def one_hot_encoder(node: Node) -> Value:
    """1 at the place of the category, as f32; without `zeros` others are an error of the run."""
    x, b = node.input(0), node.b
    categories = node.ints("cats_int64s", [])
    if not categories:
        raise node.error("its categories are strings, which are no tensors here")
    numbers = b.elementwise([x], I64, lambda v: v.cast(I64))
    if not node.int("zeros", 1):
        _require_known(node, numbers, categories)
    wide = reshape(b, numbers, [*x.dims, ONE])
    return b.elementwise(
        [wide, vector(categories, I64)], F32, lambda v, c: (v == c).select(const(1.0, F32), 0.0)
    )


def _require_known(node: Node, numbers: Value, categories: list[int]) -> None:
    """All numbers are categories: counted, because nothing else reads the result."""
    b = node.b

    def unknown(v: Scalar, total: Scalar) -> list[Scalar]:
        known = v == categories[0]
        for category in categories[1:]:
            known = known | (v == category)
        return [known.select(total, total + 1)]

    flat = reshape(b, numbers, [product(numbers.dims)])
    (count,) = b.reduce([flat], [0], [(I64, 0)], unknown)
    b.check(b.item(count) == 0, "a number is none of its categories")


# Linear models


@lowers("LinearRegressor", domain=ML)
def linear_regressor(node: Node) -> Value:
    x, targets = matrix(node, node.input(0)), node.int("targets", 1)
    return transformed(node, _linear(node, x, targets))


def _linear(node: Node, x: Value, rows: int) -> Value:
    """`x @ coefficients' + intercepts`, N x rows, as f32."""
    b = node.b
    coefficients = np.array(node.floats("coefficients"), np.float32)
    intercepts = node.floats("intercepts", [])
    if rows < 1 or coefficients.size % rows or len(intercepts) not in (0, rows):
        raise node.error(
            f"{coefficients.size} coefficients and {len(intercepts)} intercepts for {rows} rows"
        )
    weights = vector(coefficients.reshape(rows, -1))
    assert weights.constant is not None
    across = constant_value(weights.constant.transposed((1, 0)), F32)
    floats = x if x.dtype is F32 else b.elementwise([x], F32, lambda v: v.cast(F32))
    return product_of(node, floats, across, vector(intercepts) if intercepts else None)


@lowers("LinearClassifier", domain=ML)
def linear_classifier(node: Node) -> list[Value]:
    """Labels and scores; one row of coefficients is the second class of two."""
    x, b = matrix(node, node.input(0)), node.b
    labels = class_labels(node, "classlabels_ints")
    rows = len(node.floats("intercepts", [])) or max(1, len(labels))
    scores = _linear(node, x, rows)
    if rows == 1 and len(labels) == 2:
        scores = pair(b, scores, lambda v: -v)
    scores = transformed(node, scores)
    if rows == 1 and len(labels) < 2:
        threshold = 0.0 if node.string("post_transform", "NONE") == "NONE" else 0.5
        label = labels[0] if labels else 1
        flat = reshape(b, scores, [scores.dims[0]])
        chosen = b.elementwise([flat], I64, lambda v: (v >= threshold).select(const(label, I64), 0))
        return [chosen, scores]
    return [labels_of(b, largest(b, scores), labels), scores]
