"""Gathers: elements and slices of a tensor at places that come from another one.

A place counts from the end if it is negative. One outside of the axis is an error of the run; the
loop reads the first element there, because a kernel goes on after a failed check.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..building.shaping import reshape, slice_axis
from ..registry import Node, lowers
from ..values import symbolic
from ..values.constants import from_array
from ..values.element_types import F32, I64, INDEX
from ..values.symbolic import ZERO, Dim, product
from ..values.value import MAX_CONTENT, Value, constant_value


@lowers("Gather")
def gather(node: Node) -> Value:
    x, indices = node.input(0), node.input(1)
    return take(node, x, indices, node.axis("axis", x.rank, 0))


def gather_rows(node: Node, table: Value, indices: Value) -> Value:
    """`table[indices]` of a matrix; a constant one is an `abq.gather`."""
    return take(node, table, indices, 0)


def take(node: Node, x: Value, indices: Value, axis: int) -> Value:
    """Slices of `x` along `axis` at `indices`, whose axes take its place."""
    known = _of_content(node, x, indices, axis)
    if known is not None:
        return known
    dims = (*x.dims[:axis], *indices.dims, *x.dims[axis + 1 :])
    run = _run_of_places(node, indices, x.dims[axis])
    if run is not None:
        begin, step = run
        count = product(indices.dims)
        part = slice_axis(node.b, x, axis, begin, count, step)
        return reshape(node.b, part, dims)
    places = checked_places(node, indices, x.dims[axis])
    if axis == 0 and x.rank == 2 and x.constant is not None and x.dtype.inside() == F32.inside():
        return _rows_of_table(node, x, places, dims)
    source = Value(x.dtype, x.dims, ssa=node.b.tensor(x))
    behind = axis + indices.rank

    def body(at: list[Scalar]) -> Scalar:
        place = node.b.read(places, at[axis:behind]).cast(INDEX)
        return node.b.read(source, [*at[:axis], place, *at[behind:]])

    return node.b.tabulate(dims, x.dtype, body)


def checked_places(node: Node, indices: Value, size: Dim) -> Value:
    """Places along an axis of `size` as i64 in [0, size), which a tensor holds; checked.

    A tensor of its own: the check is made once for each place and not in the loop that reads.
    """
    b = node.b
    is_empty = symbolic.is_equal(product(indices.dims), ZERO)
    something = symbolic.call("or", is_empty, symbolic.is_less(ZERO, size))
    b.require(something, "an index is out of range: the axis is empty")
    known = _known_places(indices, size)
    if known is not None:
        return Value(I64, indices.dims, ssa=b.tensor(known))
    limit = b.scalar(size)

    def body(element: Scalar) -> Scalar:
        return checked_place(b, element, limit).cast(I64)

    made = b.elementwise([indices], I64, body)
    return Value(I64, made.dims, ssa=b.tensor(made))


def _known_places(indices: Value, size: Dim) -> Value | None:
    """Constant places, counted from the front, where they are surely in range."""
    numbers, limit = indices.numpy(), size.value
    if numbers is None or limit is None or not ((numbers >= -limit) & (numbers < limit)).all():
        return None
    places = numbers.astype(np.int64)
    return constant_value(from_array(np.where(places < 0, places + limit, places)), I64)


def checked_place(b: Builder, element: Scalar, size: Scalar) -> Scalar:
    """An index into an axis as a loop index, counted from the front; 0 where it is out of range."""
    index = element.cast(INDEX)
    place = (index < 0).select(index + size, index) if element.dtype.signed else index
    inside = (place >= 0) & (place < size)
    b.check(inside, "an index is out of range")
    return inside.select(place, place.like(0))


def _rows_of_table(node: Node, table: Value, places: Value, dims: tuple[Dim, ...]) -> Value:
    """Rows of a constant matrix, which a recipe may quantize."""
    b = node.b
    assert table.constant is not None
    weight = node.weight(table.constant, "gather")
    ssa = abq.GatherOp(
        weight, b.tensor(places), ir.StringAttr.get(node.name), b.type(table.dtype, dims)
    ).result
    return Value(table.dtype, dims, ssa=ssa)


def _of_content(node: Node, x: Value, indices: Value, axis: int) -> Value | None:
    """Elements of a shape tensor at known places."""
    places, elements = indices.symbols, x.symbols
    if places is None or elements is None or None in x.shape or None in indices.shape:
        return None
    numbers = [place.value for place in places]
    size = x.shape[axis] or 0
    if None in numbers or any(not -size <= (n or 0) < size for n in numbers):
        return None
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    found = np.take(array.reshape(x.static_shape), np.array(numbers, np.int64), axis=axis)
    if found.size > MAX_CONTENT:
        return None
    shape = (*x.static_shape[:axis], *indices.static_shape, *x.static_shape[axis + 1 :])
    return node.b.content(list(found.reshape(-1)), x.dtype, shape)


def _run_of_places(node: Node, indices: Value, size: Dim) -> tuple[Dim, int] | None:
    """The first place and the step, where the places are known and evenly spaced: a slice."""
    places = indices.symbols
    if not places or (len(places) > 1 and any(place.value is None for place in places)):
        return None
    steps = {b - a for a, b in pairwise(places)}
    step = next(iter(steps)).value if len(steps) == 1 else 1
    if len(steps) > 1 or step is None or step < 1:
        return None
    first, last = (_counted(place, size) for place in (places[0], places[-1]))
    if (places[0].value or 0) < 0 <= (places[-1].value or 0):
        return None
    inside = symbolic.negated(symbolic.is_less(first, ZERO))
    node.b.require(
        symbolic.call("and", inside, symbolic.is_less(last, size)), "an index is out of range"
    )
    return first, step


def _counted(place: Dim, size: Dim) -> Dim:
    if place.value is None and not symbolic.is_natural(place):
        return symbolic.select(symbolic.is_less(place, ZERO), place + size, place)
    return place + size if (place.value or 0) < 0 else place


@lowers("GatherElements")
def gather_elements(node: Node) -> Value:
    """`x` at the place of each index, but along `axis` at the index."""
    x, indices, b = node.input(0), node.input(1), node.b
    axis = node.axis("axis", x.rank, 0)
    if indices.rank != x.rank:
        raise node.error(f"x and indices must have one rank: {x}, {indices}")
    for at, (size, own) in enumerate(zip(x.dims, indices.dims, strict=True)):
        if at != axis:
            fits = symbolic.negated(symbolic.is_less(size, own))
            b.require(fits, f"indices are longer than x along axis {at}")
    places = checked_places(node, indices, x.dims[axis])
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))

    def body(at: list[Scalar]) -> Scalar:
        place = b.read(places, at).cast(INDEX)
        return b.read(source, [*at[:axis], place, *at[axis + 1 :]])

    return b.tabulate(indices.dims, x.dtype, body)


@lowers("GatherND")
def gather_nd(node: Node) -> Value:
    """Slices of `x` at tuples of indices, the last axis of `indices`."""
    x, indices, b = node.input(0), node.input(1), node.b
    batch = node.int("batch_dims", 0)
    depth = indices.dims[-1].value if indices.rank else None
    if depth is None or not 0 <= batch <= min(x.rank, indices.rank - 1):
        raise node.error(f"indices {indices} do not fit {x} with {batch} batch axes")
    if batch + depth > x.rank:
        raise node.error(f"tuples of {depth} indices are too long for {x}")
    for at in range(batch):
        b.require_equal(x.dims[at], indices.dims[at], f"batch axis {at} of x and indices differ")
    places = tuple_places(node, indices, x.dims[batch : batch + depth])
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    lead = indices.rank - 1

    def body(at: list[Scalar]) -> Scalar:
        chosen = [b.read(places, [*at[:lead], const(i, INDEX)]).cast(INDEX) for i in range(depth)]
        return b.read(source, [*at[:batch], *chosen, *at[lead:]])

    return b.tabulate([*indices.dims[:-1], *x.dims[batch + depth :]], x.dtype, body)


def tuple_places(node: Node, indices: Value, sizes: Sequence[Dim]) -> Value:
    """Tuples of places, one for each of `sizes`, as i64 counted from the front; checked."""
    b = node.b
    is_empty = symbolic.is_equal(product(indices.dims[:-1]), ZERO)
    for size in sizes:
        something = symbolic.call("or", is_empty, symbolic.is_less(ZERO, size))
        b.require(something, "an index is out of range: the axis is empty")
    limits = b.content(list(sizes), I64, [len(sizes)])

    def body(element: Scalar, limit: Scalar) -> Scalar:
        return checked_place(b, element, limit.cast(INDEX)).cast(I64)

    made = b.elementwise([indices, limits], I64, body)
    return Value(I64, made.dims, ssa=b.tensor(made))
