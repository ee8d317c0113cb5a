"""Integer divisions never trap.

x86 raises a signal for `x / 0` and `MIN / -1`, and a signal ends the process that runs the model.
As in numpy, `x / 0` is 0, and `MIN / -1` wraps around; remainders are 0.
"""

from __future__ import annotations

from abqc.dialects.mlir import arith, ir

from .infrastructure import Unit, constant_index, defining_op, register, walk

SIGNED = frozenset(("arith.divsi", "arith.remsi", "arith.floordivsi", "arith.ceildivsi"))
UNSIGNED = frozenset(("arith.divui", "arith.remui", "arith.ceildivui"))


@register
def guard_divisions(module: ir.Operation, unit: Unit) -> None:
    """Give divisions by zero, and by -1, a result."""
    guard_all(module)


def guard_all(module: ir.Operation) -> None:
    """The pass, for what is lowered after it."""
    for op in walk(module):
        if op.name in SIGNED | UNSIGNED and not _is_harmless(op.operands[1]):
            with ir.InsertionPoint(op), op.location:
                result = _divide(op)
            op.results[0].replace_all_uses_with(result)
            op.erase()


def _is_harmless(divisor: ir.Value) -> bool:
    """Whether a divisor is known to be neither 0 nor -1."""
    constant = constant_index(divisor)
    if constant is not None:
        return constant not in (0, -1)
    owner = defining_op(divisor)
    if owner is None or owner.name not in ("arith.maxsi", "arith.maxui"):
        return False
    return any((constant_index(operand) or 0) > 0 for operand in owner.operands)


def _divide(op: ir.Operation) -> ir.Value:
    dividend, divisor = op.operands
    zero, one = _constant(divisor.type, 0), _constant(divisor.type, 1)
    by_zero = arith.CmpIOp(arith.CmpIPredicate.eq, divisor, zero).result
    safe = arith.SelectOp(by_zero, one, divisor).result
    if op.name in UNSIGNED:
        return arith.SelectOp(by_zero, zero, _again(op, dividend, safe)).result
    by_minus_one = arith.CmpIOp(arith.CmpIPredicate.eq, divisor, _constant(divisor.type, -1)).result
    safe = arith.SelectOp(by_minus_one, one, safe).result
    negated = zero if op.name == "arith.remsi" else arith.SubIOp(zero, dividend).result
    result = arith.SelectOp(by_minus_one, negated, _again(op, dividend, safe)).result
    return arith.SelectOp(by_zero, zero, result).result


def _again(op: ir.Operation, dividend: ir.Value, divisor: ir.Value) -> ir.Value:
    clone = op.clone()
    clone.operands[0], clone.operands[1] = dividend, divisor
    return clone.results[0]


def _constant(type_: ir.Type, value: int) -> ir.Value:
    return arith.ConstantOp(type_, ir.IntegerAttr.get(type_, value)).result
