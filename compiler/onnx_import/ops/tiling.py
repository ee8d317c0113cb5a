"""Tile, Trilu, ReverseSequence: a tensor repeated, cut to a triangle, or turned around."""

from __future__ import annotations

from collections.abc import Callable

from abqc.dialects.mlir import ir, linalg

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import reshape
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.element_types import INDEX, ElementType
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import MAX_CONTENT, Value


@lowers("Tile")
def tile(node: Node) -> Value:
    x = node.input(0)
    counts = _counts(node, x)
    for count in counts:
        node.b.require(symbolic.negated(symbolic.is_less(count, ZERO)), "a repeat is negative")
    return repeated(node.b, x, counts)


def _counts(node: Node, x: Value) -> list[Dim]:
    if node.version < 6 and node.given(2):  # one number of tiles, along one axis
        count = node.integer_of(1)
        (axis,) = node.constant_of(2).reshape(-1)[:1]
        at = node.counted(int(axis), x.rank)
        return [count if i == at else ONE for i in range(x.rank)]
    return node.integers_of(1, x.rank)


def repeated(b: Builder, x: Value, counts: list[Dim]) -> Value:
    """`x` laid out `counts` times along every axis: a broadcast along an axis before each."""
    whole = [dim * count for dim, count in zip(x.dims, counts, strict=True)]
    if x.content is not None and x.rank == 1 and counts[0].value is not None:
        elements = x.content * counts[0].value
        if len(elements) <= MAX_CONTENT:
            return b.content(elements, x.dtype, [len(elements)])
    apart: list[Dim] = []  # x with an axis of size 1 before every axis that is repeated
    wide: list[Dim] = []
    for dim, count in zip(x.dims, counts, strict=True):
        if count != ONE:
            if dim != ONE:
                apart.append(ONE)
                wide.append(count)
            apart.append(dim)
            wide.append(count if dim == ONE else dim)
        else:
            apart.append(dim)
            wide.append(dim)
    separate = reshape(b, x, apart)
    spread = b.elementwise([separate], x.dtype, lambda v: v, dims=wide)
    return reshape(b, spread, whole)


def with_places(
    b: Builder, x: Value, dtype: ElementType, body: Callable[[Scalar, list[Scalar]], Scalar]
) -> Value:
    """`body(element, indices)` of every element and its place."""

    def full_body(element: ir.Value) -> list[ir.Value]:
        indices = [Scalar(linalg.IndexOp(axis).result, INDEX) for axis in range(x.rank)]
        return [body(Scalar(element, x.dtype), indices).ssa]

    identity = ir.AffineMap.get_identity(x.rank)
    (ssa,) = b.generic(x.dims, [b.tensor(x)], [identity], [dtype], full_body)
    return Value(dtype, x.dims, ssa=ssa)


@lowers("Trilu")
@lowers("Trilu", domain=MICROSOFT)
def trilu(node: Node) -> Value:
    """Zeros below (upper) or above (lower) the k-th diagonal of each matrix."""
    x, upper = node.input(0), node.int("upper", 1)
    if x.rank < 2:
        raise node.error(f"it needs matrices, not {x}")
    shift = node.b.scalar(node.integer_of(1) if node.given(1) else ZERO)

    def body(element: Scalar, indices: list[Scalar]) -> Scalar:
        row, column = indices[-2:]
        edge = row + shift
        kept = column >= edge if upper else column <= edge
        return kept.select(element, element.like(0))

    return with_places(node.b, x, x.dtype, body)


@lowers("ReverseSequence")
def reverse_sequence(node: Node) -> Value:
    """The first `sequence_lens[b]` elements of every sequence in reverse order."""
    x, lengths, b = node.input(0), node.input(1), node.b
    time, batch = node.axis("time_axis", x.rank, 0), node.axis("batch_axis", x.rank, 1)
    if time == batch or x.rank < 2:
        raise node.error("time and batch must be two axes")
    if lengths.rank != 1:
        raise node.error(f"sequence_lens must be a vector, it is {lengths}")
    b.require_equal(lengths.dims[0], x.dims[batch], "sequence_lens has a number for each sequence")
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    counts = Value(lengths.dtype, lengths.dims, ssa=b.tensor(lengths))
    whole = b.scalar(x.dims[time])

    def body(indices: list[Scalar]) -> Scalar:
        length = b.read(counts, [indices[batch]]).cast(INDEX)
        fits = (length >= 0) & (length <= whole)
        b.check(fits, "a length is out of range")
        length = fits.select(length, 0)
        at = indices[time]
        turned = (at < length).select(length - 1 - at, at)
        return b.read(source, [*indices[:time], turned, *indices[time + 1 :]])

    return b.tabulate(x.dims, x.dtype, body)
