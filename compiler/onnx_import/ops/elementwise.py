"""Operators that compute each element from elements at the same place: a table of one-liners."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..building.scalars import Scalar
from ..building.shaping import expand, unsqueeze
from ..registry import MICROSOFT, Node, Result, lowers
from ..values import symbolic
from ..values.element_types import BOOL, ElementType
from ..values.symbolic import Dim
from ..values.value import MAX_CONTENT, Value

Content = Callable[..., Dim]


def unary(name: str, body: Callable[[Scalar], Scalar], content: Content | None = None) -> None:
    """Registers an operator of one tensor whose result has its type."""

    @lowers(name)
    def lower(node: Node) -> Value:
        x = node.input(0)
        known = symbolic_result(node, [x], x.dtype, content)
        return known or node.b.elementwise([x], x.dtype, body)


def binary(
    name: str,
    body: Callable[[Scalar, Scalar], Scalar],
    content: Content | None = None,
    result: ElementType | None = None,
) -> None:
    """Registers an operator of two tensors of one type, which are broadcast together."""

    @lowers(name)
    def lower(node: Node) -> Value:
        x, y = operands(node)
        dtype = result or x.dtype
        known = symbolic_result(node, [x, y], dtype, content)
        return known or node.b.elementwise([x, y], dtype, body)


def operands(node: Node) -> tuple[Value, Value]:
    """Two tensors of one type; until opset 7 `axis` said where the second begins."""
    x, y = node.input(0), node.input(1)
    if x.dtype != y.dtype:
        raise node.error(f"its inputs differ in type: {x.dtype.name} and {y.dtype.name}")
    if node.version < 7 and node.has("axis") and y.rank:
        begin = node.counted(node.int("axis"), x.rank)
        behind = x.rank - begin - y.rank
        if behind > 0:
            y = unsqueeze(node.b, y, range(y.rank, y.rank + behind))
    return x, y


def symbolic_result(
    node: Node, given: Sequence[Value], dtype: ElementType, content: Content | None
) -> Value | None:
    """The result as a shape tensor, where the operands are such."""
    if content is None or all(value.is_constant for value in given):
        return None
    if dtype.is_float or any(value.rank > 1 for value in given):
        return None
    lists = [value.symbols for value in given]
    sizes = [value.size for value in given]
    if any(symbols is None for symbols in lists) or max(s or 0 for s in sizes) > MAX_CONTENT:
        return None
    dims = node.b.broadcast_dims([value.dims for value in given])
    count = symbolic.static_product(dims) or 0
    elements = [
        content(*(symbols[i if len(symbols) > 1 else 0] for symbols in lists if symbols))
        for i in range(count)
    ]
    return node.b.content(elements, dtype, [dim.value or 0 for dim in dims])


def variadic(
    name: str, body: Callable[[Scalar, Scalar], Scalar], content: Content | None = None
) -> None:
    """Registers an operator of one tensor or more."""

    @lowers(name)
    def lower(node: Node) -> Value:
        first, *others = node.tensors()
        for other in others:
            known = symbolic_result(node, [first, other], first.dtype, content)
            first = known or node.b.elementwise([first, other], first.dtype, body)
        return first


def _divided(x: Scalar, y: Scalar) -> Scalar:
    return x / y


# Arithmetic

binary("Add", lambda x, y: x + y, lambda x, y: x + y)
binary("Sub", lambda x, y: x - y, lambda x, y: x - y)
binary("Mul", lambda x, y: x * y, lambda x, y: x * y)
binary("Div", _divided, symbolic.truncdiv)
unary("Neg", lambda x: -x, lambda x: -x)
unary("Abs", lambda x: x.abs(), lambda x: symbolic.maximum(x, -x))
unary("Reciprocal", lambda x: 1.0 / x)
unary("Sqrt", lambda x: x.sqrt())
unary("Floor", lambda x: x.floor())
unary("Ceil", lambda x: x.ceil())
unary("Round", lambda x: x.round_even())

variadic("Sum", lambda x, y: x + y, lambda x, y: x + y)
variadic("Max", lambda x, y: x.maximum(y), symbolic.maximum)
variadic("Min", lambda x, y: x.minimum(y), symbolic.minimum)


@lowers("Mean")
def mean(node: Node) -> Value:
    total, *others = node.tensors()
    for other in others:
        total = node.b.elementwise([total, other], total.dtype, lambda x, y: x + y)
    count = float(len(others) + 1)
    return node.b.elementwise([total], total.dtype, lambda x: x / count)


# Functions

unary("Exp", lambda x: x.exp())
unary("Log", lambda x: x.log())
unary("Sin", lambda x: x.sin())
unary("Cos", lambda x: x.cos())
unary("Tan", lambda x: x.tan())
unary("Asin", lambda x: x.asin())
unary("Acos", lambda x: x.acos())
unary("Atan", lambda x: x.atan())
unary("Sinh", lambda x: x.sinh())
unary("Cosh", lambda x: x.cosh())
unary("Asinh", lambda x: x.asinh())
unary("Acosh", lambda x: x.acosh())
unary("Atanh", lambda x: x.atanh())
unary("Tanh", lambda x: x.tanh())
unary("Erf", lambda x: x.erf())
unary("Sigmoid", lambda x: x.sigmoid())

# Comparisons and logic

binary("Equal", lambda x, y: x == y, symbolic.is_equal, BOOL)
binary("Less", lambda x, y: x < y, symbolic.is_less, BOOL)
binary("Greater", lambda x, y: x > y, lambda x, y: symbolic.is_less(y, x), BOOL)
binary(
    "LessOrEqual", lambda x, y: x <= y,
    lambda x, y: symbolic.negated(symbolic.is_less(y, x)), BOOL,
)  # fmt: skip
binary(
    "GreaterOrEqual", lambda x, y: x >= y,
    lambda x, y: symbolic.negated(symbolic.is_less(x, y)), BOOL,
)  # fmt: skip
binary("And", lambda x, y: x & y, lambda x, y: symbolic.call("and", x, y))
binary("Or", lambda x, y: x | y, lambda x, y: symbolic.call("or", x, y))
binary("Xor", lambda x, y: x ^ y, lambda x, y: symbolic.negated(symbolic.is_equal(x, y)))
unary("Not", lambda x: ~x, symbolic.negated)

binary("BitwiseAnd", lambda x, y: x & y)
binary("BitwiseOr", lambda x, y: x | y)
binary("BitwiseXor", lambda x, y: x ^ y)
unary("BitwiseNot", lambda x: ~x)


@lowers("Where")
def where(node: Node) -> Value:
    condition, x, y = (node.input(i) for i in range(3))

    def content(c: Dim, then: Dim, otherwise: Dim) -> Dim:
        return symbolic.select(c, then, otherwise)

    known = symbolic_result(node, [condition, x, y], x.dtype, content)
    if known is not None:
        return known
    decided = condition.symbols
    if decided is not None and len(decided) == 1 and decided[0].value is not None:
        chosen = x if decided[0].value else y
        return expand(node.b, chosen, node.b.broadcast_dims([condition.dims, x.dims, y.dims]))
    return node.b.elementwise([condition, x, y], x.dtype, lambda c, a, b: c.select(a, b))


# Activations with parameters


def with_alpha(name: str, default: float, body: Callable[[Scalar, float], Scalar]) -> None:
    """Registers an operator of one tensor and the attribute `alpha`."""

    @lowers(name)
    def lower(node: Node) -> Value:
        x, alpha = node.input(0), node.float("alpha", default)
        return node.b.elementwise([x], x.dtype, lambda value: body(value, alpha))


unary("Relu", lambda x: x.maximum(0))
with_alpha("LeakyRelu", 0.01, lambda x, alpha: (x >= 0).select(x, x * alpha))
with_alpha("Elu", 1.0, lambda x, alpha: (x >= 0).select(x, (x.exp() - 1.0) * alpha))
with_alpha("ThresholdedRelu", 1.0, lambda x, alpha: (x > alpha).select(x, x.like(0)))
unary("Softsign", lambda x: x / (x.abs() + 1.0))
# log(1 + e^x) without overflow
unary("Softplus", lambda x: x.maximum(0) + (-x.abs()).exp().log1p())
unary("Mish", lambda x: x * (x.maximum(0) + (-x.abs()).exp().log1p()).tanh())


def _sign(x: Scalar) -> Scalar:
    """NaN of NaN."""
    if not x.dtype.signed:
        return (x > 0).select(x.like(1), x.like(0))
    sign = (x > 0).select(x.like(1), (x < 0).select(x.like(-1), x.like(0)))
    return x.is_nan().select(x, sign) if x.dtype.is_float else sign


unary("Sign", _sign)


@lowers("Gelu")
def gelu(node: Node) -> Value:
    x = node.input(0)
    by_tanh = node.choice("approximate", "none", "tanh") == "tanh"
    return node.b.elementwise([x], x.dtype, Scalar.tanh_gelu if by_tanh else Scalar.gelu)


@lowers("PRelu")
def prelu(node: Node) -> Value:
    x, slope = operands(node)
    if node.version < 7 and slope.rank == 1 and x.rank > 2:
        slope = unsqueeze(node.b, slope, range(1, x.rank - 1))  # one for each channel
    return node.b.elementwise(
        [x, slope], x.dtype, lambda v, s: (v < 0).select(v * s, v), dims=x.dims
    )


@lowers("Identity")
@lowers("SampleOp", domain=MICROSOFT)
def identity(node: Node) -> Result:
    value = node.inputs[0]
    assert value is not None
    return value
