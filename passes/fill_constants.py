"""Loops that write one constant become `linalg.fill`, which folds into what reads it."""

from __future__ import annotations

from abqc.dialects.mlir import arith, ir, linalg

from .infrastructure import Unit, defining_op, register, walk
from .loops.generics import inputs, is_elementwise, yielded


@register
def fill_constants(module: ir.Operation, unit: Unit) -> None:
    """Turn constant linalg.generic into linalg.fill."""
    for op in walk(module, "linalg.generic"):
        if not is_elementwise(op) or inputs(op):
            continue
        constant = defining_op(yielded(op))
        if constant is None or constant.name != "arith.constant":
            continue
        with ir.InsertionPoint(op), op.location:
            value = arith.ConstantOp(constant.results[0].type, constant.attributes["value"]).result
            filled = linalg.fill(value, outs=[op.operands[0]])
        op.results[0].replace_all_uses_with(filled)
        op.erase()
