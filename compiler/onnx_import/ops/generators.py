"""Tensors made from numbers and places: ConstantOfShape, Range, EyeLike, OneHot."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import numpy_helper

from ..building.scalars import Scalar, const
from ..graph.model import SMALL
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.constants import from_array
from ..values.element_types import F32, F64, INDEX, ElementType
from ..values.symbolic import ZERO, Dim, static_product
from ..values.value import MAX_CONTENT, Value, constant_value


@lowers("ConstantOfShape")
def constant_of_shape(node: Node) -> Value:
    dims = node.dims_of(0) or []
    for dim in dims:
        node.b.require(symbolic.negated(symbolic.is_less(dim, ZERO)), f"a size is negative: {dim}")
    if not node.has("value"):
        return filled(node, F32, dims, 0.0)
    proto = node.tensor("value")
    dtype, array = node.known_type(proto.data_type), numpy_helper.to_array(proto)
    if array.size != 1:
        raise node.error(f"its value has {array.size} elements, expected 1")
    return filled(node, dtype, dims, array.reshape(-1)[0])


def filled(node: Node, dtype: ElementType, dims: list[Dim], number: Any) -> Value:
    """One number in all places; a constant or a shape tensor where it is small."""
    count = static_product(dims)
    if count is not None and 0 < count <= SMALL:
        array = np.full([dim.value or 0 for dim in dims], number, dtype=dtype.dtype)
        return constant_value(from_array(array, dtype.onnx), dtype)
    plain = float(number) if dtype.is_float else int(number)
    return Value(dtype, tuple(dims), ssa=node.b.full(dtype, dims, plain))


@lowers("Range")
@lowers("Range", domain=MICROSOFT)
def lower_range(node: Node) -> Value:
    """`start + i * delta` while that is before `limit`."""
    delta, dtype = node.optional(2), node.input(0).dtype
    count = 2 if delta is None else 3
    if any(node.input(i).dtype != dtype for i in range(count)):
        raise node.error("start, limit and delta must be of one type")
    if dtype.is_float:
        return _floats(node, [node.item_of(i) for i in range(count)], dtype)
    first, last, *rest = (node.integer_of(i) for i in range(count))
    step = rest[0] if rest else symbolic.ONE
    node.b.require(symbolic.negated(symbolic.is_equal(step, ZERO)), "delta is 0")
    length = symbolic.maximum(symbolic.ceildiv(last - first, step), ZERO)
    number = length.value
    symbols = not (first.is_static and step.is_static)
    if number is not None and number <= (SMALL if symbols else MAX_CONTENT):
        return node.b.content([first + step * i for i in range(number)], dtype, [number])
    begin, stride = node.b.scalar(first), node.b.scalar(step)
    return node.b.tabulate([length], dtype, lambda at: (begin + at[0] * stride).cast(dtype))


def _floats(node: Node, numbers: list[Scalar], dtype: ElementType) -> Value:
    b = node.b
    first, last = numbers[:2]
    step = numbers[2] if len(numbers) > 2 else first.like(1.0)
    b.check(step != 0.0, "delta is 0")
    ratio = ((last.cast(F64) - first.cast(F64)) / step.cast(F64)).ceil()
    legal = ratio > 0.0  # of NaN too
    b.check((ratio < 2.0**62) | ~legal, "its length is infinite")
    count = b.run_time(legal.select(ratio, ratio.like(0.0)).cast(INDEX))

    def element(at: list[Scalar]) -> Scalar:
        return first + at[0].cast(dtype) * step

    return b.tabulate([count], dtype, element)


@lowers("EyeLike")
def eye_like(node: Node) -> Value:
    """Ones on the k-th diagonal of a matrix of the input's size."""
    x, shift = node.input(0), node.int("k", 0)
    if x.rank != 2:
        raise node.error(f"it needs a matrix, not {x}")
    dtype = node.type_of("dtype") if node.has("dtype") else x.dtype

    def body(at: list[Scalar]) -> Scalar:
        one, zero = const(1, dtype), const(0, dtype)
        return (at[1] == at[0] + shift).select(one, zero)

    return node.b.tabulate(x.dims, dtype, body)


@lowers("OneHot")
def one_hot(node: Node) -> Value:
    """`values` are what is elsewhere and what is at the index; the new axis has `depth` places.

    An index out of range has no place: all is "elsewhere" there.
    """
    b, indices, values = node.b, node.input(0), node.input(2)
    rank = indices.rank + 1
    axis = node.axis("axis", rank, -1)
    depth = node.integer_of(1)
    b.require(symbolic.negated(symbolic.is_less(depth, ZERO)), "depth is negative")
    if values.rank != 1:
        raise node.error(f"values must be a vector of two, they are {values}")
    b.require_equal(values.dims[0], Dim.of(2), "values must be two")
    known = _known_one_hot(indices, axis, depth, values)
    if known is not None:
        return known
    off, on = b.item(values, 0), b.item(values, 1)
    places = Value(indices.dtype, indices.dims, ssa=b.tensor(indices))
    size = b.scalar(depth)

    def body(at: list[Scalar]) -> Scalar:
        index = b.read(places, [*at[:axis], *at[axis + 1 :]]).cast(INDEX)
        place = (index < 0).select(index + size, index)
        return (place == at[axis]).select(on, off)

    dims = (*indices.dims[:axis], depth, *indices.dims[axis:])
    return b.tabulate(dims, values.dtype, body)


def _known_one_hot(indices: Value, axis: int, depth: Dim, values: Value) -> Value | None:
    """Of constant indices and values that are sizes, as PyTorch writes the counts of a Tile."""
    at, size, symbols = indices.numpy(), depth.value, values.symbols
    if at is None or size is None or symbols is None or at.size * size > MAX_CONTENT:
        return None
    off, on = symbols
    at = at.astype(np.int64)
    index = np.expand_dims(np.where(at < 0, at + size, at), axis)
    places = np.arange(size).reshape([-1 if i == axis else 1 for i in range(index.ndim)])
    chosen = index == places
    dims = tuple(map(Dim.of, chosen.shape))
    return Value(values.dtype, dims, content=tuple(on if hit else off for hit in chosen.flat))
