"""What a float value is to integer arithmetic: which computation of codes gives its codes.

Both ends use this: `insert-fake-quantize`, to know which values need codes, and `integer-only`, to
compute these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..infrastructure import defining_op, users
from ..loops.constant_values import is_constant
from ..loops.generics import (
    MAX_TREE,
    OUT,
    Tree,
    expression,
    filled,
    inputs,
    is_elementwise,
    is_identity,
    iterators,
    maps,
    without_unit_axes,
)
from .scalar_functions import function_of

_BINARY = ("arith.addf", "arith.subf", "arith.mulf")
PRODUCTS = ("abq.matmul", "abq.conv")

Bounds = tuple[float, float]


@dataclass(frozen=True)
class ProductForm:
    """A matmul or convolution, clipped to `bounds`."""

    op: ir.Operation
    bounds: Bounds


@dataclass(frozen=True)
class BinaryForm:
    """`kind` (arith.addf, subf, mulf) of two tensors, read by maps, clipped to `bounds`."""

    op: ir.Operation
    kind: str
    operands: tuple[ir.Value, ir.Value]
    reads: tuple[ir.AffineMap, ir.AffineMap]
    bounds: Bounds


@dataclass(frozen=True)
class SumForm:
    """`factor` times the sums that the linalg.generic `loop` makes of its first input, `count`
    terms each, reshaped to `total`. Of a mean over a number of terms that a run alone knows,
    `count` is that number, an integer value, and the sums are divided by it."""

    loop: ir.Operation
    total: ir.Value
    factor: float
    count: int | ir.Value

    @property
    def source(self) -> ir.Value:
        return self.loop.operands[0]


@dataclass(frozen=True)
class FunctionForm:
    """A function of one tensor's elements, as a tree of input 0."""

    source: ir.Value
    tree: Tree


Form = ProductForm | BinaryForm | SumForm | FunctionForm


def form_of(value: ir.Value) -> Form | None:
    """How the codes of `value` follow from codes of others; None where no rule knows."""
    inner, bounds = _without_clips(value)
    op = defining_op(inner)
    if op is not None and op.name in PRODUCTS:
        return ProductForm(op, bounds)
    scaled = _scaled_sum(value)
    if scaled is not None:
        return scaled
    # A product of two functions of one tensor is one, a clip of a sum of two tensors is not.
    binary = _binary(value) if _function(inner) is None else None
    return binary or _function(value)


def _is_float_loop(op: ir.Operation | None) -> bool:
    if op is None or not is_elementwise(op):
        return False
    return all(isinstance(abq.element(x), ir.F32Type) for x in [*inputs(op), op.results[0]])


def _without_clips(value: ir.Value) -> tuple[ir.Value, Bounds]:
    """What was before Relu, Clip and the like, of which nothing else reads the input."""
    bounds: Bounds = (-np.inf, np.inf)
    while True:
        op = defining_op(value)
        if op is None or not _is_float_loop(op) or len(inputs(op)) != 1:
            return value, bounds
        core, inner = _peeled(expression(op), bounds)
        if core != ("in", 0) or not is_identity(maps(op)[0]):
            return value, bounds
        source = inputs(op)[0]
        readers = [user for user in users(source) if user.name != "tensor.dim"]
        if len(readers) != 1:
            return value, bounds
        value, bounds = source, inner


def _peeled(tree: Tree, outer: Bounds) -> tuple[Tree, Bounds]:
    """The tree inside of clips, and the bounds of these and of `outer`, which comes after them."""
    low, high = outer
    while tree[0] in ("arith.maximumf", "arith.minimumf") and len(tree) == 3:
        numbers = [part[1] for part in tree[1:] if part[0] == "const"]
        others = [part for part in tree[1:] if part[0] != "const"]
        if len(numbers) != 1:
            break
        bound = min(max(numbers[0], low), high)
        low, high = (bound, high) if tree[0] == "arith.maximumf" else (low, bound)
        tree = others[0]
    return tree, (low, high)


def _binary(value: ir.Value) -> BinaryForm | None:
    inner, bounds = _without_clips(value)
    op = defining_op(inner)
    if op is None or not _is_float_loop(op) or len(inputs(op)) != 2:
        return None
    tree, bounds = _peeled(expression(op), bounds)
    if tree[0] not in _BINARY or sorted(tree[1:]) != [("in", 0), ("in", 1)]:
        return None
    a, b = (number for _, number in tree[1:])
    operands, reads = inputs(op), maps(op)
    if is_constant(operands[a]) and is_constant(operands[b]):
        return None
    return BinaryForm(op, tree[0], (operands[a], operands[b]), (reads[a], reads[b]), bounds)


def _function(value: ir.Value) -> FunctionForm | None:
    leaf, tree = _leaf(value)
    if leaf == value or function_of(tree) is None or is_constant(leaf):
        return None
    return FunctionForm(leaf, tree)


def _leaf(
    value: ir.Value, known: dict[ir.Value, tuple[ir.Value, Tree]] | None = None
) -> tuple[ir.Value, Tree]:
    """The value that `value` is a function of element by element, and this function; `value`
    itself where it is one of several."""
    known = {} if known is None else known
    if value not in known:
        known[value] = _composed(value, known) or (value, ("in", 0))
    return known[value]


def _composed(
    value: ir.Value, known: dict[ir.Value, tuple[ir.Value, Tree]]
) -> tuple[ir.Value, Tree] | None:
    op = defining_op(value)
    if op is None or not _is_float_loop(op) or not inputs(op):
        return None
    if not all(is_identity(map_) for map_ in maps(op)[:-1]):
        return None
    found = [_leaf(operand, known) for operand in inputs(op)]
    if any(leaf != found[0][0] for leaf, _ in found):
        return None
    tree = _substituted(expression(op), [tree for _, tree in found])
    return None if tree is None or _size(tree) > MAX_TREE else (found[0][0], tree)


def _size(tree: Tree) -> int:
    return 1 + sum(_size(part) for part in tree if isinstance(part, tuple))


def _substituted(tree: Tree, trees: list[Tree]) -> Tree | None:
    """`tree` with trees of input 0 in the place of its inputs; None where it has other leaves."""
    name, *rest = tree
    if name == "in":
        return trees[rest[0]]
    if name == "const":
        return tree
    if name in ("out", "outside", "large"):
        return None
    parts = [_substituted(part, trees) if isinstance(part, tuple) else part for part in rest]
    return None if None in parts else (name, *parts)


def _scaled_sum(value: ir.Value) -> SumForm | None:
    """A mean or a sum: terms added from zero on, then scaled by a constant."""
    leaf, tree = _leaf(value)
    divisor = None
    if leaf == value:
        divisor = _run_time_divisor(value)
        if divisor is not None:
            op = defining_op(value)
            assert op is not None
            leaf, tree = _leaf(inputs(op)[0])
    loop = defining_op(without_unit_axes(leaf))
    if loop is None or not _is_sum(loop):
        return None
    factor, count = _factor(tree), _terms(loop)
    if divisor is not None:
        count = divisor
    return None if factor is None or count is None else SumForm(loop, leaf, factor, count)


def _is_sum(op: ir.Operation) -> bool:
    """A linalg.generic that adds its first input's elements, from zero on."""
    if op.name != "linalg.generic" or len(op.results) != 1 or "reduction" not in iterators(op):
        return False
    if filled(op.operands[len(op.operands) - 1]) != 0.0:
        return False
    body = expression(op)
    return body[0] == "arith.addf" and sorted(body[1:]) == [("in", 0), OUT]


def _run_time_divisor(value: ir.Value) -> ir.Value | None:
    """The integer by which a loop divides its only input's elements, if it does nothing else."""
    op = defining_op(value)
    if op is None or not _is_float_loop(op) or len(inputs(op)) != 1:
        return None
    tree = expression(op)
    if tree[:2] != ("arith.divf", ("in", 0)) or tree[2][0] != "outside":
        return None
    made = defining_op(tree[2][1]) if is_identity(maps(op)[0]) else None
    return made.operands[0] if made is not None and made.name == "arith.sitofp" else None


def _factor(tree: Tree) -> float | None:
    """What a tree multiplies input 0 with; None for other trees."""
    if tree == ("in", 0):
        return 1.0
    name, *parts = tree
    numbers = [part[1] for part in parts if part[0] == "const"]
    inner = [part for part in parts if part[0] != "const"]
    if name not in ("arith.mulf", "arith.divf") or len(numbers) != 1 or len(inner) != 1:
        return None
    if name == "arith.divf" and parts[0][0] == "const":
        return None
    factor = _factor(inner[0])
    if factor is None:
        return None
    return factor * numbers[0] if name == "arith.mulf" else factor / numbers[0]


def _terms(loop: ir.Operation) -> int | None:
    """The terms of a sum; None where a run alone knows."""
    kinds, extents = iterators(loop), [1] * len(iterators(loop))
    for operand, map_ in zip(loop.operands, maps(loop), strict=True):
        for axis, result in enumerate(map_.results):
            if isinstance(result, ir.AffineDimExpr):
                extents[ir.AffineDimExpr(result).position] = abq.shape(operand)[axis]
    counts = [size for size, kind in zip(extents, kinds, strict=True) if kind == "reduction"]
    return None if abq.DYNAMIC in counts else int(np.prod(counts))
