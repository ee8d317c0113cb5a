"""Pad: a tensor surrounded by a number, or by what its own elements continue to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..building.emit import Builder
from ..building.scalars import Number, Scalar
from ..building.shaping import pad, slice_axes
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.symbolic import ZERO, Dim
from ..values.value import Value
from .slicing import by_axis

# The place that is read for place `at`, which may lie outside of an axis of `size` elements.
Place = Callable[[Scalar, Scalar], Scalar]


@lowers("Pad")
@lowers("Pad", domain=MICROSOFT)
def lower_pad(node: Node) -> Value:
    x = node.input(0)
    mode = node.choice("mode", "constant", "reflect", "edge", "wrap")
    begins, ends = amounts(node, x)
    if mode == "constant":
        return pad(node.b, x, begins, ends, _number(node, x))
    return continued(node.b, x, begins, ends, _PLACES[mode])


def amounts(node: Node, x: Value) -> tuple[list[Dim], list[Dim]]:
    """How much is added (or, if negative, taken) in front of and behind every axis."""
    name = "paddings" if node.has("paddings") else "pads"
    axes = node.dims_of(3)
    if axes is None:
        axes = [Dim.of(axis) for axis in range(x.rank)]
    if node.has(name):
        given = [Dim.of(n) for n in node.ints(name)]
    else:
        given = node.integers_of(1, 2 * len(axes))
    if len(given) != 2 * len(axes):
        raise node.error(f"it has {len(given)} pads for {len(axes)} axes")
    half = len(axes)
    parts = list(zip(given[:half], given[half:], strict=True))
    begins, ends = [ZERO] * x.rank, [ZERO] * x.rank
    for axis, options in enumerate(by_axis(node, x.rank, axes, parts)):
        for here, (begin, end) in options:
            begins[axis] = symbolic.select(here, begin, begins[axis])
            ends[axis] = symbolic.select(here, end, ends[axis])
    return begins, ends


def _number(node: Node, x: Value) -> Number | Scalar:
    if node.version < 11 and node.domain != MICROSOFT:
        return node.float("value", 0.0)
    return node.item_of(2).cast(x.dtype) if node.given(2) else 0


def _edge(at: Scalar, size: Scalar) -> Scalar:
    return at.maximum(0).minimum(size - 1)


def _wrap(at: Scalar, size: Scalar) -> Scalar:
    return at % size


def _reflect(at: Scalar, size: Scalar) -> Scalar:
    """0 1 2 3 2 1 0 1 ...: a period of 2 * (size - 1)."""
    turn = ((size - 1) * 2).maximum(1)
    folded = at % turn
    return folded.minimum(turn - folded)


_PLACES: dict[str, Place] = {"edge": _edge, "wrap": _wrap, "reflect": _reflect}


def continued(
    b: Builder, x: Value, begins: Sequence[Dim], ends: Sequence[Dim], place: Place
) -> Value:
    """Surrounded by its own elements. Negative amounts are taken away first."""
    taken = [[symbolic.maximum(-amount, ZERO) for amount in amounts] for amounts in (begins, ends)]
    kept = [dim - low - high for dim, low, high in zip(x.dims, *taken, strict=True)]
    for size in kept:
        b.require(symbolic.negated(symbolic.is_less(size, ZERO)), "pads take more than there is")
    x = slice_axes(b, x, taken[0], kept)
    before = [symbolic.maximum(amount, ZERO) for amount in begins]
    after = [symbolic.maximum(amount, ZERO) for amount in ends]
    dims = [dim + low + high for dim, low, high in zip(x.dims, before, after, strict=True)]
    if list(x.dims) == dims:
        return x
    for size, whole in zip(x.dims, dims, strict=True):
        nothing_added = symbolic.is_equal(size, whole)
        filled = symbolic.is_less(ZERO, size)
        b.require(symbolic.call("or", nothing_added, filled), "an empty axis has nothing to repeat")
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    sizes, starts = [b.scalar(dim) for dim in x.dims], [b.scalar(low) for low in before]
    moved = [dim != whole for dim, whole in zip(x.dims, dims, strict=True)]

    def body(indices: list[Scalar]) -> Scalar:
        places = [
            place(at - start, size) if moves else at
            for at, start, size, moves in zip(indices, starts, sizes, moved, strict=True)
        ]
        return b.read(source, places)

    return b.tabulate(dims, x.dtype, body)
