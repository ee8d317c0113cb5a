"""Largest elements of windows of images become `abq.max_pool`, where the target has a kernel.

    x in -inf --linalg.generic: max over a window--> y        abq.max_pool(x)

What is around the image is part of the operation, so that nothing is copied.
"""

from __future__ import annotations

import math

from abqc.dialects import abq
from abqc.dialects.abq_conv import MaxPoolOp
from abqc.dialects.mlir import ir
from abqc.dialects.pool_spec import PoolSpec

from .infrastructure import Unit, defining_op, is_used, register, walk
from .loops.generics import OUT, dims, expression, filled, inputs, iterators, maps
from .resolve_dims import dimension_or_query, index

_LOOPS = ["parallel"] * 4 + ["reduction"] * 2  # batch, channels, rows, columns; of the window
_ROWS, _COLUMNS = (2, 4), (3, 5)


@register
def convert_max_pool(module: ir.Operation, unit: Unit) -> None:
    """Turn loops over windows of images into abq.max_pool."""
    if unit.target is None:
        return
    for op in walk(module, "linalg.generic"):
        number = _image(op)
        spec = None if number is None else _spec(op, number)
        if number is None or spec is None or unit.known_target.max_pool(spec) is None:
            continue
        with ir.InsertionPoint(op), op.location:
            x, before = _without_padding(op.operands[number])
            sizes = [_size(op, axis) for axis in (2, 3)]
            steps = (spec.window, spec.strides, spec.dilations, before)
            pool = MaxPoolOp(
                x, *sizes, *map(ir.DenseI64ArrayAttr.get, steps), op.results[0].type
            ).result
        op.results[0].replace_all_uses_with(pool)
        padded = defining_op(op.operands[number])
        op.erase()
        if padded is not None and x != padded.results[0] and not is_used(padded.results[0]):
            padded.erase()


def _image(op: ir.Operation) -> int | None:
    """Which input a loop finds the largest elements of windows of, above -inf; None where it does
    anything else."""
    if len(op.results) != 1 or iterators(op) != _LOOPS or dims(maps(op)[-1]) != [0, 1, 2, 3]:
        return None
    arguments = list(op.regions[0].blocks[0].arguments)[:-1]
    read = [i for i, argument in enumerate(arguments) if is_used(argument)]
    if len(read) != 1 or not isinstance(abq.element(op.results[0]), ir.F32Type):
        return None
    name, *operands = expression(op)
    largest = name == "arith.maximumf" and sorted(operands) == sorted([("in", read[0]), OUT])
    return read[0] if largest and filled(op.operands[len(inputs(op))]) == -math.inf else None


def _spec(op: ir.Operation, number: int) -> PoolSpec | None:
    image = maps(op)[number].results
    if len(image) != 4 or [_steps(each) for each in image[:2]] != [{0: 1}, {1: 1}]:
        return None
    ky, kx = _extent(op, 4), _extent(op, 5)
    rows, columns = _steps(image[2]), _steps(image[3])
    if ky is None or kx is None or rows is None or columns is None:
        return None
    if set(rows) != set(_ROWS) or set(columns) != set(_COLUMNS):
        return None
    strides, dilations = ((rows[r], columns[c]) for r, c in zip(_ROWS, _COLUMNS, strict=True))
    positive = min(*strides, *dilations) > 0
    return PoolSpec((ky, kx), strides, dilations) if positive else None


def _steps(place: ir.AffineExpr) -> dict[int, int] | None:
    """The loops that an index is a sum of, times their steps; None for other indices."""
    if isinstance(place, ir.AffineDimExpr):
        return {place.position: 1}
    if isinstance(place, ir.AffineMulExpr):
        of, factor = _steps(place.lhs), place.rhs
        if of is None or not isinstance(factor, ir.AffineConstantExpr):
            return None
        return {loop: step * factor.value for loop, step in of.items()}
    if isinstance(place, ir.AffineAddExpr):
        a, b = _steps(place.lhs), _steps(place.rhs)
        return None if a is None or b is None or set(a) & set(b) else a | b
    return None


def _extent(op: ir.Operation, loop: int) -> int | None:
    """How often a loop runs, where an operand says it and it is known."""
    for value, map_ in zip(op.operands, maps(op), strict=True):
        for size, place in zip(abq.shape(value), map_.results, strict=True):
            if _steps(place) == {loop: 1} and size != abq.DYNAMIC:
                return size
    return None


def _without_padding(x: ir.Value) -> tuple[ir.Value, tuple[int, int]]:
    """The image in -inf that `x` is, and how many rows and columns of it are before the image."""
    put = defining_op(x)
    if put is None or put.name != "tensor.insert_slice" or filled(put.operands[1]) != -math.inf:
        return x, (0, 0)
    image = put.operands[0]
    offsets, sizes, strides = (
        list(ir.DenseI64ArrayAttr(put.attributes[f"static_{name}"]))
        for name in ("offsets", "sizes", "strides")
    )
    if len(abq.shape(image)) != 4 or abq.DYNAMIC in offsets or strides != [1] * 4:
        return x, (0, 0)
    known = list(put.operands[2:])  # sizes that are not static, in order
    whole = _sizes(abq.shape(x), _made_of(put.operands[1]))
    same = all(
        type(a) is type(b) and a is not None and a == b
        for a, b in zip(_sizes(sizes, known)[:2], whole, strict=False)
    )
    images = same and offsets[:2] == [0, 0]
    return (image, (offsets[2], offsets[3])) if images else (x, (0, 0))


def _sizes(static: list[int], values: list[ir.Value]) -> list[int | ir.Value | None]:
    """Numbers, or the values of those that are not static, in order; None where there are none."""
    rest = iter(values)
    return [next(rest, None) if size == abq.DYNAMIC else size for size in static]


def _made_of(fill: ir.Value) -> list[ir.Value]:
    """The sizes that the tensor was made with that is filled."""
    owner = defining_op(fill)
    empty = None if owner is None else defining_op(owner.operands[1])
    return list(empty.operands) if empty is not None and empty.name == "tensor.empty" else []


def _size(op: ir.Operation, axis: int) -> ir.Value:
    size = abq.shape(op.results[0])[axis]
    init = op.operands[len(inputs(op))]
    return index(size) if size != abq.DYNAMIC else dimension_or_query(init, axis)
