"""`abq.softmax` as loops, for targets without a kernel for it: max, exp(x - max), sum, quotient."""

from __future__ import annotations

from abqc.dialects.mlir import arith, ir, math

from .infrastructure import Unit, register, walk
from .loops.row_loops import over_rows, reduce_rows


@register
def decompose_softmax(module: ir.Operation, unit: Unit) -> None:
    """Rewrite abq.softmax as linalg.generic."""
    for op in walk(module, "abq.softmax"):
        with ir.InsertionPoint(op), op.location:
            y = _loops(op.opview.x)
        op.results[0].replace_all_uses_with(y)
        op.erase()


def _loops(x: ir.Value) -> ir.Value:
    largest = reduce_rows(x, float("-inf"), lambda e, a: arith.MaximumFOp(e, a).result)
    powers = over_rows([x], _power, rows=[largest])
    total = reduce_rows(powers, 0.0, lambda e, a: arith.AddFOp(e, a).result)
    return over_rows([powers], lambda e: arith.DivFOp(e[0], e[1]).result, rows=[total])


def _power(elements: list[ir.Value]) -> ir.Value:
    x, largest = elements
    return math.ExpOp(arith.SubFOp(x, largest).result).result
