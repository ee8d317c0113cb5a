"""Sizes of the grid become arguments of a kernel, so that layers of other sizes share it.

A convolution network has a number of channels for every layer; with each in the kernels' types no
two layers would share one. A size stays in the types where a loop inside of the kernel depends on
it: as its length, or as a part of the stride with which it walks through a buffer, which LLVM
vectorizes by.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir, memref

from ..loops.generics import loops_read
from .loop_nest import Nest, static_extent


def loosen_sizes(nest: Nest) -> None:
    """Cast the operands of `nest`, at the insertion point, to types without its grid's sizes."""
    loose = {dim for dim in nest.grid if _is_large(nest, dim)}
    for operand, map_ in zip(nest.operands, nest.maps, strict=True):
        loose -= _strides_of_inner_loops(nest, operand, map_)
    if not loose:
        return
    nest.operands = [
        _without_sizes(operand, map_, loose)
        for operand, map_ in zip(nest.operands, nest.maps, strict=True)
    ]


def _is_large(nest: Nest, dim: int) -> bool:
    """Whether the size is known and is not 1, which takes a loop away."""
    size = static_extent(nest, dim)
    return size is not None and size > 1


def _strides_of_inner_loops(nest: Nest, operand: ir.Value, map_: ir.AffineMap) -> set[int]:
    """The loops whose sizes are factors of the stride of an inner loop in `operand`."""
    factors: set[int] = set()
    seen_inner = False
    for expr in map_.results:
        if seen_inner and isinstance(expr, ir.AffineDimExpr):
            factors.add(expr.position)
        seen_inner = seen_inner or not loops_read([expr]).isdisjoint(nest.inner)
    return factors


def _without_sizes(operand: ir.Value, map_: ir.AffineMap, loose: set[int]) -> ir.Value:
    type_ = ir.MemRefType(operand.type)
    shape = [
        abq.DYNAMIC if isinstance(expr, ir.AffineDimExpr) and expr.position in loose else size
        for expr, size in zip(map_.results, type_.shape, strict=True)
    ]
    if shape == list(type_.shape):
        return operand
    loosened = ir.MemRefType.get(shape, type_.element_type, type_.layout, type_.memory_space)
    return memref.CastOp(loosened, operand).result
