"""Clip and the activations with parameters that `elementwise.py` has no line for."""

from __future__ import annotations

import math

from .. import symbolic
from ..registry import Node, lowers
from ..scalars import Number, Scalar
from ..shaping import reshape
from ..values import Value


@lowers("Clip")
def clip(node: Node) -> Value:
    """`min(max(x, low), high)`: `high` where the bounds cross, NaN stays NaN."""
    x = node.input(0)
    low, high = _bound(node, "min", 1), _bound(node, "max", 2)
    known = _clipped_content(x, low, high)
    if known is not None:
        return known
    bounds = [bound for bound in (low, high) if isinstance(bound, Value)]

    def body(element: Scalar, *rest: Scalar) -> Scalar:
        given = list(rest)
        for bound, apply in ((low, Scalar.maximum), (high, Scalar.minimum)):
            if bound is not None:
                element = apply(element, given.pop(0) if isinstance(bound, Value) else bound)
        return element

    return node.b.elementwise([x, *bounds], x.dtype, body)


def _bound(node: Node, name: str, i: int) -> Number | Value | None:
    """Until opset 11 an attribute."""
    if node.version < 11:
        number = node.float(name, None)
        return None if number is None or math.isinf(number) else number
    value = node.optional(i)
    if value is None:
        return None
    if value.size != 1:
        raise node.error(f"{name} must be one number, it is {value}")
    return reshape(node.b, value, [])


def _clipped_content(x: Value, low: object, high: object) -> Value | None:
    if x.content is None:
        return None
    elements = list(x.content)
    for bound, apply in ((low, symbolic.maximum), (high, symbolic.minimum)):
        if bound is None:
            continue
        if not isinstance(bound, Value) or bound.symbols is None:
            return None
        number = bound.symbols[0]
        elements = [apply(element, number) for element in elements]
    return Value(x.dtype, x.dims, content=tuple(elements))
