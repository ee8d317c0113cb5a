"""Normalizations of rows that a model spells out as several loops.

    s = sum of x                                        layer norms only
    c = x - s / n                                       RMS norms: c = x
    q = sum of c * c
    y = c * (1 / sqrt(q / n + epsilon)) * weight + bias

over the last axis, of n columns; weight and bias may be missing. What is computed once for each row
may be a loop of its own or part of the loop that reads it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..infrastructure import defining_op, users
from ..loops.generics import (
    OUT,
    Tree,
    dims,
    expression,
    inputs,
    is_elementwise,
    is_identity,
    maps,
    rank,
    same_but_unit_axes,
    without_unit_axes,
)
from .softmax import match_reduction, operand_in_order, row_operand

_SQUARES = ("arith.addf", ("arith.mulf", ("in", 0), ("in", 0)), OUT)
_SQUARE = ("arith.mulf", ("in", 0), ("in", 0))
_SUM = ("arith.addf", ("in", 0), OUT)


@dataclass(frozen=True)
class Norm:
    """What a normalization reads. `kind` is `layer` or `rms`, as in `abq.norm`."""

    kind: str
    x: ir.Value
    epsilon: float
    weight: ir.Value | None
    bias: ir.Value | None


@dataclass(frozen=True)
class _Composed:
    """A loop's tree in which loops over single elements of rows have been put in place of what they
    make; `("in", i)` is `leaves[i]`."""

    tree: Tree
    leaves: list[ir.Value]


def match_norm(op: ir.Operation) -> Norm | None:
    """The normalization that ends in the elementwise loop `op`."""
    type_ = ir.RankedTensorType(op.results[0].type)
    columns = type_.shape[-1] if type_.rank else abq.DYNAMIC
    if not isinstance(type_.element_type, ir.F32Type) or columns <= 1:
        return None
    tree, bias = peel(op, expression(op), "arith.addf")
    tree, weight = peel(op, tree, "arith.mulf")
    composed = _compose(op, tree)
    scaled = _normalized(composed.tree, columns)
    if scaled is None:
        return None
    centered, squares = composed.leaves[scaled[0]], composed.leaves[scaled[1]]
    if centered.type != op.results[0].type or not _is_sum_of_squares(squares, centered):
        return None
    x = _uncentered(centered, columns)
    kind = "rms" if x is None else "layer"
    return Norm(kind, centered if x is None else x, scaled[2], weight, bias)


def only_feeds(reader: ir.Operation, ends: Collection[ir.Operation]) -> bool:
    """Whether all that comes of `reader` ends in the operations `ends` of its block."""
    if reader in ends:
        return True
    if reader.name != "linalg.generic" and not reader.name.endswith("_shape"):
        return False
    found = [user.operation for result in reader.results for user in users(result)]
    found = [user for user in found if user.name != "tensor.dim"]
    return bool(found) and all(
        any(
            user == end or (user.block == end.block and user.is_before_in_block(end))
            for end in ends
        )
        and only_feeds(user, ends)
        for user in found
    )


def peel(op: ir.Operation, tree: Tree, name: str) -> tuple[Tree, ir.Value | None]:
    """`rest + vector` (or times) as the rest and the operand that is read by columns."""
    if tree[0] != name:
        return tree, None
    for vector, rest in ((tree[1], tree[2]), (tree[2], tree[1])):
        if vector[0] == "in":
            value = inputs(op)[vector[1]]
            if dims(maps(op)[vector[1]]) == [rank(op) - 1] and len(abq.shape(value)) == 1:
                return rest, value
    return tree, None


def _compose(op: ir.Operation, tree: Tree) -> _Composed:
    leaves: list[ir.Value] = []

    def leaf(value: ir.Value) -> Tree:
        if value not in leaves:
            leaves.append(value)
        return ("in", leaves.index(value))

    def of_row(value: ir.Value) -> Tree:
        """The tree of a value that has one element for each row."""
        made = defining_op(without_unit_axes(value))
        if made is None or not is_elementwise(made):
            return leaf(value)
        if not all(is_identity(map_) for map_ in maps(made)):
            return leaf(value)
        return put(expression(made), [of_row(operand) for operand in inputs(made)])

    def of_operand(number: int) -> Tree | None:
        row = row_operand(op, number)
        if row is not None:
            return of_row(row)
        full = operand_in_order(op, number)
        return leaf(full) if full is not None else None

    def put(tree: Tree, operands: list[Tree | None]) -> Tree:
        if tree[0] == "in":
            return operands[tree[1]] or ("other", tree[1])
        if tree[0] in ("const", "outside", "large"):
            return tree
        return tuple(put(t, operands) if isinstance(t, tuple) else t for t in tree)

    return _Composed(put(tree, [of_operand(i) for i in range(len(inputs(op)))]), leaves)


def _normalized(tree: Tree, columns: int) -> tuple[int, int, float] | None:
    """`c / sqrt(q / n + epsilon)` as the numbers of c and q, and epsilon."""
    if tree[0] == "arith.divf":
        centered, variance = tree[1], _root(tree[2])
    elif tree[0] == "arith.mulf":
        centered, variance = tree[1], _inverse_root(tree[2])
        if variance is None:
            centered, variance = tree[2], _inverse_root(tree[1])
    else:
        return None
    if variance is None or centered[0] != "in" or variance[0] != "arith.addf":
        return None
    mean, epsilon = variance[1:]
    if epsilon[0] != "const":
        mean, epsilon = epsilon, mean
    number = _mean(mean, columns)
    if number is None or epsilon[0] != "const":
        return None
    return centered[1], number, epsilon[1]


def _root(tree: Tree) -> Tree | None:
    return tree[1] if tree[0] == "math.sqrt" else None


def _inverse_root(tree: Tree) -> Tree | None:
    if tree[0] == "math.rsqrt":
        return tree[1]
    if tree[0] == "arith.divf" and tree[1] == ("const", 1.0):
        return _root(tree[2])
    return None


def _mean(tree: Tree, columns: int) -> int | None:
    """The number of the operand whose quotient by the number of columns `tree` is."""
    if tree[0] == "arith.divf" and tree[1][0] == "in" and tree[2] == ("const", float(columns)):
        return tree[1][1]
    return None


def _is_sum_of_squares(total: ir.Value, centered: ir.Value) -> bool:
    if match_reduction(total, centered, _SQUARES, 0.0) is not None:
        return True
    loop = defining_op(without_unit_axes(total))
    if loop is None or loop.name != "linalg.generic" or len(inputs(loop)) != 1:
        return False
    squares = inputs(loop)[0]
    if match_reduction(total, squares, _SUM, 0.0) is None:
        return False
    square = defining_op(without_unit_axes(squares))
    if square is None or not is_elementwise(square):
        return False
    composed = _compose(square, expression(square))
    return composed.tree == _SQUARE and same_but_unit_axes(composed.leaves[0], centered)


def _uncentered(centered: ir.Value, columns: int) -> ir.Value | None:
    """The x of `x - sum of x / n`; None where `centered` is something else."""
    op = defining_op(centered)
    if op is None or not is_elementwise(op):
        return None
    composed = _compose(op, expression(op))
    tree = composed.tree
    if tree[0] != "arith.subf" or tree[1][0] != "in":
        return None
    number = _mean(tree[2], columns)
    if number is None:
        return None
    x, total = composed.leaves[tree[1][1]], composed.leaves[number]
    if x.type != centered.type:
        return None
    return x if match_reduction(total, x, _SUM, 0.0) is not None else None
