"""The scalar operations inside of loops, on whole arrays: what `arith` and `math` compute.

Functions take the namespace of the arrays, numpy or torch, and are differentiable in the latter.
Scalars (sizes, constants) are Python's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from abqc.dialects.element_types import is_integer, numpy_name
from abqc.dialects.mlir import ir

Function = Callable[..., Any]

# numpy and torch have these under one name.
_UNARY = {
    "math.absf": "abs", "math.absi": "abs", "math.ceil": "ceil", "math.cos": "cos",
    "math.exp": "exp", "math.exp2": "exp2", "math.expm1": "expm1", "math.floor": "floor",
    "math.log": "log", "math.log1p": "log1p", "math.log2": "log2", "math.roundeven": "round",
    "math.sin": "sin", "math.sqrt": "sqrt", "math.tanh": "tanh", "math.trunc": "trunc",
    "math.erf": "erf",
}  # fmt: skip
_SAME = ("arith.index_cast", "arith.extsi", "arith.trunci", "arith.extf", "arith.truncf")
_CONVERSIONS = (*_SAME, "arith.sitofp", "arith.fptosi", "arith.uitofp", "arith.extui")
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "arith.addf": lambda a, b: a + b,
    "arith.addi": lambda a, b: a + b,
    "arith.subf": lambda a, b: a - b,
    "arith.subi": lambda a, b: a - b,
    "arith.mulf": lambda a, b: a * b,
    "arith.muli": lambda a, b: a * b,
    "arith.divf": lambda a, b: a / b,
    "arith.floordivsi": lambda a, b: a // b,
    "arith.ceildivsi": lambda a, b: -(-a // b),
    "arith.andi": lambda a, b: a & b,
    "arith.ori": lambda a, b: a | b,
    "arith.xori": lambda a, b: a ^ b,
    "math.powf": lambda a, b: a**b,
}
_EXTREMES = {
    "arith.maximumf": ("maximum", max),
    "arith.minimumf": ("minimum", min),
    "arith.maxsi": ("maximum", max),
    "arith.minsi": ("minimum", min),
    "arith.maxnumf": ("fmax", max),
    "arith.minnumf": ("fmin", min),
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
# Of the attribute `predicate`. Comparisons of floats that are true for NaN alike, but for `ne`,
# have no such form and are left out.
_INTEGER_PREDICATES = {0: "eq", 1: "ne", 2: "lt", 3: "le", 4: "gt", 5: "ge"}
_FLOAT_PREDICATES = {1: "eq", 2: "gt", 3: "ge", 4: "lt", 5: "le", 13: "ne"}


def scalar_function(op: ir.Operation, xp: Any) -> Function | None:
    """What an operation on scalars computes of arrays; None for one that is not known."""
    name = op.name
    if name in _UNARY:
        return _unary(_UNARY[name], xp)
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    if name in _EXTREMES:
        return _extreme(*_EXTREMES[name], xp)
    if name in _CONVERSIONS:
        return _conversion(op, xp)
    if name in ("arith.cmpi", "arith.cmpf"):
        return _comparison(op)
    rare: dict[str, Function] = {
        "arith.negf": lambda a: -a,
        "arith.divsi": _truncated_quotient,
        "arith.remsi": lambda a, b: a - _truncated_quotient(a, b) * b,
        "arith.select": lambda c, a, b: _select(c, a, b, xp),
        "math.rsqrt": lambda a: 1 / xp.sqrt(as_array(a, xp)),
    }
    return rare.get(name)


def is_array(value: Any) -> bool:
    return hasattr(value, "shape")


def as_array(value: Any, xp: Any) -> Any:
    return value if is_array(value) else xp.asarray(value)


def as_type(value: Any, dtype: Any, xp: Any) -> Any:
    """An array of a type. (`torch.asarray` of a tensor may lose its gradient.)"""
    return value.to(dtype) if hasattr(value, "to") else xp.asarray(value, dtype=dtype)


def dtype_of(type_: ir.Type, xp: Any) -> Any:
    """The type of arrays for elements of an MLIR type; None for one that is not known. What has 16
    bits is computed with in f32, as everywhere."""
    name = numpy_name(type_)
    if name in ("float16", "bfloat16"):
        return xp.float32
    return None if name is None else getattr(xp, name)


def _unary(name: str, xp: Any) -> Function | None:
    function = getattr(xp, name, None)  # numpy has no erf
    return None if function is None else lambda a: function(as_array(a, xp))


def _extreme(name: str, scalar: Callable[[Any, Any], Any], xp: Any) -> Function:
    function = getattr(xp, name)

    def extreme(a: Any, b: Any) -> Any:
        if not is_array(a) and not is_array(b):
            return scalar(a, b)
        return function(*_alike(a, b, xp))

    return extreme


def _alike(a: Any, b: Any, xp: Any) -> tuple[Any, Any]:
    """Two arrays of one type, where one may be a scalar."""
    array = a if is_array(a) else b
    return tuple(v if is_array(v) else xp.asarray(v, dtype=array.dtype) for v in (a, b))  # type: ignore[return-value]


def _conversion(op: ir.Operation, xp: Any) -> Function | None:
    if op.name in ("arith.uitofp", "arith.extui") and not is_integer(op.operands[0].type, 1):
        return None
    type_ = op.results[0].type
    dtype = dtype_of(type_, xp)
    if dtype is None:
        return None
    is_float = isinstance(type_, ir.FloatType)

    def convert(a: Any) -> Any:
        if is_array(a):
            return as_type(a, dtype, xp)
        return float(a) if is_float else int(a)

    return convert


def _comparison(op: ir.Operation) -> Function | None:
    predicate = ir.IntegerAttr(op.attributes["predicate"]).value
    table = _INTEGER_PREDICATES if op.name == "arith.cmpi" else _FLOAT_PREDICATES
    name = table.get(predicate)
    return None if name is None else _COMPARISONS[name]


def _truncated_quotient(a: Any, b: Any) -> Any:
    """Of integers, towards zero."""
    down = a // b
    return down + ((a % b != 0) & ((a < 0) != (b < 0)))


def _select(condition: Any, a: Any, b: Any, xp: Any) -> Any:
    if not is_array(condition):
        return a if condition else b
    if not is_array(a) and not is_array(b):
        dtype = xp.float32 if isinstance(a, float) else xp.int64
        a, b = xp.asarray(a, dtype=dtype), xp.asarray(b, dtype=dtype)
    return xp.where(condition, *_alike(a, b, xp))
