"""Running sums become `abq.scan`, for targets that have kernels for them.

The front end makes of them one loop that goes along the axis in order, with the sum so far as its
second result. Other scans stay such loops.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.abq_order import ScanOp
from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, is_used, register, walk
from .loops.generics import dims, filled, inputs, is_identity, iterators, maps, rank

# What codegen/gpu/lines/scan.py has kernels for.
ELEMENTS = ("f16", "bf16", "f32", "f64", "i32", "i64")


@register
def convert_scan(module: ir.Operation, unit: Unit) -> None:
    """Turn loops that yield running sums into abq.scan."""
    for op in walk(module, "linalg.generic"):
        axis = _axis(op)
        if axis is None or not _sums_up(op):
            continue
        with ir.InsertionPoint(op), op.location:
            number = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), axis)
            y = ScanOp(inputs(op)[0], number, op.results[0].type).result
        op.results[0].replace_all_uses_with(y)
        op.erase()


def _axis(op: ir.Operation) -> int | None:
    """The axis that a loop of two results reduces, the first of which keeps it."""
    if len(op.results) != 2 or len(inputs(op)) != 1 or is_used(op.results[1]):
        return None
    kinds = iterators(op)
    if kinds.count("reduction") != 1 or inputs(op)[0].type != op.results[0].type:
        return None
    axis = kinds.index("reduction")
    read, written, total = maps(op)
    others = [d for d in range(rank(op)) if d != axis]
    ordered = is_identity(read) and is_identity(written) and dims(total) == others
    return axis if ordered and len(total.results) == len(others) else None


def _sums_up(op: ir.Operation) -> bool:
    """Whether both results are the sum so far and the element, from 0 on."""
    if abq.element_text(inputs(op)[0]) not in ELEMENTS or not _begins_at_zero(op.operands[2]):
        return False
    block = op.regions[0].blocks[0]
    element, _, total = block.arguments
    first, second = list(block.operations)[-1].operation.operands
    combined = defining_op(first)
    return (
        first == second
        and combined is not None
        and combined.name in ("arith.addf", "arith.addi")
        and set(combined.operands) == {element, total}
    )


def _begins_at_zero(init: ir.Value) -> bool:
    if isinstance(ir.RankedTensorType(init.type).element_type, ir.FloatType):
        return filled(init) == 0.0
    fill = defining_op(init)
    constant = defining_op(fill.operands[0]) if fill and fill.name == "linalg.fill" else None
    if constant is None or constant.name != "arith.constant":
        return False
    return ir.IntegerAttr(constant.attributes["value"]).value == 0
