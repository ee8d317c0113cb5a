"""Dynamic reshapes become collapse + expand, which are views of one buffer."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, cf, ir, tensor

from .infrastructure import Unit, blame, defining_op, register, walk
from .resolve_dims import dimension_or_query, index


@register
def lower_reshape(module: ir.Operation, unit: Unit) -> None:
    """Rewrite tensor.reshape as tensor.collapse_shape followed by tensor.expand_shape."""
    for op in walk(module, "tensor.reshape"):
        shape = defining_op(op.operands[1])
        if shape is None or shape.name != "tensor.from_elements":
            continue
        with ir.InsertionPoint(op), op.location:
            result = reshape(op.operands[0], op.results[0].type, list(shape.operands))
        op.results[0].replace_all_uses_with(result)
        op.erase()
    for op in walk(module, "tensor.collapse_shape"):
        source = ir.RankedTensorType(op.operands[0].type)
        if ir.RankedTensorType(op.results[0].type).rank == 0 and not source.has_static_shape:
            with ir.InsertionPoint(op), op.location:
                result = _only_element(op)
            op.results[0].replace_all_uses_with(result)
            op.erase()


def _only_element(op: ir.Operation) -> ir.Value:
    """A tensor of one element, by its type of unknown size, as one of rank 0.

    (A collapse to rank 0 takes static sizes of 1 only, though the verifier lets others pass.)
    """
    source = op.operands[0]
    for axis in range(ir.RankedTensorType(source.type).rank):
        size = dimension_or_query(source, axis)
        single = arith.CmpIOp(arith.CmpIPredicate.eq, size, index(1)).result
        cf.AssertOp(single, f"{blame(op)}: a tensor that should have one element has not")
    position = [index(0)] * ir.RankedTensorType(source.type).rank
    element = tensor.ExtractOp(source, position).result
    return tensor.FromElementsOp(op.results[0].type, [element]).result


def reshape(source: ir.Value, type_: ir.Type, sizes: list[ir.Value]) -> ir.Value:
    """View `source` as `type_`; `sizes` has an index or integer for each axis of the result."""
    source_type, result_type = ir.RankedTensorType(source.type), ir.RankedTensorType(type_)
    flat = source
    if source_type.rank != 1:
        length = 1
        for size in source_type.shape:
            length = abq.DYNAMIC if abq.DYNAMIC in (size, length) else length * size
        groups = [list(range(source_type.rank))] if source_type.rank else []
        flat_type = ir.RankedTensorType.get([length], source_type.element_type)
        if source_type.rank == 0:
            flat = tensor.ExpandShapeOp(flat_type, source, [], [], [1]).result
        else:
            flat = tensor.CollapseShapeOp(flat_type, source, groups).result
    if result_type.rank == 0:
        return tensor.FromElementsOp(type_, [tensor.ExtractOp(flat, [index(0)]).result]).result
    if result_type.rank == 1:
        return flat if flat.type == type_ else tensor.CastOp(type_, flat).result
    static = list(result_type.shape)
    flat_size = ir.RankedTensorType(flat.type).shape[0]
    known = 1
    for size in static:
        known = abq.DYNAMIC if abq.DYNAMIC in (size, known) else known * size
    if flat_size != known:
        flat = tensor.CastOp(
            ir.RankedTensorType.get([known], source_type.element_type), flat
        ).result
    dynamic = [as_index(s) for s, size in zip(sizes, static, strict=True) if size == abq.DYNAMIC]
    return tensor.ExpandShapeOp(
        type_, flat, [list(range(result_type.rank))], dynamic, static
    ).result


def as_index(value: ir.Value) -> ir.Value:
    if isinstance(value.type, ir.IndexType):
        return value
    return arith.IndexCastOp(ir.IndexType.get(), value).result
