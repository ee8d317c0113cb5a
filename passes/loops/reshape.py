"""Tensors seen in another shape: collapse + expand, which are views of one buffer."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, tensor

from ..resolve_dims import index


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
