"""Elements chosen by what they are: TopK, NonZero, Compress, Unique."""

from __future__ import annotations

from collections.abc import Callable

from abqc.dialects.abq_order import TopKOp
from abqc.dialects.mlir import ir

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import reshape, transpose
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.element_types import BOOL, I64, INDEX
from ..values.symbolic import ONE, ZERO, Dim, product
from ..values.value import Value
from .scans import cumulated
from .scatter import positions, scattered


@lowers("TopK")
def top_k(node: Node) -> list[Value]:
    """The first k of each line in order; sorted too where `sorted` is 0, as ONNX allows."""
    x, b = node.input(0), node.b
    axis = node.axis("axis", x.rank, -1)
    k = Dim.of(node.int("k")) if node.version < 10 else node.integer_of(1)
    size = x.dims[axis]
    legal = symbolic.call(
        "and",
        symbolic.negated(symbolic.is_less(k, ZERO)),
        symbolic.negated(symbolic.is_less(size, k)),
    )
    b.require(legal, f"k, {k}, must be between 0 and the {size} elements of a line")
    return list(first_of_order(b, x, axis, k, largest=bool(node.int("largest", 1))))


def first_of_order(
    b: Builder, x: Value, axis: int, k: Dim, *, largest: bool
) -> tuple[Value, Value]:
    """The first `k` elements of each line along `axis` in order, and their places (i64)."""
    keys, back = _as_signed(b, x)
    dims = (*x.dims[:axis], k, *x.dims[axis + 1 :])
    number = ir.IntegerType.get_signless(64)
    op = TopKOp(
        b.tensor(keys),
        b.index(k),
        ir.IntegerAttr.get(number, axis),
        ir.IntegerAttr.get(number, int(largest)),
        b.type(keys.dtype, dims),
        b.type(I64, dims),
    )
    values = Value(keys.dtype, dims, ssa=op.values)
    return back(values), Value(I64, dims, ssa=op.indices)


def _as_signed(b: Builder, x: Value) -> tuple[Value, Callable[[Value], Value]]:
    """Unsigned integers moved to signed ones of the same order, and the way back."""
    if x.dtype.signed:
        return x, lambda values: values
    if x.dtype.is_bool:
        wide = b.elementwise([x], I64, lambda v: v.cast(I64))
        return wide, lambda values: b.elementwise([values], BOOL, lambda v: v != 0)
    flip = 1 << (x.dtype.bits - 1)

    def moved(value: Value) -> Value:
        return b.elementwise([value], x.dtype, lambda v: v ^ flip)

    return moved(x), moved


@lowers("NonZero")
def non_zero(node: Node) -> Value:
    """The coordinates of the elements that are not 0, one column each, in row-major order."""
    x, b = node.input(0), node.b
    flat = reshape(b, x, [product(x.dims)])
    flags = b.elementwise([flat], BOOL, lambda v: v.cast(BOOL))
    places, count = positions(b, flags)
    source = Value(I64, places.dims, ssa=b.tensor(places))
    sizes = [b.scalar(dim) for dim in x.dims]

    def coordinate(at: list[Scalar]) -> Scalar:
        rest = b.read(source, at[1:]).cast(INDEX)
        result = rest.like(0)
        for axis in reversed(range(1, x.rank)):
            result = (at[0] == axis).select(rest % sizes[axis], result)
            rest = rest // sizes[axis]
        return (at[0] == 0).select(rest, result).cast(I64)

    return b.tabulate([Dim.of(max(x.rank, 1)), count], I64, coordinate)


@lowers("Compress")
def compress(node: Node) -> Value:
    """The slices along `axis` (or elements of the flat tensor) whose condition is true."""
    x, condition, b = node.input(0), node.input(1), node.b
    axis = node.axis("axis", x.rank) if node.has("axis") else 0
    if not node.has("axis"):
        x = reshape(b, x, [product(x.dims)])
    if condition.rank != 1:
        raise node.error(f"the condition must be a vector, it is {condition}")
    fits = symbolic.negated(symbolic.is_less(x.dims[axis], condition.dims[0]))
    b.require(fits, f"the condition is longer than axis {axis} of {x}")
    places, count = positions(b, condition)
    return _at_places(b, x, axis, places, count)


def _at_places(b: Builder, x: Value, axis: int, places: Value, count: Dim) -> Value:
    """Slices of `x` at places that are in range."""
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    chosen = Value(I64, places.dims, ssa=b.tensor(places))
    dims = [*x.dims[:axis], count, *x.dims[axis + 1 :]]

    def body(at: list[Scalar]) -> Scalar:
        place = b.read(chosen, [at[axis]]).cast(INDEX)
        return b.read(source, [*at[:axis], place, *at[axis + 1 :]])

    return b.tabulate(dims, x.dtype, body)


@lowers("Unique")
def unique(node: Node) -> list[Value]:
    return _unique(node, in_order=bool(node.int("sorted", 1)))


@lowers("Unique", domain=MICROSOFT)
def unique_in_place(node: Node) -> list[Value]:
    """Never sorted. Its results: the elements, for every input which of them it is, the counts."""
    values, _, group_of, lengths = _unique(node, in_order=False)
    return [values, group_of, lengths]


def _unique(node: Node, *, in_order: bool) -> list[Value]:
    """The different elements, or slices along `axis`, sorted or in the order of their first places.

    Then their first places, for every element which of them it is, and how often each occurs.
    """
    x, b = node.input(0), node.b
    if node.has("axis"):
        axis = node.axis("axis", x.rank)
        order, starts = _order_of_slices(b, x, axis)
    else:
        axis = 0
        x = reshape(b, x, [product(x.dims)])
        order, starts = _order_of_elements(b, x)
    length = x.dims[axis]
    begins, count = positions(b, starts)  # of each run of equal ones in the order
    groups = cumulated(
        b, b.elementwise([starts], I64, lambda s: s.cast(I64)), 0, 0, lambda total, s: total + s
    )
    group_of = scattered_back(b, order, b.elementwise([groups], I64, lambda g: g - 1))
    # The order is stable: the first of a run is the first in x.
    first = _at_places(b, order, 0, begins, count)
    lengths = _run_lengths(b, begins, count, length)
    if not in_order:
        wanted = first_of_order(b, first, 0, count, largest=False)[1]
        first, lengths = (_at_places(b, value, 0, wanted, count) for value in (first, lengths))
        rank = scattered_back(b, wanted, b.tabulate([count], I64, lambda at: at[0].cast(I64)))
        group_of = _at_places(b, rank, 0, group_of, length)
    return [_at_places(b, x, axis, first, count), first, group_of, lengths]


def _order_of_elements(b: Builder, x: Value) -> tuple[Value, Value]:
    """The places of a vector's elements in order, and whether each differs from that before."""
    values, order = first_of_order(b, x, 0, x.dims[0], largest=False)
    source = Value(x.dtype, values.dims, ssa=b.tensor(values))

    def starts(at: list[Scalar]) -> Scalar:
        (i,) = at
        before = (i - 1).maximum(0)
        return (i == 0) | (b.read(source, [i]) != b.read(source, [before]))

    return order, b.tabulate(x.dims, BOOL, starts)


def _order_of_slices(b: Builder, x: Value, axis: int) -> tuple[Value, Value]:
    """As `_order_of_elements`, of slices that are compared element by element.

    Every slice is compared with every other one: the number of those before it is its place.
    """
    length = x.dims[axis]
    behind = [dim for at, dim in enumerate(x.dims) if at != axis]
    order_of_axes = [axis, *[at for at in range(x.rank) if at != axis]]
    rows = reshape(b, transpose(b, x, order_of_axes), [length, product(behind)])
    source = Value(x.dtype, rows.dims, ssa=b.tensor(rows))
    d = [ir.AffineDimExpr.get(i) for i in range(3)]
    maps = [
        ir.AffineMap.get(3, 0, [d[0], d[2]]),
        ir.AffineMap.get(3, 0, [d[1], d[2]]),
        ir.AffineMap.get(3, 0, [d[0], d[1]]),
    ]

    def compare(one: ir.Value, other: ir.Value, so_far: ir.Value) -> list[ir.Value]:
        a, c, state = Scalar(one, x.dtype), Scalar(other, x.dtype), Scalar(so_far, I64)
        sign = (a < c).select(state.like(-1), (c < a).select(state.like(1), state.like(0)))
        return [(state == 0).select(sign, state).ssa]

    zeros = b.full(I64, [length, length], 0)
    tensor = b.tensor(source)
    (states,) = b.structured([tensor, tensor], [zeros], maps, [True, True, False], compare)
    signs = Value(I64, (length, length), ssa=states)

    def comes_later(at: list[Scalar]) -> Scalar:
        sign = b.read(signs, at)
        return ((sign > 0) | ((sign == 0) & (at[1] < at[0]))).select(sign.like(1), sign.like(0))

    later = b.tabulate([length, length], I64, comes_later)
    (rank,) = b.reduce([later], [1], [(I64, 0)], lambda v, t: [t + v])
    own = b.tabulate([length], I64, lambda at: at[0].cast(I64))
    order = scattered_back(b, rank, own)
    places = Value(I64, order.dims, ssa=b.tensor(order))

    def starts(at: list[Scalar]) -> Scalar:
        (i,) = at
        here, before = b.read(places, [i]), b.read(places, [(i - 1).maximum(0)])
        return (i == 0) | (b.read(signs, [here.cast(INDEX), before.cast(INDEX)]) != 0)

    return order, b.tabulate([length], BOOL, starts)


def scattered_back(b: Builder, places: Value, values: Value) -> Value:
    """`y[places[i]] = values[i]` for a permutation."""
    (length,) = places.dims
    empty = Value(values.dtype, (length,), ssa=b.full(values.dtype, [length], 0))
    return scattered(b, empty, reshape(b, places, [length, ONE]), values)


def _run_lengths(b: Builder, begins: Value, count: Dim, length: Dim) -> Value:
    """From the beginning of each run to that of the next."""
    source = Value(I64, begins.dims, ssa=b.tensor(begins))
    last, end = b.scalar(count - 1), b.scalar(length).cast(I64)

    def body(at: list[Scalar]) -> Scalar:
        (i,) = at
        following = b.read(source, [(i + 1).minimum(last)])
        return (i == last).select(end, following) - b.read(source, [i])

    return b.tabulate([count], I64, body)
