"""A reshape whose `-1` does not come out even is an error of the run.

The front end divides the number of elements by the sizes that are known and takes the quotient; the
elements behind it would be lost without a word.
"""

from __future__ import annotations

from abqc.dialects.mlir import arith, cf, ir

from .infrastructure import Unit, blame, constant_index, defining_op, register, walk

QUOTIENTS = frozenset(("arith.divsi", "arith.divui", "arith.floordivsi"))


@register
def check_reshapes(module: ir.Operation, unit: Unit) -> None:
    """Check that the quotients among the sizes of tensor.expand_shape leave no remainder."""
    checked: set[ir.Value] = set()
    for op in walk(module, "tensor.expand_shape"):
        for size in list(op.operands)[1:]:
            quotient = _quotient(size)
            if quotient is None or quotient.results[0] in checked or _is_even(quotient):
                continue
            checked.add(quotient.results[0])
            with ir.InsertionPoint.after(quotient), op.location:
                _check(op, *quotient.operands)


def _quotient(size: ir.Value) -> ir.Operation | None:
    owner = defining_op(size)
    while owner is not None and owner.name == "arith.index_cast":
        owner = defining_op(owner.operands[0])
    return owner if owner is not None and owner.name in QUOTIENTS else None


def _is_even(quotient: ir.Operation) -> bool:
    """Whether the dividend has a constant factor that the divisor divides."""
    divisor = constant_index(quotient.operands[1])
    product = defining_op(quotient.operands[0])
    if divisor == 1:
        return True
    if not divisor or product is None or product.name != "arith.muli":
        return False
    factors = [constant_index(operand) for operand in product.operands]
    return any(factor is not None and factor % divisor == 0 for factor in factors)


def _check(op: ir.Operation, dividend: ir.Value, divisor: ir.Value) -> None:
    zero = arith.ConstantOp(dividend.type, ir.IntegerAttr.get(dividend.type, 0)).result
    rest = arith.RemSIOp(dividend, divisor).result
    even = arith.CmpIOp(arith.CmpIPredicate.eq, rest, zero).result
    cf.AssertOp(even, f"{blame(op)}: a reshape changes the number of elements")
