"""Softmax, LogSoftmax: along one axis, and as before opset 13 along all axes from one on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from abqc.dialects import abq

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import reshape
from ..registry import Node, lowers
from ..values.element_types import F64
from ..values.symbolic import product
from ..values.value import Value


@lowers("Softmax")
def lower_softmax(node: Node) -> Value:
    x = node.input(0)
    return softmax(node.b, x, axes_of(node, x))


@lowers("LogSoftmax")
def lower_log_softmax(node: Node) -> Value:
    x = node.input(0)
    shifted, total = _parts(node.b, x, axes_of(node, x))
    return node.b.elementwise([shifted, total], x.dtype, lambda v, t: v - t.log())


def axes_of(node: Node, x: Value) -> list[int]:
    """The axes that are normalized together; before opset 13 all from `axis` on."""
    if node.version >= 13:
        return [node.axis("axis", x.rank, -1)]
    axis = node.int("axis", 1)
    if axis == x.rank:
        return []
    return list(range(node.counted(axis, x.rank), x.rank))


def softmax(b: Builder, x: Value, axes: Sequence[int]) -> Value:
    """`exp(x - max) / sum(exp(x - max))` along `axes` (not negative).

    One `abq.softmax` where the axes are the last ones.
    """
    begin = x.rank - len(axes)
    if axes and list(axes) == list(range(begin, x.rank)) and x.dtype is not F64:
        rows = reshape(b, x, [*x.dims[:begin], product(x.dims[begin:])])
        ssa = abq.SoftmaxOp(b.tensor(rows), b.type(x.dtype, rows.dims)).result
        return reshape(b, Value(x.dtype, rows.dims, ssa=ssa), x.dims)
    (top,) = b.reduce([x], axes, [(x.dtype, -math.inf)], lambda v, m: [m.maximum(v)], keepdims=True)
    powers = b.elementwise([x, top], x.dtype, lambda v, m: (v - m).exp())
    (total,) = b.reduce([powers], axes, [(x.dtype, 0.0)], lambda v, t: [t + v], keepdims=True)
    return b.elementwise([powers, total], x.dtype, lambda v, t: v / t)


def guarded_softmax(b: Builder, x: Value, sink: Value | None = None) -> Value:
    """Over the last axis of [B, H, M, T]; a row of minus infinity alone becomes zeros.

    `sink`: one more score for each head, [H], that takes part in the sum and has no value
    ("smooth softmax" where it is 0).
    """
    last, lowest = x.rank - 1, -math.inf
    (top,) = b.reduce([x], [last], [(x.dtype, lowest)], lambda v, m: [m.maximum(v)], keepdims=True)
    extra = []
    if sink is not None:
        extra = [reshape(b, sink, [1, sink.dims[0], 1, 1])]
        top = b.elementwise([top, *extra], x.dtype, lambda m, s: m.maximum(s.cast(x.dtype)))

    def finite(number: Scalar) -> Scalar:
        return (number == lowest).select(number.like(0), number)

    powers = b.elementwise([x, top], x.dtype, lambda v, m: (v - finite(m)).exp())
    (total,) = b.reduce([powers], [last], [(x.dtype, 0)], lambda v, t: [t + v], keepdims=True)
    if sink is not None:
        total = b.elementwise(
            [total, top, *extra], x.dtype,
            lambda t, m, s: t + (s.cast(x.dtype) - finite(m)).exp(),
        )  # fmt: skip
    return b.elementwise([powers, total], x.dtype, lambda v, t: v / (t == 0.0).select(t.like(1), t))


def _parts(b: Builder, x: Value, axes: Sequence[int]) -> tuple[Value, Value]:
    """`x - max`, which keeps exp from overflowing, and the sum of its exp."""
    (top,) = b.reduce([x], axes, [(x.dtype, -math.inf)], lambda v, m: [m.maximum(v)], keepdims=True)
    shifted = b.elementwise([x, top], x.dtype, lambda v, m: v - m)
    (total,) = b.reduce(
        [shifted], axes, [(x.dtype, 0.0)], lambda v, t: [t + v.exp()], keepdims=True
    )
    return shifted, total
