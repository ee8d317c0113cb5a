"""How operations treat channels: the axes of all their operands and results that have them.

A rule takes an operation, the number of an operand, or of a result from -1 down, and the axis of
the channels there. `LINEAR` are rules for linear maps of the channels, `PERMUTABLE` for another
order.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..loops.generics import (
    Tree,
    expression,
    groups,
    inputs,
    is_elementwise,
    iterators,
    loops_read,
    maps,
)

Axes = dict[int, int]


class Unlike(Exception):
    """An operation does not treat all channels alike; the text is the end of "... it <text>"."""


# What shows rows as they are.
VIEWS = frozenset(
    {
        "tensor.collapse_shape",
        "tensor.expand_shape",
        "tensor.cast",
        "tensor.extract_slice",
        "linalg.transpose",
    }
)


def _expand(op: ir.Operation, place: int, axis: int) -> Axes:
    return _reshape(op, 0, -1, place, axis)


def _collapse(op: ir.Operation, place: int, axis: int) -> Axes:
    return _reshape(op, -1, 0, place, axis)


def _reshape(op: ir.Operation, narrow: int, wide: int, place: int, axis: int) -> Axes:
    """Axes of `wide` are grouped into those of `narrow`; channels run innermost."""
    sizes = abq.shape(op.results[0] if wide < 0 else op.operands[0])
    if place == narrow:
        group = groups(op)[axis]
        inner = [i for i in group if sizes[i] != 1] or [group[-1]]
        return {narrow: axis, wide: inner[-1]}
    number, group = next((n, g) for n, g in enumerate(groups(op)) if axis in g)
    if any(sizes[i] != 1 for i in group if i > axis):
        raise Unlike("makes one axis of the channels and what is inside of them")
    return {narrow: number, wide: axis}


def _cast(op: ir.Operation, place: int, axis: int) -> Axes:
    return {0: axis, -1: axis}


def _transpose(op: ir.Operation, place: int, axis: int) -> Axes:
    order = list(ir.DenseI64ArrayAttr(op.attributes["permutation"]))
    source = order[axis] if place < 0 else axis
    return {0: source, -1: order.index(source)}


def _slice(op: ir.Operation, place: int, axis: int) -> Axes:
    source, result = abq.shape(op.operands[0]), abq.shape(op.results[0])
    if place > 0:
        raise Unlike("takes its offsets from the channels")
    dropped = len(source) - len(result)
    axes = {0: axis, -1: axis}
    if dropped and axis != (len(source) if place == 0 else len(result)) - 1:
        raise Unlike("drops axes")
    if dropped:
        axes = {0: len(source) - 1, -1: len(result) - 1}
    offset = list(ir.DenseI64ArrayAttr(op.attributes["static_offsets"]))[axes[0]]
    stride = list(ir.DenseI64ArrayAttr(op.attributes["static_strides"]))[axes[0]]
    if offset != 0 or stride != 1 or source[axes[0]] != result[axes[-1]]:
        raise Unlike("takes some of the channels")
    return axes


def _concat(op: ir.Operation, place: int, axis: int) -> Axes:
    if ir.IntegerAttr(op.attributes["dim"]).value == axis:
        raise Unlike("puts channels side by side")
    return {-1: axis, **dict.fromkeys(range(len(op.operands)), axis)}


def _norm(op: ir.Operation, place: int, axis: int) -> Axes:
    """The sum that a norm is of; what it normalizes is the business of `Channels.norms`."""
    sizes = list(ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"]))
    if place > sizes[1]:
        raise Unlike("reads them as gains")
    return dict.fromkeys(range(1 + sizes[1]), axis) | {-2: axis}


def _generic(op: ir.Operation, place: int, axis: int) -> Axes:
    """A loop that is linear in its operands with channels, and the same for all channels."""
    loop, axes = _channel_loop(op, place, axis)
    if -1 not in axes:
        raise Unlike("sums over the channels")
    tree = expression(op)
    if _degree(tree, axes, loop) != _LINEAR_DEGREE:
        raise Unlike("does not compute with rows as a whole")
    if _reads_out(tree):
        axes[len(inputs(op))] = axes[-1]
    return axes


def _permutable_generic(op: ir.Operation, place: int, axis: int) -> Axes:
    """A loop that does the same to every channel, or sums or compares them in any order."""
    loop, axes = _channel_loop(op, place, axis)
    tree = expression(op)
    if not _ignores_place(tree, loop):
        raise Unlike("tells channels apart")
    if iterators(op)[loop] == "reduction" and not _is_commutative(tree):
        raise Unlike("reads the channels in order")
    if -1 in axes and _reads_out(tree):
        axes[len(inputs(op))] = axes[-1]
    return axes


def _channel_loop(op: ir.Operation, place: int, axis: int) -> tuple[int, Axes]:
    """The loop over the channels, and the operands (and result) that it reads (and writes) in
    order, with their axes."""
    if len(op.results) != 1:
        raise Unlike("has several results")
    if place >= len(inputs(op)):
        place = -1
    all_maps = maps(op)
    of_axis = all_maps[place].results[axis]
    if not isinstance(of_axis, ir.AffineDimExpr):
        raise Unlike("reads the channels out of order")
    loop = ir.AffineDimExpr(of_axis).position
    axes: Axes = {}
    for number, map_ in enumerate(all_maps):
        read = [i for i, result in enumerate(map_.results) if loop in loops_read([result])]
        plain = [i for i in read if isinstance(map_.results[i], ir.AffineDimExpr)]
        if len(read) > 1 or read != plain:
            raise Unlike("reads the channels out of order")
        if read:
            axes[number if number < len(inputs(op)) else -1] = read[0]
    return loop, axes


def _ignores_place(tree: Tree, loop: int) -> bool:
    """Whether a body does not depend on where it is along a loop."""
    if tree[0] == "large" or (tree[0] == "linalg.index" and f"dim={loop} : i64" in tree):
        return False
    return all(_ignores_place(part, loop) for part in tree[1:] if isinstance(part, tuple))


def _is_commutative(tree: Tree) -> bool:
    """Whether a reduction gives the same (sums but for rounding) in any order."""
    names = ("arith.addf", "arith.mulf", "arith.maximumf", "arith.minimumf")
    return tree[0] in names and ("out",) in tree[1:] and sum(map(_reads_out, tree[1:])) == 1


def _permutable_norm(op: ir.Operation, place: int, axis: int) -> Axes:
    """A norm, whose gains are in the order of what it normalizes."""
    present = list(ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"]))
    rows = len(abq.shape(op.results[0])) - 1
    if axis != (rows if place <= present[1] else 0):
        raise Unlike("normalizes another axis")
    inner = dict.fromkeys(range(1 + present[1], len(op.operands)), 0)
    return {-1: rows, -2: rows, **dict.fromkeys(range(1 + present[1]), rows), **inner}


_ZERO, _SCALAR_DEGREE, _LINEAR_DEGREE = "zero", "scalar", "linear"


def _degree(tree: Tree, axes: Axes, loop: int) -> str | None:
    """Whether a body is linear in the operands of `axes`, free of them, zero, or none of these."""
    name = tree[0]
    if name == "const":
        return _ZERO if tree[1] == 0.0 else _SCALAR_DEGREE
    if name == "in":
        return _LINEAR_DEGREE if tree[1] in axes else _SCALAR_DEGREE
    if name == "out":
        return _LINEAR_DEGREE
    if name == "outside":
        return _SCALAR_DEGREE
    if name == "large" or (name == "linalg.index" and f"dim={loop} : i64" in tree):
        return None
    parts = [_degree(part, axes, loop) for part in tree[1:] if isinstance(part, tuple)]
    if None in parts:
        return None
    linear = [part == _LINEAR_DEGREE for part in parts]
    if not any(linear):
        return _SCALAR_DEGREE
    if name in ("arith.addf", "arith.subf"):
        return None if _SCALAR_DEGREE in parts else _LINEAR_DEGREE
    if name == "arith.select":
        return None if linear[0] or _SCALAR_DEGREE in parts[1:] else _LINEAR_DEGREE
    once = {"arith.mulf": sum(linear) == 1, "arith.divf": linear == [True, False]}
    return _LINEAR_DEGREE if once.get(name, name in ("arith.negf", "arith.extf")) else None


def _reads_out(tree: Tree) -> bool:
    return tree[0] == "out" or any(_reads_out(part) for part in tree[1:] if isinstance(part, tuple))


def is_copy(op: ir.Operation) -> bool:
    return is_elementwise(op) and expression(op) == ("in", 0)


LINEAR = {
    "tensor.expand_shape": _expand,
    "tensor.collapse_shape": _collapse,
    "tensor.cast": _cast,
    "tensor.extract_slice": _slice,
    "tensor.concat": _concat,
    "linalg.transpose": _transpose,
    "linalg.generic": _generic,
    "abq.norm": _norm,
}
PERMUTABLE = {**LINEAR, "linalg.generic": _permutable_generic, "abq.norm": _permutable_norm}
