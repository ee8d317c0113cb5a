"""NonMaxSuppression: boxes of an image that overlap no better one of their class."""

from __future__ import annotations

import math

from abqc.dialects.abq_order import NonMaxSuppressionOp

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..building.shaping import reshape
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import BOOL, F32, I64, INDEX
from ..values.symbolic import ZERO, Dim, product
from ..values.value import Value
from .scatter import positions
from .selection import first_of_order


@lowers("NonMaxSuppression")
def non_max_suppression(node: Node) -> Value:
    """Triples of image, class and box, [number, 3], the best box of a class first."""
    b, boxes, scores = node.b, node.input(0), node.input(1)
    if boxes.rank != 3 or scores.rank != 3 or boxes.dtype != scores.dtype:
        raise node.error(f"boxes must be [N, S, 4] and scores [N, C, S]: {boxes}, {scores}")
    b.require_equal(boxes.dims[2], Dim.of(4), "a box has 4 numbers")
    b.require_equal(boxes.dims[0], scores.dims[0], "boxes and scores are of different images")
    b.require_equal(boxes.dims[1], scores.dims[2], "boxes and scores differ in number")
    images, classes, count = scores.dims
    limit = symbolic.clamp(node.integer_of(2), 0, count) if node.given(2) else ZERO
    lines = images * classes
    order, candidates = _candidates(node, reshape(b, scores, [lines, count]))
    op = NonMaxSuppressionOp(
        b.tensor(_corners(node, boxes)),
        b.tensor(order),
        b.tensor(candidates),
        b.index(limit),
        _threshold(node, 3, 0.0).ssa,
        b.type(I64, [lines, limit]),
        b.type(I64, [lines]),
    )
    chosen, counts = Value(I64, (lines, limit), ssa=op.chosen), Value(I64, (lines,), ssa=op.counts)
    return _triples(b, chosen, counts, classes)


def _threshold(node: Node, i: int, default: float) -> Scalar:
    return node.item_of(i) if node.given(i) else const(default, F32)


def _candidates(node: Node, scores: Value) -> tuple[Value, Value]:
    """The boxes of every line by their scores, and how many have more than the threshold."""
    b = node.b
    lowest = _threshold(node, 4, -math.inf)

    def kept(score: Scalar) -> Scalar:
        return score > lowest if node.given(4) else score == score

    keys = b.elementwise(
        [scores], F32, lambda score: kept(score).select(score, score.like(-math.inf))
    )
    _, order = first_of_order(b, keys, 1, keys.dims[1], largest=True)
    ones = b.elementwise([scores], I64, lambda score: kept(score).cast(I64))
    (candidates,) = b.reduce([ones], [1], [(I64, 0)], lambda v, t: [t + v])
    return order, candidates


def _corners(node: Node, boxes: Value) -> Value:
    """Least y and x, largest y and x of every box."""
    b, centered = node.b, node.int("center_point_box", 0)
    source = Value(boxes.dtype, boxes.dims, ssa=b.tensor(boxes))

    def corner(at: list[Scalar]) -> Scalar:
        image, box, which = at

        def read(i: int | Scalar) -> Scalar:
            place = i if isinstance(i, Scalar) else const(i, INDEX)
            return b.read(source, [image, box, place])

        is_high = which >= 2
        axis = is_high.select(which - 2, which)
        if centered:  # x, y, width, height
            middle, size = read(axis.like(1) - axis), read(axis.like(3) - axis)
            return is_high.select(middle + size * 0.5, middle - size * 0.5)
        one, other = read(axis), read(axis + 2)
        return is_high.select(one.maximum(other), one.minimum(other))

    return b.tabulate([*boxes.dims[:2], Dim.of(4)], F32, corner)


def _triples(b: Builder, chosen: Value, counts: Value, classes: Dim) -> Value:
    lines, limit = chosen.dims
    numbers = Value(I64, counts.dims, ssa=b.tensor(counts))

    def is_set(at: list[Scalar]) -> Scalar:
        return at[1] < b.read(numbers, at[:1]).cast(INDEX)

    flags = reshape(b, b.tabulate([lines, limit], BOOL, is_set), [product([lines, limit])])
    places, count = positions(b, flags)
    source = Value(I64, places.dims, ssa=b.tensor(places))
    boxes = Value(I64, chosen.dims, ssa=b.tensor(chosen))
    width, kinds = b.scalar(limit), b.scalar(classes)

    def element(at: list[Scalar]) -> Scalar:
        place = b.read(source, at[:1]).cast(INDEX)
        line, column = place // width, place % width
        box = b.read(boxes, [line, column])
        image, kind = (line // kinds).cast(I64), (line % kinds).cast(I64)
        return (at[1] == 0).select(image, (at[1] == 1).select(kind, box))

    return b.tabulate([count, Dim.of(3)], I64, element)
