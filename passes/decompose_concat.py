"""`tensor.concat` becomes slices written into one buffer."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, cf, ir, tensor

from .infrastructure import Unit, blame, register, walk
from .resolve_dims import dimension_or_query, index


@register
def decompose_concat(module: ir.Operation, unit: Unit) -> None:
    """Rewrite tensor.concat as tensor.empty and tensor.insert_slice."""
    for op in walk(module, "tensor.concat"):
        with ir.InsertionPoint(op), op.location:
            op.results[0].replace_all_uses_with(_decompose(op))
        op.erase()


def _decompose(op: ir.Operation) -> ir.Value:
    axis = ir.IntegerAttr(op.attributes["dim"]).value
    type_ = ir.RankedTensorType(op.results[0].type)
    total, offsets = index(0), []
    for part in op.operands:
        offsets.append(total)
        total = arith.AddIOp(total, dimension_or_query(part, axis)).result
    first = op.operands[0]
    _check_equal_sizes(op, axis)
    sizes = [
        size if size != abq.DYNAMIC else (total if i == axis else dimension_or_query(first, i))
        for i, size in enumerate(type_.shape)
    ]
    result = tensor.EmptyOp(sizes, type_.element_type).result
    for part, offset in zip(op.operands, offsets, strict=True):
        part_type = ir.RankedTensorType(part.type)
        if 0 in part_type.shape:
            continue  # nothing to write, and no slice that a verifier accepts
        static_offsets = [abq.DYNAMIC if i == axis else 0 for i in range(type_.rank)]
        dynamic = [
            dimension_or_query(part, i) for i, s in enumerate(part_type.shape) if s == abq.DYNAMIC
        ]
        result = tensor.InsertSliceOp(
            part,
            result,
            [offset],
            dynamic,
            [],
            static_offsets,
            list(part_type.shape),
            [1] * type_.rank,
        ).result
    return result


def _check_equal_sizes(op: ir.Operation, axis: int) -> None:
    """Sizes along the other axes must agree, or slices would be written outside of the result."""
    first, *others = op.operands
    for i in range(ir.RankedTensorType(first.type).rank):
        if i == axis:
            continue
        size = dimension_or_query(first, i)
        for other in others:
            equal = arith.CmpIOp(arith.CmpIPredicate.eq, dimension_or_query(other, i), size).result
            cf.AssertOp(equal, f"{blame(op)}: sizes along axis {i} differ")
