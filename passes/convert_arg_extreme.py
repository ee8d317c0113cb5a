"""ArgMax and ArgMin over rows become `abq.arg_extreme`, for targets that have kernels for them.

The front end makes of them a reduction with two results, the extreme and its place, which as a loop
would be run by one thread of a GPU for each row, and on a CPU element by element. Over other axes,
where neighbouring threads or lanes have neighbouring lines, the loop stays.
"""

from __future__ import annotations

import math

from abqc.dialects import abq
from abqc.dialects.abq_order import ArgExtremeOp
from abqc.dialects.element_types import is_integer
from abqc.dialects.mlir import arith, ir, tensor

from .infrastructure import Unit, defining_op, is_used, register, walk
from .loops.generics import dims, inputs, is_identity, is_place, iterators, maps, rank
from .resolve_dims import expand_shape

# Comparisons of an element with the extreme so far, by operation and predicate: ArgMax?
_LARGER = {
    ("arith.cmpf", int(arith.CmpFPredicate.OGT)): True,
    ("arith.cmpf", int(arith.CmpFPredicate.OLT)): False,
    ("arith.cmpi", int(arith.CmpIPredicate.sgt)): True,
    ("arith.cmpi", int(arith.CmpIPredicate.slt)): False,
}
_EXTREMES = {
    True: ("arith.maximumf", "arith.maxsi"),
    False: ("arith.minimumf", "arith.minsi"),
}


@register
def convert_arg_extreme(module: ir.Operation, unit: Unit) -> None:
    """Turn reductions to the place of an extreme into abq.arg_extreme."""
    for op in walk(module, "linalg.generic"):
        largest = _largest(op) if _is_over_rows(op) else None
        if largest is None or not _begins_at_worst(op, largest):
            continue
        element = abq.element_text(inputs(op)[0])
        if not unit.known_target.arg_extreme(element, largest=largest):
            continue
        flag = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), int(largest))
        with ir.InsertionPoint(op), op.location:
            places = _places(inputs(op)[0], flag, op.results[1])
        op.results[1].replace_all_uses_with(places)
        op.erase()


def _places(x: ir.Value, largest: ir.IntegerAttr, like: ir.Value) -> ir.Value:
    """Of each row of x, of the type of `like`; a vector is one row."""
    if len(abq.shape(x)) > 1:
        return ArgExtremeOp(x, largest, like.type).result
    one = ir.RankedTensorType.get([1], abq.element(like))
    places = ArgExtremeOp(expand_shape(x, [[0, 1]], [1, *abq.shape(x)]), largest, one).result
    return tensor.CollapseShapeOp(like.type, places, []).result


def _is_over_rows(op: ir.Operation) -> bool:
    """A reduction of the last axis of one tensor to two results, of which the second is read."""
    if len(op.results) != 2 or len(inputs(op)) != 1 or is_used(op.results[0]):
        return False
    rows = list(range(rank(op) - 1))
    return (
        iterators(op) == ["parallel"] * len(rows) + ["reduction"]
        and is_identity(maps(op)[0])
        and all(dims(map_) == rows and len(map_.results) == len(rows) for map_ in maps(op)[1:])
        and is_integer(abq.element(op.results[1]), 64)
    )


def _largest(op: ir.Operation) -> bool | None:
    """Whether the body finds the place of the largest; None where it does something else."""
    block = op.regions[0].blocks[0]
    element, best, place = block.arguments
    extreme, chosen = (defining_op(v) for v in list(block.operations)[-1].operation.operands)
    if extreme is None or chosen is None or chosen.name != "arith.select":
        return None
    better = defining_op(chosen.operands[0])
    if better is None or "predicate" not in better.attributes:
        return None
    predicate = ir.IntegerAttr(better.attributes["predicate"]).value
    largest = _LARGER.get((better.name, predicate))
    matches = (
        largest is not None
        and list(better.operands) == [element, best]
        and extreme.name in _EXTREMES[largest]
        and set(extreme.operands) == {element, best}
        and chosen.operands[2] == place
        and is_place(chosen.operands[1], rank(op) - 1)
    )
    return largest if matches else None


def _begins_at_worst(op: ir.Operation, largest: bool) -> bool:
    """Whether the extreme begins at what no element is worse than."""
    fill = defining_op(op.operands[1])
    constant = defining_op(fill.operands[0]) if fill and fill.name == "linalg.fill" else None
    if constant is None or constant.name != "arith.constant":
        return False
    value, type_ = constant.attributes["value"], constant.results[0].type
    if isinstance(type_, ir.FloatType):
        return ir.FloatAttr(value).value == (-math.inf if largest else math.inf)
    top = 1 << (ir.IntegerType(type_).width - 1)
    return ir.IntegerAttr(value).value == (-top if largest else top - 1)
