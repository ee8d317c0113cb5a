"""What a linalg.generic computes, as values that passes compare.

`expression(op)` is the body as a tree of tuples, `("arith.addf", ("in", 0), ("out",))`: inputs by
number, constants by value, operations by name (with their attributes where they matter), operands
of commutative ones in one order. Patterns are written as such trees.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg

from ..infrastructure import defining_op

Tree = tuple[Any, ...]

_COMMUTATIVE = frozenset(
    {"arith.addf", "arith.mulf", "arith.maximumf", "arith.minimumf", "arith.addi", "arith.muli"}
)
# Attributes that never change what a float operation means here.
_IGNORED = frozenset({"fastmath", "overflowFlags", "operandSegmentSizes"})

OUT: Tree = ("out",)
MAX_TREE = 400


def maps(op: ir.Operation) -> list[ir.AffineMap]:
    """The indexing maps of a linalg.generic."""
    return [ir.AffineMapAttr(a).value for a in ir.ArrayAttr(op.attributes["indexing_maps"])]


iterators = linalg.iterators


def inputs(op: ir.Operation) -> list[ir.Value]:
    return list(op.operands)[: len(op.operands) - len(op.results)]


def rank(op: ir.Operation) -> int:
    """The number of loops of a linalg.generic."""
    return maps(op)[0].n_dims


def is_elementwise(op: ir.Operation | None) -> bool:
    """A linalg.generic with one result, all loops parallel, that writes it in order."""
    if op is None or op.name != "linalg.generic" or len(op.results) != 1:
        return False
    return "reduction" not in iterators(op) and is_identity(maps(op)[-1])


def ignores_init(op: ir.Operation) -> bool:
    """Whether a linalg.generic with one result does not read what it writes over."""
    arguments = op.regions[0].blocks[0].arguments
    return not list(arguments[len(arguments) - 1].uses)


def asks_for_indices(op: ir.Operation) -> bool:
    """Whether what a linalg.generic computes depends on where its elements are."""
    return any(inner.operation.name == "linalg.index" for inner in op.regions[0].blocks[0])


def is_identity(map_: ir.AffineMap) -> bool:
    return map_ == ir.AffineMap.get_identity(map_.n_dims)


def dims(map_: ir.AffineMap) -> list[int] | None:
    """The loops that a map reads, in the order of its results, without constants; None where a
    result is neither a loop nor 0."""
    found = []
    for result in map_.results:
        if isinstance(result, ir.AffineDimExpr):
            found.append(ir.AffineDimExpr(result).position)
        elif not (
            isinstance(result, ir.AffineConstantExpr) and ir.AffineConstantExpr(result).value == 0
        ):
            return None
    return found


def loops_read(expressions: Iterable[ir.AffineExpr]) -> set[int]:
    """The loops that affine expressions depend on."""
    found: set[int] = set()
    pending = list(expressions)
    while pending:
        expression_ = pending.pop()
        if isinstance(expression_, ir.AffineDimExpr):
            found.add(expression_.position)
        elif isinstance(expression_, ir.AffineBinaryExpr):
            pending += [expression_.lhs, expression_.rhs]
    return found


def yielded(op: ir.Operation) -> ir.Value:
    """The value that the body of a linalg.generic with one result yields."""
    block = op.regions[0].blocks[0]
    return block.operations[len(block.operations) - 1].operation.operands[0]


def expression(op: ir.Operation) -> Tree:
    """The tree of a linalg.generic with one result. See the file's head."""
    block = op.regions[0].blocks[0]
    return tree(yielded(op), block, len(inputs(op)))


def tree(value: ir.Value, block: ir.Block, n_inputs: int) -> Tree:
    """The tree of a value in the body `block`.

    A value that is used twice is there twice, so that trees can be exponentially large: what has
    more than MAX_TREE operations, which is more than any pattern has, is `("large", value)`.
    """
    return _Trees(block, n_inputs).of(value)[0]


class _Trees:
    """The trees of a body's values, each with the number of its operations."""

    def __init__(self, block: ir.Block, n_inputs: int) -> None:
        self.block = block
        self.n_inputs = n_inputs
        self.known: dict[ir.Value, tuple[Tree, int]] = {}

    def of(self, value: ir.Value) -> tuple[Tree, int]:
        if value not in self.known:
            found = self._leaf(value) or self._operation(value)
            self.known[value] = found if found[1] <= MAX_TREE else (("large", value), 1)
        return self.known[value]

    def _leaf(self, value: ir.Value) -> tuple[Tree, int] | None:
        if isinstance(value.owner, ir.Block):
            if value.owner != self.block:
                return ("outside", value), 1
            number = ir.BlockArgument(value).arg_number
            return (("in", number) if number < self.n_inputs else OUT), 1
        constant = float_constant(value)
        if constant is not None:
            return ("const", constant), 1
        op = defining_op(value)
        return (("outside", value), 1) if op is None or op.block != self.block else None

    def _operation(self, value: ir.Value) -> tuple[Tree, int]:
        op = defining_op(value)
        assert op is not None
        found = [self.of(operand) for operand in op.operands]
        operands = [tree for tree, _ in found]
        if op.name in _COMMUTATIVE:
            operands.sort(key=repr)
        extra = [f"{name}={op.attributes[name]}" for name in op.attributes if name not in _IGNORED]
        return (op.name, *extra, *operands), 1 + sum(size for _, size in found)


def is_place(value: ir.Value, axis: int) -> bool:
    """Whether a value in a body is the number of the loop `axis`, as an integer."""
    cast = defining_op(value)
    if cast is None or cast.name != "arith.index_cast":
        return False
    place = defining_op(cast.operands[0])
    if place is None or place.name != "linalg.index":
        return False
    return ir.IntegerAttr(place.attributes["dim"]).value == axis


def float_constant(value: ir.Value) -> float | None:
    """The number behind a scalar float constant or a splat of one; None for other values."""
    op = defining_op(value)
    if op is None or op.name != "arith.constant":
        return None
    attribute = op.attributes["value"]
    if isinstance(attribute, ir.FloatAttr):
        return ir.FloatAttr(attribute).value
    return None


def filled(value: ir.Value) -> float | None:
    """The number that a tensor was filled with; None for other tensors."""
    op = defining_op(value)
    return float_constant(op.operands[0]) if op is not None and op.name == "linalg.fill" else None


def without_unit_axes(value: ir.Value) -> ir.Value:
    """What `value` was before reshapes that only add or remove axes of size 1."""
    op = defining_op(value)
    while op is not None and op.name in ("tensor.expand_shape", "tensor.collapse_shape"):
        wide = op.results[0] if op.name == "tensor.expand_shape" else op.operands[0]
        shape = abq.shape(wide)
        for group in groups(op):
            if sum(shape[i] != 1 for i in group) > 1:
                return value
        value = op.operands[0]
        op = defining_op(value)
    return value


def same_but_unit_axes(a: ir.Value, b: ir.Value) -> bool:
    """Whether two tensors surely are one but for axes of size 1."""
    a, b = without_unit_axes(a), without_unit_axes(b)
    if a == b:
        return True
    first, second = defining_op(a), defining_op(b)
    if first is None or second is None or first.operands[0] != second.operands[0]:
        return False
    return _expansion(first) is not None and _expansion(first) == _expansion(second)


def _expansion(op: ir.Operation) -> list[list[int]] | None:
    """The sizes other than 1 that each axis of an expand_shape is cut into; None where two of them
    are known at run time only, and for other operations."""
    if op.name != "tensor.expand_shape":
        return None
    shape = abq.shape(op.results[0])
    sizes = [[shape[i] for i in group if shape[i] != 1] for group in groups(op)]
    return None if any(group.count(abq.DYNAMIC) > 1 for group in sizes) else sizes


def groups(reshape: ir.Operation) -> list[list[int]]:
    """The reassociation of an expand_shape or collapse_shape."""
    return [
        [ir.IntegerAttr(i).value for i in ir.ArrayAttr(group)]
        for group in ir.ArrayAttr(reshape.attributes["reassociation"])
    ]


def clone_op(op: ir.Operation, known: dict[ir.Value, ir.Value]) -> None:
    """Copy an operation of a body to the insertion point, with `known` in place of its operands;
    its results are known then."""
    clone = op.clone().operation
    for i, operand in enumerate(op.operands):
        clone.operands[i] = known.get(operand, operand)
    known.update(zip(op.results, clone.results, strict=True))
