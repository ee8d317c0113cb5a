"""Elements of an image between its elements: interpolation at coordinates that data decides.

All of this is for bodies of loops (`Builder.tabulate`): the image must have been made before, and
must have an element along every axis (`require_elements`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product as combinations

from abqc.dialects.mlir import scf

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..values import symbolic
from ..values.element_types import INDEX
from ..values.symbolic import Dim
from ..values.value import Value

# The place of an element along an axis, and whether there is one (None: surely).
Resolved = tuple[Scalar, Scalar | None]
Resolve = Callable[[Scalar, Dim], Resolved]


def require_elements(b: Builder, x: Value) -> None:
    """An error of the run where an image without elements is sampled."""
    for size in x.dims[2:]:
        b.require(symbolic.is_less(symbolic.ZERO, size), f"it samples {x}, which has no elements")


def nothing_outside(b: Builder) -> Resolve:
    """Elements outside of the image are 0."""

    def resolve(place: Scalar, size: Dim) -> Resolved:
        end = b.scalar(size)
        return place.maximum(0).minimum(end - 1), (place >= 0) & (place < end)

    return resolve


def edge_outside(b: Builder) -> Resolve:
    """Elements outside of the image are the nearest ones inside."""

    def resolve(place: Scalar, size: Dim) -> Resolved:
        return place.maximum(0).minimum(b.scalar(size) - 1), None

    return resolve


def as_place(coordinate: Scalar) -> Scalar:
    """A whole float as an index; what is far outside of every image stays there."""
    return coordinate.clamp(-1e9, 1e9).cast(INDEX)


def element(b: Builder, image: Value, lead: Sequence[Scalar], places: Sequence[Resolved]) -> Scalar:
    """The element at `lead` (batch, channel) and a place of each other axis."""
    value = b.read(image, [*lead, *(place for place, _ in places)])
    for _, exists in places:
        if exists is not None:
            value = exists.select(value, value.like(0))
    return value


# The weights of elements at floor(coordinate) + offset, from the rest of the coordinate.
Weights = Callable[[Scalar], list[tuple[int, Scalar]]]


def linear_weights(rest: Scalar) -> list[tuple[int, Scalar]]:
    return [(0, 1.0 - rest), (1, rest)]


def cubic_weights(rest: Scalar, a: float = -0.75) -> list[tuple[int, Scalar]]:
    def near(x: Scalar) -> Scalar:
        return ((a + 2) * x - (a + 3)) * x * x + 1.0

    def far(x: Scalar) -> Scalar:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    other = 1.0 - rest
    return [(-1, far(rest + 1.0)), (0, near(rest)), (1, near(other)), (2, far(other + 1.0))]


def interpolated(
    b: Builder,
    image: Value,
    lead: Sequence[Scalar],
    coordinates: Sequence[Scalar],
    weights: Weights,
    resolve: Resolve,
) -> Scalar:
    """The weighted sum of the elements around a point; one coordinate for each axis of an image."""
    axes = []
    for coordinate, size in zip(coordinates, image.dims[2:], strict=True):
        low = coordinate.floor()
        first = as_place(low)
        axes.append(
            [
                (resolve(first + offset, size), weight)
                for offset, weight in weights(coordinate - low)
            ]
        )
    total: Scalar | None = None
    for corner in combinations(*axes):
        value = element(b, image, lead, [place for place, _ in corner])
        factor = corner[0][1]
        for _, weight in corner[1:]:
            factor = factor * weight
        term = value * factor.cast(value.dtype)
        total = term if total is None else total + term
    assert total is not None
    return total


def repeat(
    b: Builder,
    begin: Scalar,
    end: Scalar,
    starts: Sequence[Scalar],
    body: Callable[..., Sequence[Scalar]],
) -> list[Scalar]:
    """A loop in the body of another: `body(i, *carried)` for begin <= i < end, in order."""
    loop = scf.ForOp(begin.ssa, end.ssa, const(1, INDEX).ssa, [start.ssa for start in starts])
    dtypes = [start.dtype for start in starts]
    with b.block(loop.body):
        index = Scalar(loop.induction_variable, INDEX)
        carried = [
            Scalar(value, dtype) for value, dtype in zip(loop.inner_iter_args, dtypes, strict=True)
        ]
        scf.YieldOp([scalar.ssa for scalar in body(index, *carried)])
    return [Scalar(value, dtype) for value, dtype in zip(loop.results, dtypes, strict=True)]
