"""A mixture of experts: each row of a tensor goes through a few of many small networks.

Each expert multiplies the rows that were sent to it and no others: how many these are is known to a
run, so that its products have a size of their own, which may be 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import reshape, slice_axis
from ..ops.scatter import positions, scattered
from ..ops.selection import first_of_order
from ..values.element_types import BOOL, INDEX
from ..values.symbolic import ONE, Dim
from ..values.value import Value

# An expert's network: rows [R, D] and its number to rows [R, D].
Expert = Callable[[Value, int], Value]


@dataclass(frozen=True)
class SwiGlu:
    """`g * sigmoid(alpha * g) * (l + beta)` of a gate and a linear part, both cut at `limit`."""

    alpha: float
    beta: float
    limit: float

    def __call__(self, gate: Scalar, linear: Scalar) -> Scalar:
        if math.isfinite(self.limit):
            gate = gate.minimum(self.limit)
            linear = linear.clamp(-self.limit, self.limit)
        return gate * (gate * self.alpha).sigmoid() * (linear + self.beta)


@dataclass(frozen=True)
class Routes:
    """Which experts the rows go to: their numbers and the weights of what they give, [T, k]."""

    places: Value
    weights: Value


def best_routes(b: Builder, scores: Value, k: int) -> Routes:
    """The k experts of the highest scores, [T, E]; the scores are their weights."""
    values, places = first_of_order(b, scores, 1, Dim.of(k), largest=True)
    return Routes(places, values)


def taken_from(b: Builder, routes: Routes, weights: Value) -> Routes:
    """The same experts, with their weights in another table [T, E]."""
    source = Value(weights.dtype, weights.dims, ssa=b.tensor(weights))
    places = Value(routes.places.dtype, routes.places.dims, ssa=b.tensor(routes.places))

    def body(at: list[Scalar]) -> Scalar:
        return b.read(source, [at[0], b.read(places, at).cast(INDEX)])

    return Routes(routes.places, b.tabulate(places.dims, weights.dtype, body))


def normalized(b: Builder, routes: Routes) -> Routes:
    """The weights of each row divided by their sum."""
    w = routes.weights
    (total,) = b.reduce([w], [1], [(w.dtype, 0)], lambda v, t: [t + v], keepdims=True)
    return Routes(
        routes.places, b.elementwise([w, total], w.dtype, lambda v, t: (t == 0).select(t, v / t))
    )


def mixed(b: Builder, x: Value, routes: Routes, experts: int, expert: Expert) -> Value:
    """`sum over j of weights[t, j] * expert(x[t], places[t, j])` for rows x [T, D].

    The numbers of a row's experts differ from each other.
    """
    total = Value(x.dtype, x.dims, ssa=b.full(x.dtype, x.dims, 0))
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    for number in range(experts):
        total = _added(b, total, source, routes, number, expert)
    return total


def _added(
    b: Builder, total: Value, x: Value, routes: Routes, number: int, expert: Expert
) -> Value:
    """`total` after an expert's rows are added."""
    sent, share = _of_expert(b, routes, number)
    places, count = positions(b, sent)
    places = Value(places.dtype, places.dims, ssa=b.tensor(places))
    share = Value(share.dtype, share.dims, ssa=b.tensor(share))

    def row(at: list[Scalar]) -> Scalar:
        return b.read(x, [b.read(places, at[:1]).cast(INDEX), at[1]])

    y = expert(b.tabulate([count, x.dims[1]], x.dtype, row), number)
    made = Value(y.dtype, y.dims, ssa=b.tensor(y))

    def weighted(at: list[Scalar]) -> Scalar:
        return b.read(made, at) * b.read(share, [b.read(places, at[:1]).cast(INDEX)])

    updates = b.tabulate([count, x.dims[1]], x.dtype, weighted)
    return scattered(b, total, reshape(b, places, [count, ONE]), updates, "addf")


def _of_expert(b: Builder, routes: Routes, number: int) -> tuple[Value, Value]:
    """Whether each row goes to an expert, and the weight of what it gives (0 if not)."""

    def share(place: Scalar, weight: Scalar, found: Scalar, total: Scalar) -> list[Scalar]:
        here = place == number
        return [found | here, total + here.select(weight, weight.like(0))]

    weights = routes.weights
    sent, total = b.reduce(
        [routes.places, weights], [1], [(BOOL, False), (weights.dtype, 0)], share
    )
    return sent, total


def halves(b: Builder, x: Value, *, interleaved: bool) -> tuple[Value, Value]:
    """Two tensors [R, N] of columns of one [R, 2 N]: every other one, or one half each."""
    size = x.dims[1] // 2
    if interleaved:
        pairs = reshape(b, x, [x.dims[0], size, Dim.of(2)])
        parts = [slice_axis(b, pairs, 2, i, 1) for i in range(2)]
        first, second = (reshape(b, part, [x.dims[0], size]) for part in parts)
        return first, second
    return slice_axis(b, x, 1, 0, size), slice_axis(b, x, 1, size, size)
