"""What a loop computes of numbers that are the same in all of an image is a loop of its own.

    y[b, c, h, w] = f(x[b, c, h, w], g(s[b, c]))      t[b, c] = g(s[b, c])
                                                      y[b, c, h, w] = f(x[b, c, h, w], t[b, c])

Loops were fused with what reads them, however often that does; rows of small images are as short as
vectors are, and a gate of a channel would be computed for each.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects.element_types import text_of
from abqc.dialects.mlir import ir, tensor

from .infrastructure import Unit, register, users, walk
from .loops.axis_blocks import parallel_loop
from .loops.generics import (
    asks_for_indices,
    clone_op,
    dims,
    ignores_init,
    inputs,
    is_elementwise,
    maps,
    rank,
)
from .resolve_dims import mixed_sizes

IMAGE = 2  # innermost axes; rows of one axis are merged with what else is done to them
LEAST = 4  # operations that a loop of its own is worth; less is hoisted out of inner loops by LLVM
STORED = ("f32", "i8", "i32")  # elements of tensors


@register
def split_invariants(module: ir.Operation, unit: Unit) -> None:
    """Compute once what innermost axes share."""
    for op in walk(module, "linalg.generic"):
        if is_elementwise(op) and ignores_init(op) and not asks_for_indices(op):
            found = _invariant(op)
            if found is not None:
                _split(op, found)


@dataclass(frozen=True)
class _Invariant:
    """A value of a body, the operations that make it, in order, with the body's constants, and the
    outer loops it takes."""

    value: ir.Value
    made_by: list[ir.Operation]
    constants: list[ir.Operation]
    loops: int


def _invariant(op: ir.Operation) -> _Invariant | None:
    """The one value that the rest of a body reads of what innermost loops share."""
    block = op.regions[0].blocks[0]
    read = [dims(map_) for map_ in maps(op)]
    body = [inner.operation for inner in block.operations]
    known: dict[ir.Value, set[int]] = {}
    for argument, axes in zip(block.arguments, read, strict=True):
        if axes is None:
            return None
        known[argument] = set(axes)
    for inner in body[:-1]:
        if len(inner.results) != 1 or len(inner.regions):
            return None
        taken = [known.get(operand, set()) for operand in inner.operands]
        known[inner.results[0]] = set().union(*taken)
    last = rank(op) - 1
    made_by = [
        each for each in body[:-1] if known[each.results[0]] and last not in known[each.results[0]]
    ]
    outside = [
        each.results[0]
        for each in made_by
        if any(user.operation not in made_by for user in users(each.results[0]))
    ]
    if len(outside) != 1 or len(made_by) < LEAST or text_of(outside[0].type) not in STORED:
        return None
    loops = 1 + max(known[outside[0]])
    constants = [each for each in body[:-1] if not known[each.results[0]]]
    if rank(op) - loops < IMAGE:
        return None
    return _Invariant(outside[0], made_by, constants, loops)


def _split(op: ir.Operation, found: _Invariant) -> None:
    block = op.regions[0].blocks[0]
    arguments = list(block.arguments)[:-1]
    taken = {operand for each in found.made_by for operand in each.operands}
    numbers = [i for i, argument in enumerate(arguments) if argument in taken]
    left = [
        i
        for i, argument in enumerate(arguments)
        if any(user.operation not in found.made_by for user in users(argument))
    ]
    values, reads, init = inputs(op), maps(op), op.operands[len(op.operands) - 1]
    with ir.InsertionPoint(op), op.location:
        sizes = mixed_sizes(init)[: found.loops]
        few = tensor.EmptyOp(sizes, found.value.type).result
        invariant = parallel_loop(
            [values[i] for i in numbers],
            [ir.AffineMap.get(found.loops, 0, list(reads[i].results)) for i in numbers],
            few,
            lambda elements: _cloned(
                found, dict(zip((arguments[i] for i in numbers), elements, strict=True))
            ),
        )
        outer = [ir.AffineDimExpr.get(i) for i in range(found.loops)]
        made = parallel_loop(
            [*(values[i] for i in left), invariant],
            [*(reads[i] for i in left), ir.AffineMap.get(rank(op), 0, outer)],
            init,
            lambda elements: _rest(op, found, left, elements),
        )
    op.results[0].replace_all_uses_with(made)
    op.erase()


def _cloned(found: _Invariant, known: dict[ir.Value, ir.Value]) -> ir.Value:
    for each in [*found.constants, *found.made_by]:
        clone_op(each, known)
    return known[found.value]


def _rest(
    op: ir.Operation, found: _Invariant, left: list[int], elements: list[ir.Value]
) -> ir.Value:
    """The body for these elements, the last one that of the invariant."""
    block = op.regions[0].blocks[0]
    known = {block.arguments[i]: element for i, element in zip(left, elements, strict=False)}
    known[found.value] = elements[-1]
    for view in block.operations:
        inner = view.operation
        if inner.name == "linalg.yield":
            return known.get(inner.operands[0], inner.operands[0])
        if inner not in found.made_by:
            clone_op(inner, known)
    raise AssertionError("a body ends with linalg.yield")
