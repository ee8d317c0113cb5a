"""`math` operations on f32 become arithmetic: `polynomials.py` and `hyperbolic.py` say how."""

from __future__ import annotations

from collections.abc import Callable

from abqc.dialects.mlir import ir

from . import hyperbolic, polynomials
from .expr import Expr, scalar_type
from .polynomials import power_by_constant, powf

UNARY: dict[str, Callable[[Expr], Expr]] = {
    "math.acos": hyperbolic.acos,
    "math.acosh": hyperbolic.acosh,
    "math.asin": hyperbolic.asin,
    "math.asinh": hyperbolic.asinh,
    "math.atan": hyperbolic.atan,
    "math.atanh": hyperbolic.atanh,
    "math.cos": polynomials.cos,
    "math.cosh": hyperbolic.cosh,
    "math.erf": polynomials.erf,
    "math.exp": polynomials.exp,
    "math.exp2": polynomials.exp2,
    "math.expm1": polynomials.expm1,
    "math.log": polynomials.log,
    "math.log10": polynomials.log10,
    "math.log1p": polynomials.log1p,
    "math.log2": polynomials.log2,
    "math.rsqrt": polynomials.rsqrt,
    "math.sin": polynomials.sin,
    "math.sinh": hyperbolic.sinh,
    "math.tan": hyperbolic.tan,
    "math.tanh": polynomials.tanh,
}

# What a last bit of the argument moves by less than one of the result: x f'(x) / f(x) is at most 1.
SATURATING = frozenset({"math.erf", "math.tanh"})


def expand_math(module: ir.Module) -> int:
    """Replace the f32 operations listed above and powers, scalars and vectors; returns how many
    there were.

    Other types and other `math` operations stay as they are.
    """
    found: list[tuple[ir.Operation, Callable[[ir.Operation], Expr]]] = []

    def collect(op: ir.Operation) -> ir.WalkResult:
        op = op.operation
        if op.name.startswith("math.") and (expand := _expansion(op)):
            found.append((op, expand))
        return ir.WalkResult.ADVANCE

    module.operation.walk(collect)
    for op, expand in found:
        with ir.InsertionPoint(op), op.location:
            result = expand(op)
        op.results[0].replace_all_uses_with(result.value)
        op.erase()
    return len(found)


def _expansion(op: ir.Operation) -> Callable[[ir.Operation], Expr] | None:
    if not len(op.results) or not _is_f32(op.results[0].type):
        return None
    if op.name == "math.exp" and _only_divides(op):
        return lambda op: polynomials.exp_of_divisor(Expr(op.operands[0]))
    if op.name in UNARY:
        argument = _saturating_argument if op.name in SATURATING else Expr
        return lambda op: UNARY[op.name](argument(op.operands[0]))
    return {"math.powf": _expand_powf, "math.fpowi": _expand_fpowi}.get(op.name)


def _only_divides(exp: ir.Operation) -> bool:
    """Whether it is the e of sums 1 + e that are divisors and nothing else."""
    return all(
        use.owner.name == "arith.addf"
        and 1.0 in map(_constant_number, use.owner.operands)
        and all(
            further.owner.name == "arith.divf" and further.operand_number == 1
            for further in use.owner.results[0].uses
        )
        for use in exp.results[0].uses
    )


def _saturating_argument(value: ir.Value) -> Expr:
    """x / c for a constant c is x times f32(1 / c): a division would take as long as the rest."""
    op = None if isinstance(value.owner, ir.Block) else value.owner
    if op is None or op.name != "arith.divf":
        return Expr(value)
    divisor = _constant_number(op.operands[1])
    if divisor is None or not 2.0**-100 < abs(divisor) < 2.0**100:
        return Expr(value)
    return Expr(op.operands[0]) * (1 / divisor)


def _expand_powf(op: ir.Operation) -> Expr:
    x, y = (Expr(operand) for operand in op.operands)
    exponent = _constant_number(op.operands[1])
    short = None if exponent is None else power_by_constant(x, exponent)
    return powf(x, y) if short is None else short


def _expand_fpowi(op: ir.Operation) -> Expr:
    x, exponent = Expr(op.operands[0]), Expr(op.operands[1])
    return powf(x, exponent.from_int(scalar_type(x.type)))


def _is_f32(type_: ir.Type) -> bool:
    return isinstance(scalar_type(type_), ir.F32Type)


def _constant_number(value: ir.Value) -> float | None:
    """The number of an `arith.constant`, a splat included; None for any other value."""
    if isinstance(value.owner, ir.Block) or value.owner.name != "arith.constant":
        return None
    attribute = value.owner.attributes["value"]
    if isinstance(attribute, ir.DenseElementsAttr):
        if not attribute.is_splat:
            return None
        attribute = attribute.get_splat_value()
    return attribute.value
