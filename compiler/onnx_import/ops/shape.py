"""Shapes: what reads them, and what views or copies a tensor in another one."""

from __future__ import annotations

from collections.abc import Sequence

from ..building.shaping import concat, expand, reshape, slice_axis, squeeze, transpose, unsqueeze
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.element_types import I64
from ..values.symbolic import ONE, Dim, product
from ..values.value import Value


@lowers("Shape")
def shape(node: Node) -> Value:
    x = node.input(0)
    begin, end = node.int("start", 0), node.int("end", None)
    dims = list(x.dims)[slice(begin, end)]
    return node.b.content(dims, I64, [len(dims)])


@lowers("Size")
def size(node: Node) -> Value:
    return node.b.content([product(node.input(0).dims)], I64, [])


@lowers("Reshape")
def lower_reshape(node: Node) -> Value:
    x = node.input(0)
    if node.has("shape"):
        wanted = [Dim.of(number) for number in node.ints("shape")]
    else:
        wanted = node.dims_of(1) or []
    return reshape(node.b, x, _resolved(node, x, wanted))


def _resolved(node: Node, x: Value, wanted: list[Dim]) -> list[Dim]:
    """A shape without 0 (the input's own size) and -1 (what is left)."""
    dims = list(wanted)
    if not node.int("allowzero", 0):
        for axis, dim in enumerate(dims):
            if dim == symbolic.ZERO:
                if axis >= x.rank:
                    raise node.error(f"the shape has 0 at {axis}, but the input has rank {x.rank}")
                dims[axis] = x.dims[axis]
            elif dim.value is None and not symbolic.is_natural(dim) and axis < x.rank:
                dims[axis] = symbolic.select(
                    symbolic.is_equal(dim, symbolic.ZERO), x.dims[axis], dim
                )
    left = [axis for axis, dim in enumerate(dims) if dim.value == -1]
    if len(left) > 1:
        raise node.error("the shape has more than one -1")
    total = product(x.dims)
    if left:
        rest = product(dim for axis, dim in enumerate(dims) if axis != left[0])
        dims[left[0]] = total // rest
        return dims
    # A size that only a run knows may be -1 there.
    unsure = [
        axis for axis, dim in enumerate(dims)
        if dim.value is None and not symbolic.is_natural(dim)
    ]  # fmt: skip
    if len(unsure) == 1:
        rest = product(dim for axis, dim in enumerate(dims) if axis != unsure[0])
        dims[unsure[0]] = total // rest
        return dims
    given = list(dims)
    for axis in unsure:
        rest = product(dim for other, dim in enumerate(given) if other != axis)
        dims[axis] = symbolic.select(
            symbolic.is_less(given[axis], symbolic.ZERO), total // rest, given[axis]
        )
    return dims


@lowers("Flatten")
def flatten(node: Node) -> Value:
    x, axis = node.input(0), node.int("axis", 1)
    at = axis + x.rank if axis < 0 else axis
    if not 0 <= at <= x.rank:
        raise node.error(f"axis {axis} is out of range for a tensor of rank {x.rank}")
    return reshape(node.b, x, [product(x.dims[:at]), product(x.dims[at:])])


@lowers("Squeeze")
def lower_squeeze(node: Node) -> Value:
    x = node.input(0)
    axes = node.ints("axes") if node.has("axes") else node.dims_of(1)
    if axes is not None and any(Dim.of(axis).value is None for axis in axes):
        return _squeezed_at_run_time(node, x, axes)
    if axes is None:
        chosen = [axis for axis, dim in enumerate(x.dims) if _is_one(node, axis, dim)]
    else:
        chosen = [node.counted(Dim.of(axis).value or 0, x.rank) for axis in axes]
    return squeeze(node.b, x, chosen)


def _is_one(node: Node, axis: int, dim: Dim) -> bool:
    """Whether an axis goes; where only a run knows, it is assumed that it does not."""
    if dim.value is not None:
        return dim == ONE
    assumptions = node.lowering.assumptions
    place, answer = assumptions.ask()
    if answer is None:
        answer = False
        assumptions.settle(place, answer)
    one = symbolic.is_equal(dim, ONE)
    text = f"it is compiled for a size of axis {axis} that is {'' if answer else 'not '}1"
    hint = "compile it for others with --shape"
    node.b.require(one if answer else symbolic.negated(one), f"{text}; {hint}")
    return answer


def _squeezed_at_run_time(node: Node, x: Value, axes: list[Dim]) -> Value:
    """Which sizes go is known to a run; how many, always."""
    flags = run_time_axes(node, axes, x.rank)
    for flag, dim in zip(flags, x.dims, strict=True):
        node.b.require(
            symbolic.call("or", symbolic.negated(flag), symbolic.is_equal(dim, ONE)),
            "an axis that is squeezed has a size other than 1",
        )
    return reshape(node.b, x, kept_dims(flags, x.dims, x.rank - len(axes)))


def run_time_axes(node: Node, axes: list[Dim], rank: int) -> list[Dim]:
    """For each axis 1 if `axes`, which a run reads, names it, else 0."""
    flags = [symbolic.ZERO] * rank
    for axis in axes:
        counted = symbolic.select(symbolic.is_less(axis, symbolic.ZERO), axis + rank, axis)
        in_range = symbolic.negated(symbolic.is_less(counted, symbolic.ZERO))
        below = symbolic.is_less(counted, Dim.of(rank))
        node.b.require(symbolic.call("and", in_range, below), "an axis is out of range")
        for at in range(rank):
            flags[at] = symbolic.call("or", flags[at], symbolic.is_equal(counted, Dim.of(at)))
    return flags


def kept_dims(flags: list[Dim], dims: Sequence[Dim], count: int) -> list[Dim]:
    """The `count` dims whose flag is 0, in order."""
    before, place = symbolic.ZERO, []
    for flag in flags:
        place.append(before)
        before = before + symbolic.negated(flag)
    return [
        sum(
            (
                dim * symbolic.call("and", symbolic.negated(flag), symbolic.is_equal(at, Dim.of(i)))
                for flag, dim, at in zip(flags, dims, place, strict=True)
            ),
            symbolic.ZERO,
        )
        for i in range(count)
    ]


@lowers("Unsqueeze")
@lowers("ExpandDims", domain=MICROSOFT)
def lower_unsqueeze(node: Node) -> Value:
    x = node.input(0)
    axes = [Dim.of(a) for a in node.ints("axes")] if node.has("axes") else node.dims_of(1) or []
    rank = x.rank + len(axes)
    if any(axis.value is None for axis in axes):
        return reshape(node.b, x, _unsqueezed_dims(run_time_axes(node, axes, rank), x.dims))
    chosen = [node.counted(axis.value or 0, rank) for axis in axes]
    if len(set(chosen)) != len(chosen):
        raise node.error(f"axes {axes} name one twice")
    return unsqueeze(node.b, x, chosen)


def _unsqueezed_dims(flags: list[Dim], dims: Sequence[Dim]) -> list[Dim]:
    """1 where a flag is set, the next of `dims` elsewhere."""
    result, before = [], symbolic.ZERO
    for flag in flags:
        there = sum(
            (dim * symbolic.is_equal(before, Dim.of(i)) for i, dim in enumerate(dims)),
            symbolic.ZERO,
        )
        result.append(symbolic.select(flag, ONE, there))
        before = before + symbolic.negated(flag)
    return result


@lowers("Transpose")
def lower_transpose(node: Node) -> Value:
    x = node.input(0)
    order = node.ints("perm", list(reversed(range(x.rank))))
    if sorted(order) != list(range(x.rank)):
        raise node.error(f"perm {order} is no permutation of {x.rank} axes")
    return transpose(node.b, x, order)


@lowers("Expand")
def lower_expand(node: Node) -> Value:
    return expand(node.b, node.input(0), node.dims_of(1) or [])


@lowers("Concat")
def lower_concat(node: Node) -> Value:
    parts = node.tensors()
    default = 1 if node.version < 4 else None
    axis = node.counted(node.int("axis", default) or 0, parts[0].rank)
    if any(part.rank != parts[0].rank or part.dtype != parts[0].dtype for part in parts):
        raise node.error(f"its inputs differ in rank or type: {', '.join(map(str, parts))}")
    return concat(node.b, parts, axis)


@lowers("Split")
def split(node: Node) -> list[Value]:
    x, axis = node.input(0), node.axis("axis", node.input(0).rank, 0)
    total, count = x.dims[axis], node.output_count
    lengths = [Dim.of(n) for n in node.ints("split")] if node.has("split") else node.dims_of(1)
    if lengths is None:
        count = node.int("num_outputs", count)
        step = symbolic.ceildiv(total, Dim.of(count))
        lengths = [step] * (count - 1) + [total - step * (count - 1)]
    whole = sum(lengths, symbolic.ZERO)
    node.b.require_equal(whole, total, f"the parts must add up to axis {axis} of {x}")
    parts, begin = [], symbolic.ZERO
    for length in lengths:
        parts.append(slice_axis(node.b, x, axis, begin, length))
        begin = begin + length
    return parts
