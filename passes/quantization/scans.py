"""Static codes for what a selective scan reads in every step (Quamba, arXiv 2410.13229).

x, delta (before its softplus, where there is one: equal steps are then equal ratios of small ones),
b and c become bytes with one scale each, which calibration fixes; the state stays in f32. The loop
that quantizes is an ordinary one, so that it is fused with what computes the operand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from abqc.dialects import abq
from abqc.dialects.abq_recurrent import SCANNED, SelectiveScanOp
from abqc.dialects.mlir import arith, ir, math, tensor
from abqc.dialects.schemes import Scheme
from abqc.errors import RecipeError

from ..infrastructure import Unit, walk
from ..loops.axis_blocks import parallel_loop
from ..loops.row_loops import constant
from ..resolve_dims import mixed_sizes


def scan_nodes(module: ir.Operation) -> list[str]:
    """The nodes of all selective scans."""
    with module.context:
        return [scan_node(op) for op in walk(module, "abq.selective_scan")]


def scan_node(op: ir.Operation) -> str:
    return ir.StringAttr(op.attributes["node"]).value


def scan_activation(op: ir.Operation, recipe: Any) -> Scheme | None:
    """The format of what an `abq.selective_scan` reads; None if it stays float, as it does where
    activations are not static. RecipeError for formats that are no integers."""
    resolved = recipe.resolve(scan_node(op), "scan")
    scheme: Scheme | None = resolved.activation
    if scheme is None or scheme.granularity != "tensor" or op.opview.x_scale is not None:
        return None
    if scheme.format.indexed or scheme.format.kind == "binary":
        raise RecipeError(
            f"{resolved.rule} gives a selective scan {scheme}, which are no integers",
            node=scan_node(op),
            hint="give the scan's node a rule of its own, as in a8:tensor or none",
        )
    return scheme


def scan_scale_symbol(node: str, operand: str) -> str:
    """Where the store has, as f64, the scale and zero point of an operand in SCANNED."""
    return f"{node}.{operand}.scanned"


def quantize_scan(op: ir.Operation, unit: Unit) -> None:
    """Give an `abq.selective_scan` codes, if the recipe asks for them."""
    node, scheme = scan_node(op), scan_activation(op, unit.recipe)
    if scheme is not None and scan_scale_symbol(node, "x") not in unit.store:
        note = "is a selective scan that stays float: calibration did not come to it"
        unit.refuse(node, note)
        scheme = None
    channels, states = abq.shape(op.opview.a)
    about = {"node": node, "channels": channels, "states": states}
    unit.scans.append(about | {"operands": "f32" if scheme is None else scheme.text})
    if scheme is None:
        return
    view = op.opview
    with ir.InsertionPoint(op), op.location:
        operands: dict[str, ir.Value] = {}
        scales: dict[str, ir.Value] = {}
        for name in SCANNED:
            scale, zero = unit.store.get(scan_scale_symbol(node, name))
            operands[name] = _bytes(getattr(view, name), scheme, float(scale), int(zero))
            scales[f"{name}_scale"] = _tensor(np.array([scale], np.float32))
            scales[f"{name}_zero"] = _tensor(np.array([zero - _shift(scheme)], np.int32))
        new = SelectiveScanOp(
            operands["x"],
            operands["delta"],
            view.a,
            operands["b"],
            operands["c"],
            op.attributes["softplus"],
            op.attributes["node"],
            view.y.type,
            view.state.type,
            initial=view.initial,
            **scales,
        )
    op.results[0].replace_all_uses_with(new.y)
    op.results[1].replace_all_uses_with(new.state)
    op.erase()


def _shift(scheme: Scheme) -> int:
    """What is taken from a code so that it is a signed byte."""
    return 0 if scheme.symmetric else 1 << (scheme.format.bits - 1)


def _bytes(x: ir.Value, scheme: Scheme, scale: float, zero: int) -> ir.Value:
    """clamp(rne(x / scale) + zero) - shift, as i8; a NaN becomes the lowest code."""
    low, high = scheme.format.qmin - zero, scheme.format.qmax - zero
    offset = zero - _shift(scheme)

    def body(elements: list[ir.Value]) -> ir.Value:
        steps = math.RoundEvenOp(arith.DivFOp(elements[0], constant(scale)).result).result
        above = arith.MaxNumFOp(steps, constant(float(low))).result
        clamped = arith.MinNumFOp(above, constant(float(high))).result
        code = arith.AddFOp(clamped, constant(float(offset))).result
        return arith.FPToSIOp(ir.IntegerType.get_signless(8), code).result

    identity = ir.AffineMap.get_identity(len(abq.shape(x)))
    empty = tensor.EmptyOp(mixed_sizes(x), ir.IntegerType.get_signless(8)).result
    return parallel_loop([x], [identity], empty, body)


def _tensor(array: np.ndarray) -> ir.Value:
    attribute = ir.DenseElementsAttr.get(array)
    return arith.ConstantOp(attribute.type, attribute).result
