"""What calibration has found for products, and how it gets into them.

| symbol of the weight store | holds |
| --- | --- |
| `balance_symbol` | f32 [K], positive: what is read is divided by it, the weight multiplied |
| `shift_symbol` | f32 [K]: what is then taken off; the bias has that |
| `static_scale_symbol` | f64 [2]: the scale and zero point of static activations |
| `bias_symbol` | f32 [N]: what is added to the bias |

What is not there does nothing.
"""

from __future__ import annotations

import hashlib
from typing import Any

from abqc.dialects import abq
from abqc.dialects.formats import Scheme
from abqc.dialects.mlir import arith, ir
from abqc.errors import RecipeError

from ..infrastructure import Unit
from ..loops.constant_values import derived, weight
from ..loops.row_loops import over_rows
from .encoding import Encoding
from .marks import INTEGER, mark_behind, mark_symbol, static_scales


def balance_symbol(source: str, node: str) -> str:
    """Where the store has, as f32 [K], by what the rows that a node reads are divided.

    `source` is the symbol of the float weight: the balance comes before its codes. Factors are
    positive; the weight's columns are multiplied by them (SmoothQuant, Xiao et al. 2022).
    """
    return f"{source}.balance of {node}"


def static_scale_symbol(encoding: Encoding, node: str) -> str:
    """Where the store has, as f64, the scale and zero point of what a node's weight meets."""
    return f"{encoding.symbol}.activations of {node}"


def shift_symbol(encoding: Encoding, node: str) -> str:
    """Where the store has, as f32 [K], what is taken off a product's inputs; its bias has that."""
    return f"{encoding.symbol}.shift of {node}"


def bias_symbol(encoding: Encoding, node: str) -> str:
    """Where the store has, as f32 [N], what a calibrated weight's outputs lack in the mean."""
    return f"{encoding.symbol}.bias of {node}"


def corrected_bias(view: Any, encoding: Encoding, node: str, unit: Unit) -> ir.Value | None:
    """The bias of a product or convolution, with what calibration adds to it."""
    symbol = bias_symbol(encoding, node)
    if symbol not in unit.store:
        return view.bias
    lacking = unit.store.get(symbol)
    if view.bias is None:
        return weight(symbol, [len(lacking)])
    return derived(view.bias, symbol, lambda bias: bias + lacking, unit.store)


def shifted(x: ir.Value, encoding: Encoding, node: str, unit: Unit) -> ir.Value:
    """The rows of `x` less their mean, where calibration has found one to take off."""
    symbol = shift_symbol(encoding, node)
    if symbol not in unit.store:
        return x
    mean = unit.store.get(symbol)
    # Products that read the same rows shift them once.
    shared = f"shift {hashlib.sha256(mean.tobytes()).hexdigest()[:32]}"
    if shared not in unit.store:
        unit.store.add(shared, mean)
    columns = weight(shared, [len(mean)])
    return over_rows([x], lambda e: arith.SubFOp(e[0], e[1]).result, columns=[columns])


def quantize_activation(
    x: ir.Value, scheme: Scheme, scales: list[int], encoding: Encoding, node: str, unit: Unit
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The codes of `x`, and its scales and zero points.

    These are of shape `scales`, or of one element, a constant, where all of the tensor has one.
    RecipeError where calibration has not fixed that one.
    """
    code = abq.CodeType.get(ir.StringAttr.get(scheme.text))
    static: dict[str, ir.Value] = {}
    mark = None
    if scheme.granularity == "tensor":
        mark = mark_behind(x, scheme)
        symbol = static_scale_symbol(encoding, node) if mark is None else mark_symbol(mark)
        if symbol not in unit.store:
            raise RecipeError(
                f"{scheme} has one scale for a whole tensor, which only calibration fixes",
                node=node,
                hint=f"give data with --calib, or write a{scheme.format.width} for one scale a row",
            )
        scales = [1]
        static = static_scales(symbol, unit)
    quantized = abq.QuantizeOp(
        x,
        ir.RankedTensorType.get(abq.shape(x), code),
        ir.RankedTensorType.get(scales, ir.F32Type.get()),
        ir.RankedTensorType.get(scales, ir.IntegerType.get_signless(32)),
        **static,
    )
    if mark is not None:
        quantized.operation.attributes[INTEGER] = ir.UnitAttr.get()
    return quantized.codes, quantized.scale, quantized.zero
