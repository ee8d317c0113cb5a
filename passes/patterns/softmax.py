"""A softmax over the last axis: `abq.softmax`, or four loops: max, exp(x - max), sum, quotient."""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..infrastructure import defining_op, users
from ..loops.generics import (
    OUT,
    dims,
    expression,
    filled,
    inputs,
    is_elementwise,
    is_identity,
    iterators,
    maps,
    rank,
    same_but_unit_axes,
    without_unit_axes,
)

MINUS_INFINITY = float("-inf")

_QUOTIENT = ("arith.divf", ("in", 0), ("in", 1))
# `select(q != q, 0, q)`, the comparison being une or uno.
_GUARDED = tuple(
    (
        "arith.select",
        ("arith.cmpf", f"predicate={predicate} : i64", _QUOTIENT, _QUOTIENT),
        ("const", 0.0),
        _QUOTIENT,
    )
    for predicate in (13, 14)
)

# The same behind an `abq.softmax`.
_GUARD = tuple(
    (
        "arith.select",
        ("arith.cmpf", f"predicate={predicate} : i64", ("in", 0), ("in", 0)),
        ("const", 0.0),
        ("in", 0),
    )
    for predicate in (13, 14)
)

# A row of minus infinity alone becomes zeros: no number is subtracted, and zeros are divided by 1.
_FINITE_EXP = (
    "math.exp",
    (
        "arith.subf",
        ("in", 0),
        (
            "arith.select",
            ("arith.cmpf", "predicate=1 : i64", ("in", 1), ("const", MINUS_INFINITY)),
            ("const", 0.0),
            ("in", 1),
        ),
    ),
)
_SAFE_QUOTIENT = (
    "arith.divf",
    ("in", 0),
    (
        "arith.select",
        ("arith.cmpf", "predicate=1 : i64", ("in", 1), ("const", 0.0)),
        ("const", 1.0),
        ("in", 1),
    ),
)
_EXP = ("math.exp", ("arith.subf", ("in", 0), ("in", 1)))


@dataclass(frozen=True)
class Softmax:
    """What a softmax reads and the operations that are of use to nothing else."""

    x: ir.Value
    guarded: bool  # what would be NaN is 0
    loops: tuple[ir.Operation, ...]  # max, exp, sum, quotient; or one abq.softmax


def match_softmax(result: ir.Value) -> Softmax | None:
    """The softmax over the last axis that makes `result`; None if none does."""
    quotient = defining_op(result)
    if quotient is not None and quotient.name == "abq.softmax":
        return Softmax(quotient.operands[0], False, (quotient,))
    if not is_elementwise(quotient):
        return None
    form = expression(quotient)
    if form in _GUARD and is_identity(maps(quotient)[0]):
        inner = defining_op(inputs(quotient)[0])
        if inner is not None and inner.name == "abq.softmax":
            return Softmax(inner.operands[0], True, (inner, quotient))
    if form not in (_QUOTIENT, _SAFE_QUOTIENT, *_GUARDED):
        return None
    powers = operand_in_order(quotient, 0)
    total = row_operand(quotient, 1)
    exp = defining_op(powers) if powers is not None else None
    if total is None or not is_elementwise(exp):
        return None
    if expression(exp) != (_FINITE_EXP if form == _SAFE_QUOTIENT else _EXP):
        return None
    x, largest = operand_in_order(exp, 0), row_operand(exp, 1)
    if x is None or largest is None:
        return None
    max_loop = match_reduction(largest, x, ("arith.maximumf", ("in", 0), OUT), MINUS_INFINITY)
    sum_loop = match_reduction(total, powers, ("arith.addf", ("in", 0), OUT), 0.0)
    if max_loop is None or sum_loop is None or not _only_used_by(powers, quotient, sum_loop):
        return None
    return Softmax(x, form != _QUOTIENT, (max_loop, exp, sum_loop, quotient))


def operand_in_order(op: ir.Operation, number: int) -> ir.Value | None:
    """Input `number` of a linalg.generic, if it is read as the loops run."""
    return inputs(op)[number] if is_identity(maps(op)[number]) else None


def row_operand(op: ir.Operation, number: int) -> ir.Value | None:
    """Input `number`, if it has one element for each row of the last axis."""
    read = dims(maps(op)[number])
    if read is None:
        return None
    shape = abq.shape(op.results[0])
    rows = [d for d in range(rank(op) - 1) if shape[d] != 1]
    if [d for d in read if d in rows] != rows or rank(op) - 1 in read:
        return None
    return inputs(op)[number]


def match_reduction(
    value: ir.Value, source: ir.Value, body: tuple[object, ...], initial: float
) -> ir.Operation | None:
    """The loop that reduces the last axis of `source` (its only input) by `body` into `value`."""
    op = defining_op(without_unit_axes(value))
    if op is None or op.name != "linalg.generic" or len(op.results) != 1 or len(inputs(op)) != 1:
        return None
    if iterators(op) != ["parallel"] * (rank(op) - 1) + ["reduction"]:
        return None
    if not same_but_unit_axes(inputs(op)[0], source) or not is_identity(maps(op)[0]):
        return None
    if expression(op) != body or dims(maps(op)[-1]) != list(range(rank(op) - 1)):
        return None
    return op if filled(op.operands[len(op.operands) - 1]) == initial else None


def _only_used_by(value: ir.Value, *ops: ir.Operation) -> bool:
    """Users may read through reshapes."""
    for user in users(value):
        op = user.operation
        if op.name in ("tensor.expand_shape", "tensor.collapse_shape"):
            if not _only_used_by(op.results[0], *ops):
                return False
        elif op not in ops and op.name != "tensor.dim":
            return False
    return True
