"""Rows that are appended to a cache are written there by a loop.

    append(past, rows)      place = grow(past, sizes of rows); a loop copies rows to place

Where a loop alone has made the rows, it writes them into the cache itself, through views that turn
those of the rows round. On a GPU, where a copy is a launch like others, and merges with them
(`merge-loops`). The place of the rows lies in no other tensor: what is read of the cache before
them stays as it is.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, func, ir, memref

from .infrastructure import Unit, defining_op, is_used, register, walk
from .kernels.launch import APPEND, GROW, UPDATE, declare
from .kernels.outlining import copy_to_generic
from .loops.effects import can_move, read_and_written
from .ownership import VIEWS, root, uses
from .resolve_dims import index

_DYNAMIC_STRIDE = ir.ShapedType.get_dynamic_stride_or_offset()


@register
def write_appends(module: ir.Operation, unit: Unit) -> None:
    """Have appended rows written by loops."""
    for call in walk(module, "func.call"):
        callee = ir.FlatSymbolRefAttr(call.attributes["callee"]).value
        if callee.startswith(APPEND) and not callee.startswith((UPDATE, GROW)):
            _write(module, call, callee)


def _write(module: ir.Operation, call: ir.Operation, callee: str) -> None:
    *numbers, x = call.operands
    rows = _without_casts(x)
    axis = _constant(numbers[2])
    result = call.results[0].type
    name = GROW + callee.removeprefix(APPEND)
    with ir.InsertionPoint(call), call.location:
        sizes = [memref.DimOp(rows, index(i)).result for i in range(len(_shape(rows)))]
        types = [*(number.type for number in numbers), *(size.type for size in sizes)]
        declare(module, name, types, [result])
        grown = func.CallOp([result], ir.FlatSymbolRefAttr.get(name), [*numbers, *sizes])
        whole = grown.results[0]
        before = arith.SubIOp(memref.DimOp(whole, index(axis)).result, sizes[axis]).result
        place = _end(whole, _shape(rows), sizes, axis, before)
        copy = memref.CopyOp(rows, place).operation
    call.results[0].replace_all_uses_with(whole)
    call.erase()
    if not isinstance(x.owner, ir.Block) and not is_used(x):
        _erase_unused(x)
    loop = _maker(rows, copy)
    target = _turned_round(rows, place, copy) if loop is not None else None
    if loop is None or target is None:
        copy_to_generic(copy)
        return
    loop.operands[len(loop.operands) - 1] = target
    loop.move_before(copy)
    copy.erase()
    _erase_unused(rows)


def _without_casts(value: ir.Value) -> ir.Value:
    op = defining_op(value)
    while op is not None and op.name == "memref.cast":
        value = op.operands[0]
        op = defining_op(value)
    return value


def _constant(value: ir.Value) -> int:
    op = defining_op(value)
    assert op is not None and op.name == "arith.constant", "the axis is a constant"
    return ir.IntegerAttr(op.attributes["value"]).value


def _shape(value: ir.Value) -> list[int]:
    return list(ir.MemRefType(value.type).shape)


def _end(
    whole: ir.Value, shape: list[int], sizes: list[ir.Value], axis: int, before: ir.Value
) -> ir.Value:
    """The part of a cache, of these sizes, that begins with row `before`."""
    type_ = ir.MemRefType(whole.type)
    strides = [_DYNAMIC_STRIDE] * (len(shape) - 1) + [1]
    part = ir.MemRefType.get(
        shape, type_.element_type, ir.StridedLayoutAttr.get(_DYNAMIC_STRIDE, strides)
    )
    dynamic = [size for size, known in zip(sizes, shape, strict=True) if known == abq.DYNAMIC]
    offsets = [0] * len(shape)
    offsets[axis] = _DYNAMIC_STRIDE
    return memref.SubViewOp(
        part, whole, [before], dynamic, [], offsets, shape, [1] * len(shape)
    ).result


def _maker(rows: ir.Value, copy: ir.Operation) -> ir.Operation | None:
    """The loop that has made `rows`, for the `copy` alone, and can stand where that does."""
    owner = root(rows)
    made = defining_op(owner)
    if made is None or made.name != "memref.alloc" or made.block != copy.block:
        return None
    users = [(op, number) for op, number in uses(owner) if op.name != "memref.dim"]
    loops = [op for op, _ in users if op.name == "linalg.generic"]
    if len(loops) != 1 or len(users) != 2 or (copy, 0) not in users:
        return None
    (loop,) = loops
    kinds = [str(kind) for kind in ir.ArrayAttr(loop.attributes["iterator_types"])]
    alone = len(read_and_written(loop)[1]) == 1 and not any("reduction" in k for k in kinds)
    if not alone or (loop, len(loop.operands) - 1) not in users or loop.block != copy.block:
        return None
    if list(loop.regions[0].blocks[0].arguments[len(loop.operands) - 1].uses):
        return None
    return loop if can_move(loop, copy) else None


def _turned_round(rows: ir.Value, place: ir.Value, copy: ir.Operation) -> ir.Value | None:
    """The view of `place` that is to it what the buffer of `rows` is to them; None where there is
    none."""
    owner, chain = root(rows), []
    value = rows
    while value != owner:
        op = defining_op(value)
        assert op is not None and op.name in VIEWS
        chain.append(op)
        value = op.operands[0]
    if any(op.name not in ("memref.cast", *_INVERSES) for op in chain):
        return None
    with ir.InsertionPoint(copy), copy.location:
        for op in chain:
            if op.name in _INVERSES:
                place = _INVERSES[op.name](op, place)
    return place


def _expanded(collapse: ir.Operation, place: ir.Value) -> ir.Value:
    """What `collapse` has collapsed."""
    source = collapse.operands[0]
    shape = _shape(source)
    groups = [
        [ir.IntegerAttr(i).value for i in ir.ArrayAttr(group)]
        for group in ir.ArrayAttr(collapse.attributes["reassociation"])
    ]
    strides = [_DYNAMIC_STRIDE] * len(shape)
    old, _ = ir.MemRefType(place.type).get_strides_and_offset()
    for group, stride in zip(groups, old, strict=True):
        for axis in reversed(group):
            strides[axis] = stride
            unknown = _DYNAMIC_STRIDE in (stride,) or shape[axis] == abq.DYNAMIC
            stride = _DYNAMIC_STRIDE if unknown else stride * shape[axis]
    type_ = ir.MemRefType.get(
        shape,
        ir.MemRefType(place.type).element_type,
        ir.StridedLayoutAttr.get(_DYNAMIC_STRIDE, strides),
    )
    dynamic = [
        memref.DimOp(source, index(axis)).result
        for axis, size in enumerate(shape)
        if size == abq.DYNAMIC
    ]
    return memref.ExpandShapeOp(type_, place, groups, dynamic, shape).result


def _transposed(transpose: ir.Operation, place: ir.Value) -> ir.Value:
    """With the axes as they were before `transpose`."""
    map_ = ir.AffineMapAttr(transpose.attributes["permutation"]).value
    order = [ir.AffineDimExpr(expr).position for expr in map_.results]
    back = [order.index(axis) for axis in range(len(order))]
    type_ = ir.MemRefType(place.type)
    strides, offset = type_.get_strides_and_offset()
    turned = ir.MemRefType.get(
        [type_.shape[i] for i in back],
        type_.element_type,
        ir.StridedLayoutAttr.get(offset, [strides[i] for i in back]),
    )
    inverse = ir.AffineMap.get(len(back), 0, [ir.AffineDimExpr.get(i) for i in back])
    return memref.TransposeOp(turned, place, ir.AffineMapAttr.get(inverse)).result


_INVERSES = {"memref.collapse_shape": _expanded, "memref.transpose": _transposed}


def _erase_unused(value: ir.Value) -> None:
    """Views that nothing uses."""
    op = defining_op(value)
    while op is not None and op.name in VIEWS and not is_used(op.results[0]):
        source = op.operands[0]
        op.erase()
        op = defining_op(source)
