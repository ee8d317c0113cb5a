"""Sequences and optionals: lists of values at compile time, no types of the IR.

A sequence whose length only a run knows comes from a loop that puts tensors of equal shapes at its
end: these are rows of one tensor (`Stacked`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..building.shaping import concat, reshape, slice_axis, transpose, unsqueeze
from ..building.structure import Growing, Stacked
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import BOOL, I64
from ..values.symbolic import ONE, ZERO, Dim, ceildiv
from ..values.value import AnyValue, OptionalValue, SequenceValue, Value


@lowers("SequenceConstruct")
def construct(node: Node) -> SequenceValue:
    return SequenceValue(node.tensors())


@lowers("SequenceEmpty")
def empty(node: Node) -> SequenceValue:
    return SequenceValue([])


@lowers("SequenceInsert")
def insert(node: Node) -> SequenceValue:
    sequence, element = node.sequence(0), node.input(1)
    if isinstance(sequence, Growing) and not node.given(2):
        return Growing([*sequence.added, element])
    if isinstance(sequence, Stacked) and not node.given(2):
        raise node.error("a sequence that a loop has made cannot grow behind it")
    elements = list(sequence.elements)
    at = _position(node, 2, len(elements), len(elements)) if node.given(2) else len(elements)
    return SequenceValue([*elements[:at], element, *elements[at:]])


@lowers("SequenceErase")
def erase(node: Node) -> SequenceValue:
    elements = list(node.sequence(0).elements)
    count = len(elements)
    at = _position(node, 1, count, count - 1) if node.given(1) else count - 1
    if not elements:
        raise node.error("the sequence is empty")
    return SequenceValue([*elements[:at], *elements[at + 1 :]])


def _position(node: Node, i: int, length: int, last: int) -> int:
    """Input `i`, a position in a sequence of `length`, counted from the front."""
    (dim,) = node.b.integers(reshape(node.b, node.input(i), [1]))
    if dim.value is None:
        raise node.error(
            f"the position is '{dim}', which only a run knows: the sequence has no static form",
            hint="take elements out by constant positions, or stack the tensors in the model",
        )
    at = dim.value + length if dim.value < 0 else dim.value
    if not 0 <= at <= last:
        raise node.error(f"position {dim.value} is out of range for a sequence of {length}")
    return at


@lowers("SequenceAt")
def at(node: Node) -> Value:
    sequence = node.sequence(0)
    (dim,) = node.b.integers(reshape(node.b, node.input(1), [1]))
    if not isinstance(sequence, Stacked) and dim.value is not None:
        elements = sequence.elements
        return elements[_position(node, 1, len(elements), len(elements) - 1)]
    rows = stack(node, sequence)
    count = rows.dims[0]
    position = symbolic.select(symbolic.is_less(dim, ZERO), dim + count, dim)
    inside = symbolic.call(
        "and",
        symbolic.negated(symbolic.is_less(position, ZERO)),
        symbolic.is_less(position, count),
    )
    node.b.require(inside, "the position is out of range for the sequence")
    return reshape(node.b, slice_axis(node.b, rows, 0, position, 1), rows.dims[1:])


def stack(node: Node, sequence: SequenceValue) -> Value:
    """The elements, which must be of one shape, as rows of one tensor."""
    b = node.b
    before = sequence.before if isinstance(sequence, Stacked) else list(sequence.elements)
    rows = [sequence.rows] if isinstance(sequence, Stacked) else []
    kinds = {(x.dtype, x.dims) for x in before} | {(x.dtype, x.dims[1:]) for x in rows}
    if len(kinds) != 1:
        raise node.error(
            "only a run knows which element is meant, and they differ in type or shape"
            if kinds
            else "the sequence is empty"
        )
    return concat(b, [*[unsqueeze(b, x, [0]) for x in before], *rows], 0)


@lowers("SequenceLength")
def length(node: Node) -> Value:
    sequence = node.sequence(0)
    if isinstance(sequence, Stacked):
        count = sequence.rows.dims[0] + len(sequence.before)
    else:
        count = Dim.of(len(sequence.elements))
    return node.b.content([count], I64, [])


@lowers("SplitToSequence")
def split(node: Node) -> SequenceValue:
    """Parts of the given sizes; of one size, the last of what is left; or of size 1."""
    b, x = node.b, node.input(0)
    axis = node.axis("axis", x.rank, 0)
    total = x.dims[axis]
    if not node.given(1):
        return _slices(node, x, axis)
    sizes = b.integers(node.input(1))
    if node.input(1).rank == 0:
        sizes = _equal_sizes(node, total, sizes[0])
    b.require_equal(sum(sizes, ZERO), total, f"the parts must add up to axis {axis} of {x}")
    parts, begin = [], ZERO
    for size in sizes:
        parts.append(slice_axis(b, x, axis, begin, size))
        begin = begin + size
    return SequenceValue(parts)


def _slices(node: Node, x: Value, axis: int) -> SequenceValue:
    b, total = node.b, x.dims[axis]
    keep = bool(node.int("keepdims", 1))
    rest = [dim for i, dim in enumerate(x.dims) if i != axis]
    if total.value is None:
        first = transpose(b, x, [axis, *[i for i in range(x.rank) if i != axis]])
        return Stacked([], unsqueeze(b, first, [axis + 1]) if keep else first)
    parts = [slice_axis(b, x, axis, i, 1) for i in range(total.value)]
    return SequenceValue(parts if keep else [reshape(b, part, rest) for part in parts])


def _equal_sizes(node: Node, total: Dim, size: Dim) -> list[Dim]:
    if total.value is None or size.value is None or size.value <= 0:
        raise node.error(
            f"it splits {total} into parts of {size}: their number must be known",
            hint="pin the shapes of the inputs with --shape",
        )
    count = ceildiv(total, size).value or 0
    return [Dim.of(min(size.value, total.value - i * size.value)) for i in range(count)]


@lowers("ConcatFromSequence")
def concatenated(node: Node) -> Value:
    b, sequence = node.b, node.sequence(0)
    new = bool(node.int("new_axis", 0))
    stacked = isinstance(sequence, Stacked)
    parts: Sequence[Value] = sequence.before if stacked else sequence.elements  # type: ignore[attr-defined]
    rank = sequence.rows.rank - 1 if stacked else (parts[0].rank if parts else 0)  # type: ignore[attr-defined]
    if not stacked and not parts:
        raise node.error("the sequence is empty")
    axis = node.counted(node.int("axis"), rank + new)
    whole = [unsqueeze(b, part, [axis]) if new else part for part in parts]
    if isinstance(sequence, Stacked):
        whole.append(_rows_along(node, sequence.rows, axis, new))
    first = whole[0]
    if any(part.rank != first.rank or part.dtype != first.dtype for part in whole):
        raise node.error(f"its elements differ in rank or type: {', '.join(map(str, parts))}")
    return concat(b, whole, axis)


def _rows_along(node: Node, rows: Value, axis: int, new: bool) -> Value:
    """The rows of a tensor behind each other along `axis` of theirs, or along a new one."""
    order = list(range(1, rows.rank))
    order.insert(axis, 0)
    moved = transpose(node.b, rows, order)
    if new:
        return moved
    joined = moved.dims[axis] * moved.dims[axis + 1]
    return reshape(node.b, moved, [*moved.dims[:axis], joined, *moved.dims[axis + 2 :]])


@lowers("SequenceMap")
def mapped(node: Node) -> list[AnyValue]:
    """The body for each element of the first sequence, and of others beside it."""
    graph = node.graph("body")
    first = list(node.sequence(0).elements)
    results: list[list[Value]] = [[] for _ in graph.output]
    for i, element in enumerate(first):
        given: list[AnyValue] = [element]
        for k in range(1, len(node.inputs)):
            other = node.inputs[k]
            if isinstance(other, SequenceValue) and len(other.elements) != len(first):
                raise node.error(
                    f"its sequences have {len(first)} and {len(other.elements)} elements"
                )
            given.append(other.elements[i] if isinstance(other, SequenceValue) else node.input(k))
        for result, value in zip(results, node.lowering.subgraph(graph, given, node), strict=True):
            if not isinstance(value, Value):
                raise node.error("its body must return tensors")
            result.append(value)
    return [SequenceValue(result) for result in results]


@lowers("Optional")
def optional(node: Node) -> OptionalValue:
    value = node.inputs[0] if node.given(0) else None
    assert not isinstance(value, OptionalValue)
    return OptionalValue(value)


@lowers("OptionalHasElement")
def has_element(node: Node) -> Value:
    value = node.inputs[0] if node.given(0) else None
    present = value.element is not None if isinstance(value, OptionalValue) else value is not None
    return node.b.content([ONE if present else ZERO], BOOL, [])


@lowers("OptionalGetElement")
def get_element(node: Node) -> AnyValue:
    value = node.inputs[0] if node.given(0) else None
    element = value.element if isinstance(value, OptionalValue) else value
    if element is None:
        raise node.error("the optional is empty")
    return element
