"""Clip and the activations with parameters that `elementwise.py` has no line for."""

from __future__ import annotations

import math

from ..building.scalars import Number, Scalar, const
from ..building.shaping import reshape
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import BOOL, F64
from ..values.value import Value


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


def _hard_sigmoid(x: Scalar, alpha: float, beta: float) -> Scalar:
    return (x * alpha + beta).maximum(0.0).minimum(1.0)


@lowers("HardSigmoid")
def hard_sigmoid(node: Node) -> Value:
    x, alpha, beta = node.input(0), node.float("alpha", 0.2), node.float("beta", 0.5)
    return node.b.elementwise([x], x.dtype, lambda v: _hard_sigmoid(v, alpha, beta))


@lowers("HardSwish")
def hard_swish(node: Node) -> Value:
    x = node.input(0)
    return node.b.elementwise([x], x.dtype, lambda v: v * _hard_sigmoid(v, 1 / 6, 0.5))


@lowers("Swish")
def swish(node: Node) -> Value:
    x, alpha = node.input(0), node.float("alpha", 1.0)
    return node.b.elementwise([x], x.dtype, lambda v: v * (v * alpha).sigmoid())


@lowers("Selu")
def selu(node: Node) -> Value:
    x = node.input(0)
    alpha = node.float("alpha", 1.67326319217681884765625)
    gamma = node.float("gamma", 1.05070102214813232421875)

    def body(v: Scalar) -> Scalar:
        return (v > 0).select(v * gamma, (v.exp() - 1.0) * (alpha * gamma))

    return node.b.elementwise([x], x.dtype, body)


@lowers("Celu")
def celu(node: Node) -> Value:
    x, alpha = node.input(0), node.float("alpha", 1.0)

    def body(v: Scalar) -> Scalar:
        return (v > 0).select(v, ((v / alpha).exp() - 1.0) * alpha)

    return node.b.elementwise([x], x.dtype, body)


@lowers("Shrink")
def shrink(node: Node) -> Value:
    """Numbers between -lambd and lambd become 0, others come nearer to 0 by `bias`."""
    x, bias, limit = node.input(0), node.float("bias", 0.0), node.float("lambd", 0.5)
    dtype = F64 if x.dtype.is_integer else x.dtype

    def body(v: Scalar) -> Scalar:
        v = v.cast(dtype)
        upper = (v > limit).select(v - bias, v.like(0.0))
        return (v < -limit).select(v + bias, upper).cast(x.dtype)

    return node.b.elementwise([x], x.dtype, body)


@lowers("IsNaN")
def is_nan(node: Node) -> Value:
    return node.b.elementwise([node.input(0)], BOOL, lambda v: v.is_nan())


@lowers("IsInf")
def is_inf(node: Node) -> Value:
    x = node.input(0)
    negative, positive = node.int("detect_negative", 1), node.int("detect_positive", 1)

    def body(v: Scalar) -> Scalar:
        above = v == math.inf if positive else const(False, BOOL)
        below = v == -math.inf if negative else const(False, BOOL)
        return above | below

    return node.b.elementwise([x], BOOL, body)
