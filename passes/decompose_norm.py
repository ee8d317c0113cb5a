"""`abq.norm` as loops, for targets without a kernel for it.

    s = sum of x, c = x - s / n         layer norms; RMS norms: c = x
    q = sum of c * c
    y = c * (1 / sqrt(q / n + epsilon)) * weight + bias

(`fuse_norm.py` makes one operation of these loops where a model spells them out.)
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, math

from .infrastructure import Unit, register, walk
from .loops.row_loops import constant, over_rows, reduce_rows


@register
def decompose_norm(module: ir.Operation, unit: Unit) -> None:
    """Rewrite abq.norm of rows longer than the target's kernels take as linalg.generic."""
    for op in walk(module, "abq.norm"):
        if abq.shape(op.opview.x)[-1] > unit.known_target.max_norm_columns:
            with ir.InsertionPoint(op), op.location:
                y, total = _loops(op)
            op.results[0].replace_all_uses_with(y)
            op.results[1].replace_all_uses_with(total)
            op.erase()


def _loops(op: ir.Operation) -> tuple[ir.Value, ir.Value]:
    """The normalized rows, and the sum of x and the residual."""
    view = op.opview
    x = view.x
    columns = constant(float(abq.shape(x)[-1]))
    if view.residual is not None:
        x = over_rows([x, view.residual], lambda e: arith.AddFOp(e[0], e[1]).result)
    centered = x
    if ir.StringAttr(view.kind).value == "layer":
        total = reduce_rows(x, 0.0, lambda e, a: arith.AddFOp(e, a).result)
        centered = over_rows([x], lambda e: _minus_mean(e, columns), rows=[total])
    squares = reduce_rows(
        centered, 0.0, lambda e, a: arith.AddFOp(arith.MulFOp(e, e).result, a).result
    )
    epsilon = ir.FloatAttr(op.attributes["epsilon"]).value
    vectors = [v for v in (view.weight, view.bias) if v is not None]

    def scaled(elements: list[ir.Value]) -> ir.Value:
        value, square, *rest = elements
        variance = arith.AddFOp(arith.DivFOp(square, columns).result, constant(epsilon)).result
        factor = arith.DivFOp(constant(1.0), math.SqrtOp(variance).result).result
        value = arith.MulFOp(value, factor).result
        if view.weight is not None:
            value = arith.MulFOp(value, rest.pop(0)).result
        if view.bias is not None:
            value = arith.AddFOp(value, rest.pop(0)).result
        return value

    return over_rows([centered], scaled, rows=[squares], columns=vectors), x


def _minus_mean(elements: list[ir.Value], columns: ir.Value) -> ir.Value:
    return arith.SubFOp(elements[0], arith.DivFOp(elements[1], columns).result).result
