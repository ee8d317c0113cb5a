"""Parts of one tensor that are put together in another order become one loop.

    concat(-x[.., h:], x[.., :h])       rotary embeddings (Su et al., "RoFormer", 2021)
    concat(x, x)

The axis is read as n blocks of h: block b of the result is a function of a block of x,

    y[.., b, j] = select(b == 0, f0(x[.., c0, j]), f1(x[.., c1, j]))

which fuses with the loop that reads it, where a concat would be a copy for each part. Parts are
equal slices of one tensor, or functions of them element by element.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg, tensor

from .infrastructure import Unit, defining_op, register, users, walk
from .loops.axis_blocks import (
    clone_body,
    in_blocks,
    joined,
    parallel_loop,
    selected,
    with_blocks,
)
from .loops.generics import ignores_init, inputs, is_elementwise, is_identity, maps
from .loops.slices import has_steps, is_whole, offset
from .resolve_dims import mixed_sizes


@dataclass(frozen=True)
class _Part:
    """`source[.., block * h : (block + 1) * h]`, and the loop of what is done to it."""

    source: ir.Value
    block: int
    loop: ir.Operation | None


@register
def fuse_concat(module: ir.Operation, unit: Unit) -> None:
    """Rewrite concatenations of parts of one tensor as elementwise loops."""
    for op in walk(module, "tensor.concat"):
        axis = ir.IntegerAttr(op.attributes["dim"]).value
        size, *others = (abq.shape(part)[axis] for part in op.operands)
        if not others or size < 1 or any(other != size for other in others):
            continue
        parts = [_part(value, axis, size) for value in op.operands]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or any(part.source != found[0].source for part in found):
            continue
        with ir.InsertionPoint(op), op.location:
            op.results[0].replace_all_uses_with(_as_loop(op, axis, size, found))
        op.erase()


def _part(value: ir.Value, axis: int, size: int) -> _Part | None:
    """What a part is of; a tensor that is neither a slice nor made of one is a part of itself."""
    op, loop = defining_op(value), None
    if (
        is_elementwise(op)
        and len(inputs(op)) == 1
        and is_identity(maps(op)[0])
        and ignores_init(op)
    ):
        sliced = defining_op(inputs(op)[0])
        if sliced is not None and sliced.name == "tensor.extract_slice":
            value, op, loop = inputs(op)[0], sliced, op
    if op is None or op.name != "tensor.extract_slice":
        return _Part(value, 0, loop)
    source = op.operands[0]
    begin = _offset(op, axis)
    whole = abq.shape(source)[axis]
    if begin is None or whole == abq.DYNAMIC or whole % size or begin % size:
        return None
    return _Part(source, begin // size, loop)


def _offset(op: ir.Operation, axis: int) -> int | None:
    """Where a slice begins that keeps all axes but one whole; None for other slices."""
    source = op.operands[0]
    rank = len(abq.shape(source))
    if len(abq.shape(op.results[0])) != rank or has_steps(op):
        return None
    if not all(is_whole(op, i, source) for i in range(rank) if i != axis):
        return None
    return offset(op, axis)


def _as_loop(op: ir.Operation, axis: int, size: int, parts: list[_Part]) -> ir.Value:
    """The result, and in blocks too what loops make of it."""
    type_ = ir.RankedTensorType(op.results[0].type)
    source = parts[0].source
    wide = with_blocks(source, axis, size)
    blocks = sorted({part.block for part in parts})
    whole = mixed_sizes(source)
    sizes = [*whole[:axis], len(parts), size, *whole[axis + 1 :]]
    rank = len(sizes)
    every = [ir.AffineDimExpr.get(i) for i in range(rank)]
    reads = [[*every[:axis], ir.AffineConstantExpr.get(b), *every[axis + 1 :]] for b in blocks]

    def body(arguments: list[ir.Value]) -> ir.Value:
        elements = [arguments[blocks.index(part.block)] for part in parts]
        values = [_applied(part.loop, x, axis) for part, x in zip(parts, elements, strict=True)]
        return selected(axis, values)

    empty = tensor.EmptyOp(sizes, type_.element_type).result
    all_maps = [ir.AffineMap.get(rank, 0, r) for r in reads]
    loop = parallel_loop([wide] * len(blocks), all_maps, empty, body)
    for reader in dict.fromkeys(user.operation for user in users(op.results[0])):
        if is_elementwise(reader):
            in_blocks(reader, op.results[0], axis, size)
    return joined(loop, axis, type_)


def _applied(loop: ir.Operation | None, value: ir.Value, axis: int) -> ir.Value:
    """What the body of `loop` makes of an element; along `axis` it counts within the block."""
    if loop is None:
        return value
    return clone_body(loop, [value], lambda d: linalg.IndexOp(d if d < axis else d + 1).result)
