"""ArgMax, ArgMin, Hardmax: where the largest or the smallest element of a line is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from abqc.dialects.mlir import linalg

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import reshape
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import I64, INDEX
from ..values.symbolic import ONE, ZERO
from ..values.value import Value
from .softmax import axes_of
from .tiling import with_places


@lowers("ArgMax")
def arg_max(node: Node) -> Value:
    return _arg_extreme(node, largest=True)


@lowers("ArgMin")
def arg_min(node: Node) -> Value:
    return _arg_extreme(node, largest=False)


def _arg_extreme(node: Node, *, largest: bool) -> Value:
    x = node.input(0)
    axis = node.axis("axis", x.rank, 0)
    last = bool(node.int("select_last_index", 0))
    places = place_of_extreme(node.b, x, axis, largest=largest, last=last)
    if not node.int("keepdims", 1):
        return places
    dims = [ONE if at == axis else dim for at, dim in enumerate(x.dims)]
    return reshape(node.b, places, dims)


def place_of_extreme(
    b: Builder, x: Value, axis: int, *, largest: bool = True, last: bool = False
) -> Value:
    """The place (i64) of the extreme of each line along `axis`, which is dropped.

    The first of equal ones, or the last of them. NaN is never chosen, unless there is nothing else.
    """
    b.require(symbolic.is_less(ZERO, x.dims[axis]), f"axis {axis} is empty and has no extreme")
    if x.dtype.is_float:
        worst: float | int = -math.inf if largest else math.inf
    else:
        worst = x.dtype.limits[0 if largest else 1]

    def combine(value: Scalar, best: Scalar, place: Scalar) -> Sequence[Scalar]:
        at = Scalar(linalg.IndexOp(axis).result, INDEX).cast(I64)
        if last:
            better = value >= best if largest else value <= best
        else:
            better = value > best if largest else value < best
        extreme = value.maximum(best) if largest else value.minimum(best)
        return [extreme, better.select(at, place)]

    _, places = b.reduce([x], [axis], [(x.dtype, worst), (I64, 0)], combine)
    return places


@lowers("Hardmax")
def hardmax(node: Node) -> Value:
    """1 at the first largest element, 0 elsewhere; before opset 13 of all axes from `axis` on."""
    x, b = node.input(0), node.b
    axes = axes_of(node, x)
    lines = x
    if len(axes) != 1:
        begin = x.rank - len(axes)
        lines = reshape(b, x, [*x.dims[:begin], symbolic.product(x.dims[begin:])])
        axes = [begin]
    (axis,) = axes
    is_empty = symbolic.is_equal(symbolic.product(x.dims), ZERO)
    if is_empty.value == 1:
        return x
    places = place_of_extreme(b, lines, axis)
    source = Value(I64, places.dims, ssa=b.tensor(places))

    def body(element: Scalar, at: list[Scalar]) -> Scalar:
        place = b.read(source, [*at[:axis], *at[axis + 1 :]]).cast(INDEX)
        return (place == at[axis]).select(element.like(1), element.like(0))

    return reshape(b, with_places(b, lines, x.dtype, body), x.dims)
