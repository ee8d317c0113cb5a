"""Operations that only move elements, or choose the largest of some: on codes as on floats.

All sources and the result then share one scale and zero point.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from abqc.dialects import abq
from abqc.dialects.fixed_point import StaticCodes
from abqc.dialects.mlir import arith, ir, linalg, tensor

from ..infrastructure import defining_op
from ..loops.axis_blocks import parallel_loop
from ..loops.generics import (
    OUT,
    expression,
    filled,
    float_constant,
    inputs,
    is_elementwise,
    maps,
    yielded,
)
from ..resolve_dims import mixed_sizes
from .loops import byte_constant, i8
from .sums import reduction

_VIEWS = (
    "tensor.cast",
    "tensor.collapse_shape",
    "tensor.expand_shape",
    "tensor.extract_slice",
)


# What has a code whatever the scale is: the zero point and, where the largest is taken, the lowest.
_PADDINGS = (0.0, -np.inf)


def moves_from(value: ir.Value) -> list[ir.Value]:
    """The float tensors whose elements `value` has, moved or the largest of several; [] where it
    is computed otherwise."""
    op = defining_op(value)
    if op is None or not _is_float(value):
        return []
    if op.name in _VIEWS or op.name == "linalg.transpose":
        return [op.operands[0]]
    if op.name in ("tensor.pad", "tensor.insert_slice"):
        return [op.operands[0]] if _padding(op) in _PADDINGS else []
    if op.name == "tensor.concat":
        return list(op.operands)
    if _is_copy(op) or _is_maximum(op):
        return [op.operands[0]]
    return []


def moved(value: ir.Value, sources: Sequence[ir.Value], codes: StaticCodes) -> ir.Value:
    """The bytes of `value`, of which `moves_from` gave the sources, from theirs."""
    op = defining_op(value)
    assert op is not None
    type_ = ir.RankedTensorType.get(abq.shape(value), i8())
    if op.name in _VIEWS:
        operands = [sources[0], *list(op.operands)[1:]]
        return _like(op, type_, operands)
    if op.name == "tensor.concat":
        return _like(op, type_, list(sources))
    if op.name == "tensor.pad":
        return _padded(op, type_, sources[0], codes)
    if op.name == "tensor.insert_slice":
        return _inserted(op, type_, sources[0], codes)
    if op.name == "linalg.transpose":
        return _read(value, sources[0], _transposition(op))
    if _is_copy(op):
        return _read(value, sources[0], maps(op)[0])
    return _largest(op, sources[0], codes)


def _is_float(value: ir.Value) -> bool:
    return isinstance(value.type, ir.RankedTensorType) and isinstance(
        abq.element(value), ir.F32Type
    )


def _is_copy(op: ir.Operation) -> bool:
    """A loop whose elements are some of its only input's."""
    return is_elementwise(op) and len(inputs(op)) == 1 and expression(op) == ("in", 0)


def _is_maximum(op: ir.Operation) -> bool:
    """A loop that takes the largest of its first input's elements, from minus infinity on."""
    if op.name != "linalg.generic" or len(op.results) != 1 or is_elementwise(op):
        return False
    if filled(op.operands[len(op.operands) - 1]) != -np.inf:
        return False
    tree = expression(op)
    return tree[0] == "arith.maximumf" and sorted(tree[1:]) == [("in", 0), OUT]


def _padding(op: ir.Operation) -> float | None:
    """The number around what a tensor.pad or a tensor.insert_slice has from its first operand."""
    return float_constant(yielded(op)) if op.name == "tensor.pad" else filled(op.operands[1])


def _padding_byte(op: ir.Operation, codes: StaticCodes) -> ir.Value:
    number = _padding(op)
    assert number is not None
    return byte_constant(int(codes.code(number)))


def reshaped_like(op: ir.Operation, value: ir.Value) -> ir.Value:
    """What the reshape `op` makes of another tensor."""
    type_ = ir.RankedTensorType.get(abq.shape(op.results[0]), abq.element(value))
    return _like(op, type_, [value, *list(op.operands)[1:]])


def _like(op: ir.Operation, type_: ir.Type, operands: list[ir.Value]) -> ir.Value:
    """The same operation on bytes; it has no regions."""
    attributes = {name: op.attributes[name] for name in op.attributes}
    made = ir.Operation.create(op.name, results=[type_], operands=operands, attributes=attributes)
    return made.results[0]


def _padded(op: ir.Operation, type_: ir.Type, source: ir.Value, codes: StaticCodes) -> ir.Value:
    attributes = {name: op.attributes[name] for name in op.attributes}
    operands = [source, *list(op.operands)[1:]]
    made = ir.Operation.create(
        op.name, results=[type_], operands=operands, attributes=attributes, regions=1
    )
    rank = len(abq.shape(source))
    block = made.regions[0].blocks.append(
        *[ir.IndexType.get()] * rank, arg_locs=[ir.Location.current] * rank
    )
    with ir.InsertionPoint(block):
        tensor.YieldOp(_padding_byte(op, codes))
    return made.results[0]


def _inserted(op: ir.Operation, type_: ir.Type, source: ir.Value, codes: StaticCodes) -> ir.Value:
    empty = tensor.EmptyOp(mixed_sizes(op.operands[1]), i8()).result
    around = linalg.fill(_padding_byte(op, codes), outs=[empty])
    return _like(op, type_, [source, around, *list(op.operands)[2:]])


def _transposition(op: ir.Operation) -> ir.AffineMap:
    order = list(ir.DenseI64ArrayAttr(op.attributes["permutation"]))
    results = [ir.AffineDimExpr.get(order.index(axis)) for axis in range(len(order))]
    return ir.AffineMap.get(len(order), 0, results)


def _read(value: ir.Value, source: ir.Value, map_: ir.AffineMap) -> ir.Value:
    empty = tensor.EmptyOp(mixed_sizes(value), i8()).result
    return parallel_loop([source], [map_], empty, lambda elements: elements[0])


def _largest(op: ir.Operation, source: ir.Value, codes: StaticCodes) -> ir.Value:
    sizes = mixed_sizes(op.operands[len(op.operands) - 1])
    lowest = linalg.fill(byte_constant(codes.low), outs=[tensor.EmptyOp(sizes, i8()).result])
    larger = arith.MaxSIOp if codes.signed else arith.MaxUIOp
    return reduction(op, [source], maps(op), lowest, lambda e: larger(e[0], e[-1]).result)
