"""Scatters: elements or slices of a tensor replaced by, or combined with, updates.

Updates are made in their order, so that of several at one place the last one stays. A place out of
range is an error of the run.
"""

from __future__ import annotations

from abqc.dialects.abq_order import ScatterOp
from abqc.dialects.mlir import ir

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import reshape
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import I64, ElementType
from ..values.symbolic import Dim, product
from ..values.value import Value
from .indexing import checked_places, tuple_places
from .scans import cumulated


@lowers("Scatter", "ScatterElements")
def scatter_elements(node: Node) -> Value:
    """`x[i, indices[i, j], ...] = updates[i, j]` with the index in place of the axis' own."""
    x, indices, updates, b = node.input(0), node.input(1), node.input(2), node.b
    axis = node.axis("axis", x.rank, 0)
    if indices.rank != x.rank:
        raise node.error(f"x and indices must have one rank: {x}, {indices}")
    _require_equal_dims(node, indices, updates)
    for at, (size, own) in enumerate(zip(x.dims, indices.dims, strict=True)):
        if at != axis:
            fits = symbolic.negated(symbolic.is_less(size, own))
            b.require(fits, f"indices are longer than x along axis {at}")
    places = checked_places(node, indices, x.dims[axis])

    def coordinate(at: list[Scalar]) -> Scalar:
        """Of every update the coordinate that the last index counts."""
        *position, column = at
        result = b.read(places, position)
        for number in range(x.rank):
            if number != axis:
                result = (column == number).select(position[number].cast(I64), result)
        return result

    tuples = b.tabulate([*indices.dims, Dim.of(x.rank)], I64, coordinate)
    count = product(indices.dims)
    tuples = reshape(b, tuples, [count, x.rank])
    return scattered(b, x, tuples, reshape(b, updates, [count]), _combine(node, x.dtype))


def _require_equal_dims(node: Node, indices: Value, updates: Value) -> None:
    if indices.rank != updates.rank:
        raise node.error(f"indices and updates differ in rank: {indices}, {updates}")
    for at, (a, c) in enumerate(zip(indices.dims, updates.dims, strict=True)):
        node.b.require_equal(a, c, f"indices and updates differ along axis {at}")


@lowers("ScatterND")
def scatter_nd(node: Node) -> Value:
    """`x[indices[i]] = updates[i]`: the last axis of `indices` are tuples of places."""
    x, indices, updates, b = node.input(0), node.input(1), node.input(2), node.b
    depth = indices.dims[-1].value if indices.rank else None
    if depth is None or depth > x.rank:
        raise node.error(f"the tuples of {indices} do not fit {x}")
    expected = [*indices.dims[:-1], *x.dims[depth:]]
    if updates.rank != len(expected):
        raise node.error(f"updates must have rank {len(expected)}, they are {updates}")
    for at, (own, wanted) in enumerate(zip(updates.dims, expected, strict=True)):
        b.require_equal(own, wanted, f"updates do not fit along axis {at}")
    places = tuple_places(node, indices, x.dims[:depth])
    count = product(indices.dims[:-1])
    return scattered(
        b,
        x,
        reshape(b, places, [count, depth]),
        reshape(b, updates, [count, *x.dims[depth:]]),
        _combine(node, x.dtype),
    )


# How an update meets the element, by ONNX's name: of floats, signed and unsigned integers.
_COMBINE = {
    "add": ("addf", "addi", "addi"),
    "mul": ("mulf", "muli", "muli"),
    "max": ("maximumf", "maxsi", "maxui"),
    "min": ("minimumf", "minsi", "minui"),
}


def _combine(node: Node, dtype: ElementType) -> str:
    name = node.choice("reduction", "none", *_COMBINE)
    if name == "none":
        return "replace"
    of_floats, signed, unsigned = _COMBINE[name]
    return of_floats if dtype.is_float else signed if dtype.signed else unsigned


def scattered(
    b: Builder, x: Value, indices: Value, updates: Value, combine: str = "replace"
) -> Value:
    """`x` after `updates` [U, slice...] at `indices` [U, axes], i64 that are in range.

    One that is not in range changes nothing. `combine`: see `abq.scatter`.
    """
    if x.dtype.is_bool:
        combine = {"addi": "ori", "muli": "andi"}.get(combine, combine)
    ssa = ScatterOp(
        b.tensor(x),
        b.tensor(indices),
        b.tensor(updates),
        ir.StringAttr.get(combine),
        b.type(x.dtype, x.dims),
    ).result
    return Value(x.dtype, x.dims, ssa=ssa)


def positions(b: Builder, flags: Value) -> tuple[Value, Dim]:
    """The places of the true elements of a vector of bools in order (i64), and their number."""
    ones = b.elementwise([flags], I64, lambda flag: flag.cast(I64))
    counts = cumulated(b, ones, 0, 0, lambda total, x: total + x)
    source = Value(I64, counts.dims, ssa=b.tensor(counts))
    length = flags.dims[0]
    (total,) = b.reduce([ones], [0], [(I64, 0)], lambda v, t: [t + v])
    count = b.run_time(b.item(total))
    given = Value(flags.dtype, flags.dims, ssa=b.tensor(flags))

    def slot(at: list[Scalar]) -> Scalar:
        before = b.read(source, at[:1])
        return b.read(given, at[:1]).select(before - 1, before.like(-1))

    slots = b.tabulate([length, Dim.of(1)], I64, slot)
    own = b.tabulate([length], I64, lambda at: at[0].cast(I64))
    empty = Value(I64, (count,), ssa=b.full(I64, [count], 0))
    return scattered(b, empty, slots, own), count
