"""NaN goes through a clamp.

The front end clamps by `select(x < low or unordered, low, x)`, which makes a number of a NaN.
ONNX's Clip is `min(max(x, low), high)`, in which a NaN stays one.
"""

from __future__ import annotations

from abqc.dialects.mlir import arith, ir

from .infrastructure import Unit, defining_op, register, walk

ULT, UGT = int(arith.CmpFPredicate.ULT), int(arith.CmpFPredicate.UGT)


@register
def keep_nans(module: ir.Operation, unit: Unit) -> None:
    """Turn clamps by unordered comparisons into arith.maximumf and arith.minimumf."""
    for select in walk(module, "arith.select"):
        condition, bound, x = select.operands
        compare = defining_op(condition)
        if compare is None or compare.name != "arith.cmpf" or list(compare.operands) != [x, bound]:
            continue
        predicate = ir.IntegerAttr(compare.attributes["predicate"]).value
        if predicate not in (ULT, UGT):
            continue
        with ir.InsertionPoint(select), select.location:
            extreme = arith.MaximumFOp if predicate == ULT else arith.MinimumFOp
            select.results[0].replace_all_uses_with(extreme(x, bound).result)
        select.erase()
