"""NaN goes through a clamp, and has its place in an order.

The front end clamps by `select(x < low or unordered, low, x)`, which makes a number of a NaN.
ONNX's Clip is `min(max(x, low), high)`, in which a NaN stays one. It sorts by `a >= b` or `a <= b`,
which are no order of values with a NaN among them: here it is larger than any number, as it is to
numpy.
"""

from __future__ import annotations

from abqc.dialects.mlir import arith, ir

from .infrastructure import Unit, defining_op, register, walk

ULT, UGT = int(arith.CmpFPredicate.ULT), int(arith.CmpFPredicate.UGT)
OGE, OLE = int(arith.CmpFPredicate.OGE), int(arith.CmpFPredicate.OLE)


@register
def keep_nans(module: ir.Operation, unit: Unit) -> None:
    """Turn clamps into arith.maximumf and arith.minimumf; give NaN a place in sorted lines."""
    for sort in walk(module, "tm_tensor.sort"):
        _order(sort)
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


def _order(sort: ir.Operation) -> None:
    """What comes first may stay there if it is NaN and the order is descending, or if what comes
    next is NaN and the order is ascending."""
    end = list(sort.regions[0].blocks[0].operations)[-1].operation
    compare = defining_op(end.operands[0])
    if compare is None or compare.name != "arith.cmpf":
        return
    predicate = ir.IntegerAttr(compare.attributes["predicate"]).value
    if predicate not in (OGE, OLE):
        return
    last = compare.operands[0 if predicate == OGE else 1]
    with ir.InsertionPoint(end), end.location:
        nan = arith.CmpFOp(arith.CmpFPredicate.UNO, last, last).result
        end.operands[0] = arith.OrIOp(nan, compare.results[0]).result
