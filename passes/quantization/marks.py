"""Codes of the values that `insert-fake-quantize` has marked."""

from __future__ import annotations

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir
from abqc.dialects.schemes import Scheme
from abqc.errors import RecipeError

from ..infrastructure import Unit, defining_op, is_used
from ..integers.moves import moves_from

MARK = "abq.fake_quantize"

# The attribute of an `abq.quantize` of an integer-only graph.
INTEGER = "integer"


def mark_behind(x: ir.Value, scheme: Scheme) -> ir.Operation | None:
    """The mark of format `scheme` whose elements `x` has, moved or the largest of several; None
    without one."""
    while True:
        op = defining_op(x)
        if op is not None and op.name == MARK:
            return op if ir.StringAttr(op.attributes["format"]).value == scheme.text else None
        sources = moves_from(x)
        if len(sources) != 1:
            return None
        (x,) = sources


def mark_symbol(op: ir.Operation) -> str:
    """Where the store has, as f64, the scale and zero point of a mark."""
    return ir.StringAttr(op.attributes["symbol"]).value


def static_scales(symbol: str, unit: Unit) -> dict[str, ir.Value]:
    """The scale and zero point that calibration has stored, as operands of `abq.quantize`."""
    scale, zero = unit.store.get(symbol)
    return {
        "x_scale": constant_tensor(np.array([scale], np.float32)),
        "x_zero": constant_tensor(np.array([zero], np.int32)),
    }


def quantize_mark(op: ir.Operation, unit: Unit) -> None:
    """Make a mark codes and their floats; its operand where the recipe asks for no integers.

    RecipeError where calibration has not fixed its scale.
    """
    view = op.opview
    node, symbol = ir.StringAttr(view.node).value, mark_symbol(op)
    if not is_used(view.result) or not unit.recipe.resolve(node, "matmul").integer:
        op.results[0].replace_all_uses_with(view.x)
        op.erase()
        return
    if symbol not in unit.store:
        raise RecipeError(
            "an integer-only graph has a scale for each value, which only calibration fixes",
            node=node,
            hint="give data with --calib, or leave out 'integer'",
        )
    with ir.InsertionPoint(op), op.location:
        codes = ir.RankedTensorType.get(abq.shape(view.x), abq.CodeType.get(view.format))
        f32, i32 = ir.F32Type.get(), ir.IntegerType.get_signless(32)
        quantized = abq.QuantizeOp(
            view.x,
            codes,
            ir.RankedTensorType.get([1], f32),
            ir.RankedTensorType.get([1], i32),
            **static_scales(symbol, unit),
        )
        quantized.operation.attributes[INTEGER] = ir.UnitAttr.get()
        result = abq.DequantizeOp(
            quantized.codes, quantized.scale, view.result.type, zero=quantized.zero
        ).result
    op.results[0].replace_all_uses_with(result)
    op.erase()


def constant_tensor(array: np.ndarray) -> ir.Value:
    attribute = ir.DenseElementsAttr.get(array)
    return arith.ConstantOp(attribute.type, attribute).result
