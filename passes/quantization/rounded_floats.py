"""Codes of rows as the floats they stand for: what a product reads whose weight stays float."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.formats import parse_scheme
from abqc.dialects.mlir import arith, ir, math

from ..loops.row_loops import constant, over_rows, reduce_rows


def rounded_floats(quantized: ir.Operation) -> ir.Value:
    """`scale * code` for the codes of an `abq.quantize`, in f32 loops at the insertion point.

    With a scale that is given, x lies on its grid already: it was dequantized in the model.
    """
    view = quantized.opview
    if view.x_scale is not None:
        return view.x
    text = abq.code_format(view.codes)
    assert text is not None
    scheme = parse_scheme(text)
    assert scheme.symmetric and scheme.granularity == "token"  # what models round in floats
    largest = reduce_rows(view.x, 0.0, _larger_magnitude)

    def body(elements: list[ir.Value]) -> ir.Value:
        x, reach = elements
        is_zero = arith.CmpFOp(arith.CmpFPredicate.OEQ, reach, constant(0.0)).result
        scale = arith.DivFOp(reach, constant(float(scheme.format.qmax))).result
        scale = arith.SelectOp(is_zero, constant(1.0), scale).result
        steps = math.RoundEvenOp(arith.DivFOp(x, scale).result).result
        return arith.MulFOp(steps, scale).result

    return over_rows([view.x], body, rows=[largest])


def _larger_magnitude(element: ir.Value, largest: ir.Value) -> ir.Value:
    return arith.MaximumFOp(math.AbsFOp(element).result, largest).result
