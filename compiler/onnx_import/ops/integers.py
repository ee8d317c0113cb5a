"""Operators that mean something else for integers, or only something for them."""

from __future__ import annotations

from ..building.scalars import Scalar, const
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import F64
from ..values.symbolic import Dim
from ..values.value import Value
from .elementwise import operands, symbolic_result


@lowers("Mod")
def mod(node: Node) -> Value:
    """With the sign of the divisor; with `fmod` that of the dividend."""
    x, y = operands(node)
    if node.int("fmod", 0):
        known = symbolic_result(node, [x, y], x.dtype, _remainder)
        return known or node.b.elementwise([x, y], x.dtype, lambda a, b: a.remainder(b))
    known = symbolic_result(node, [x, y], x.dtype, lambda a, b: a % b)
    return known or node.b.elementwise([x, y], x.dtype, lambda a, b: a % b)


def _remainder(a: Dim, b: Dim) -> Dim:
    return a - symbolic.truncdiv(a, b) * b


@lowers("BitShift")
def bit_shift(node: Node) -> Value:
    """Of unsigned integers; 0 where all bits leave."""
    x, y = operands(node)
    left = node.choice("direction", "LEFT", "RIGHT") == "LEFT"
    shift = Scalar.shift_left if left else Scalar.shift_right
    return node.b.elementwise([x, y], x.dtype, shift)


@lowers("Pow")
def power(node: Node) -> Value:
    """The result has the base's type."""
    x, exponent = node.input(0), node.input(1)
    number = exponent.numpy() if exponent.size == 1 else None
    fixed = None if number is None else float(number.reshape(-1)[0])
    if fixed == 2.0:
        dims = node.b.broadcast_dims([x.dims, exponent.dims])
        return node.b.elementwise([x], x.dtype, lambda v: v * v, dims=dims)
    if fixed == 0.5 and x.dtype.is_float:
        dims = node.b.broadcast_dims([x.dims, exponent.dims])
        return node.b.elementwise([x], x.dtype, lambda v: v.sqrt(), dims=dims)
    if x.dtype.is_float:
        return node.b.elementwise([x, exponent], x.dtype, lambda v, e: v.power(e.cast(x.dtype)))
    if exponent.dtype.is_integer:
        return node.b.elementwise([x, exponent], x.dtype, _integer_power)
    return node.b.elementwise(
        [x, exponent], x.dtype, lambda v, e: v.cast(F64).power(e.cast(F64)).cast(x.dtype)
    )


def _integer_power(base: Scalar, exponent: Scalar) -> Scalar:
    """By squaring, with all bits of the exponent; it wraps around as products do.

    A negative exponent gives what the quotient rounds to: 0 unless the base is 1 or -1.
    """
    result, square = base.like(1), base
    for bit in range(exponent.dtype.bits - exponent.dtype.signed):
        odd = (exponent & (1 << bit)) != 0
        result = odd.select(result * square, result)
        square = square * square
    if not exponent.dtype.signed:
        return result
    is_odd = (exponent & 1) != 0
    inverse = (base == 1).select(base, base.like(0))
    if base.dtype.signed:
        minus = is_odd.select(base, base.like(1))
        inverse = (base == -1).select(minus, inverse)
    return (exponent < const(0, exponent.dtype)).select(inverse, result)
