"""Sorted lines of which the beginning is read become `abq.top_k`, for targets that have kernels.

The front end makes of TopK a `tm_tensor.sort` of whole lines, with a second tensor of places, and
slices of both. Where all slices end at one place, that is k; otherwise the whole line is sorted.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.abq_order import TopKOp
from abqc.dialects.mlir import arith, ir, tensor

from .generics import is_place, iterators
from .infrastructure import Unit, constant_index, defining_op, is_used, register, users, walk
from .resolve_dims import dimension_or_query, index
from .slices import dynamic_size, is_beginning, is_whole, static_sizes

# What codegen/gpu/top_k.py has kernels for.
ELEMENTS = ("f16", "bf16", "f32", "f64", "i8", "i16", "i32", "i64")

# Comparisons after which the order stays, by operation and predicate: whether it is descending.
_DESCENDING = {
    ("arith.cmpf", int(arith.CmpFPredicate.OGE)): True,
    ("arith.cmpf", int(arith.CmpFPredicate.OLE)): False,
    ("arith.cmpi", int(arith.CmpIPredicate.sge)): True,
    ("arith.cmpi", int(arith.CmpIPredicate.sle)): False,
}


@register
def convert_top_k(module: ir.Operation, unit: Unit) -> None:
    """Turn tm_tensor.sort of values and their places into abq.top_k."""
    for op in walk(module, "tm_tensor.sort"):
        largest = _largest(op)
        if largest is not None:
            _convert(op, largest)


def _largest(op: ir.Operation) -> bool | None:
    """Whether the order is descending; None where `op` is no sort of values and places."""
    if len(op.operands) != 2 or str(abq.element(op.operands[0])) not in ELEMENTS:
        return None
    if not _counts(op.operands[1], _axis(op)):
        return None
    block = op.regions[0].blocks[0]
    compare = _without_nan(defining_op(list(block.operations)[-1].operation.operands[0]))
    if compare is None or "predicate" not in compare.attributes:
        return None
    if list(compare.operands) != list(block.arguments)[:2]:
        return None
    predicate = ir.IntegerAttr(compare.attributes["predicate"]).value
    return _DESCENDING.get((compare.name, predicate))


def _without_nan(op: ir.Operation | None) -> ir.Operation | None:
    """The comparison behind `is NaN, or comparison` (keep_nans.py)."""
    return defining_op(op.operands[1]) if op is not None and op.name == "arith.ori" else op


def _axis(op: ir.Operation) -> int:
    return ir.IntegerAttr(op.attributes["dimension"]).value


def _counts(value: ir.Value, axis: int) -> bool:
    """Whether every element (i64) is its own place along the axis."""
    op = defining_op(value)
    if op is None or op.name != "linalg.generic" or str(abq.element(value)) != "i64":
        return False
    if len(op.operands) != 1 or "reduction" in iterators(op):
        return False
    block = op.regions[0].blocks[0]
    return is_place(list(block.operations)[-1].operation.operands[0], axis)


def _convert(op: ir.Operation, largest: bool) -> None:
    x, axis = op.operands[0], _axis(op)
    slices = _beginnings(op, axis)
    place = op if not slices else min(slices, key=_Position)
    with ir.InsertionPoint(place), op.location:
        k = _size(slices[0], axis) if slices else dimension_or_query(x, axis)
        types = [_shortened(result.type, axis, k) for result in op.results]
        i64 = ir.IntegerType.get_signless(64)
        new = TopKOp(
            x, k, op.attributes["dimension"], ir.IntegerAttr.get(i64, int(largest)), *types
        )
    for old, result in zip(op.results, new.operation.results, strict=True):
        for part in [user.operation for user in users(old)] if slices else []:
            _read(part, result, x, axis)
        if is_used(old):
            with ir.InsertionPoint(place), op.location:
                same = result if result.type == old.type else tensor.CastOp(old.type, result).result
            old.replace_all_uses_with(same)
    op.erase()


class _Position:
    """Orders operations of one block."""

    def __init__(self, op: ir.Operation) -> None:
        self.op = op

    def __lt__(self, other: _Position) -> bool:
        return self.op != other.op and self.op.is_before_in_block(other.op)


def _beginnings(op: ir.Operation, axis: int) -> list[ir.Operation]:
    """The slices of both results, where they all are of the same first elements of the lines and
    nothing else reads the results; else none."""
    found = [user.operation for result in op.results for user in users(result)]
    if not all(
        part.name == "tensor.extract_slice" and part.block == op.block and is_beginning(part, axis)
        for part in found
    ):
        return []
    ends = {static_sizes(part)[axis] for part in found}
    if ends == {abq.DYNAMIC}:
        ends = {dynamic_size(part, axis) for part in found}
    return found if len(ends) == 1 else []


def _size(part: ir.Operation, axis: int) -> ir.Value:
    """Its size along an axis, at the insertion point if that is static."""
    static = static_sizes(part)[axis]
    return dynamic_size(part, axis) if static == abq.DYNAMIC else index(static)


def _shortened(type_: ir.Type, axis: int, k: ir.Value) -> ir.Type:
    ranked = ir.RankedTensorType(type_)
    shape = list(ranked.shape)
    static = constant_index(k)
    shape[axis] = abq.DYNAMIC if static is None else static
    return ir.RankedTensorType.get(shape, ranked.element_type)


def _read(part: ir.Operation, result: ir.Value, x: ir.Value, axis: int) -> None:
    """A slice of the sorted lines is one of `result`, or all of it."""
    others = [d for d in range(len(abq.shape(x))) if d != axis]
    if part.results[0].type == result.type and all(is_whole(part, d, x) for d in others):
        part.results[0].replace_all_uses_with(result)
        part.erase()
    else:
        part.operands[0] = result
