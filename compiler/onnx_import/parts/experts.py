"""A mixture of experts: each row of a tensor goes through a few of many small networks.

Each expert multiplies the rows that were sent to it and no others: how many these are is known to a
run, so that its products have a size of their own, which may be 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from abqc.dialects.mlir import ir, linalg

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..building.shaping import concat, reshape, slice_axis
from ..ops.selection import first_of_order, scattered_back
from ..values.element_types import I64, INDEX
from ..values.symbolic import Dim
from ..values.value import Value

# An expert's network: rows [R, D] and its number to rows [R, D].
Expert = Callable[[Value, int], Value]


@dataclass(frozen=True)
class SwiGlu:
    """`g * sigmoid(alpha * g) * (l + beta)` of a gate and a linear part, both cut at `limit`.

    `cut_behind`: it is the product `g * sigmoid(alpha * g)` that is cut, not g.
    """

    alpha: float
    beta: float
    limit: float
    cut_behind: bool = False

    def __call__(self, gate: Scalar, linear: Scalar) -> Scalar:
        is_cut = math.isfinite(self.limit)
        if is_cut:
            linear = linear.clamp(-self.limit, self.limit)
        if is_cut and not self.cut_behind:
            gate = gate.minimum(self.limit)
        activated = gate * (gate * self.alpha).sigmoid()
        if is_cut and self.cut_behind:
            activated = activated.minimum(self.limit)
        return activated * (linear + self.beta)


@dataclass(frozen=True)
class Routes:
    """Which experts the rows go to: their numbers and the weights of what they give, [T, k]."""

    places: Value
    weights: Value


def best_routes(b: Builder, scores: Value, k: int) -> Routes:
    """The k experts of the highest scores, [T, E]; the scores are their weights."""
    values, places = first_of_order(b, scores, 1, Dim.of(k), largest=True)
    return Routes(places, values)


def sparse_mixer(b: Builder, scores: Value, jitter: float = 0.01) -> Routes:
    """The two best experts, each with its share among those that come close to it.

    The weight of an expert of score m is `exp(m) / sum of exp(s)` over the scores s with
    `m - s <= 2 * jitter * max(|s|, m)`, for the second expert without the first (Liu et al.,
    "GRIN: GRadient-INformed MoE", 2024).
    """
    values, places = first_of_order(b, scores, 1, Dim.of(2), largest=True)
    first = slice_axis(b, places, 1, 0, 1)
    numbers = b.tabulate([scores.dims[1]], I64, lambda at: at[0].cast(I64))
    weights = []
    for j in range(2):
        top = slice_axis(b, values, 1, j, 1)

        def term(score: Scalar, best: Scalar, number: Scalar, taken: Scalar, j: int = j) -> Scalar:
            near = best - score <= score.abs().maximum(best) * (2 * jitter)
            if j:
                near = near & (number != taken)
            return near.select((score - best).exp(), 0.0)

        terms = b.elementwise([scores, top, numbers, first], scores.dtype, term)
        (total,) = b.reduce([terms], [1], [(terms.dtype, 0)], lambda v, t: [t + v], keepdims=True)
        weights.append(b.elementwise([total], total.dtype, lambda t: 1.0 / t))
    return Routes(places, concat(b, weights, 1))


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

    The rows are copied into the order of their experts, so that each expert has a run of them;
    what the experts give is read back from where it lies.
    """
    count = routes.places.dims[1].value
    assert count is not None  # an attribute says it
    total = x.dims[0] * count
    places = reshape(b, routes.places, [total])
    _, order = first_of_order(b, places, 0, total, largest=False)
    order = Value(order.dtype, order.dims, ssa=b.tensor(order))
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))

    def row(at: list[Scalar]) -> Scalar:
        return b.read(source, [b.read(order, at[:1]).cast(INDEX) // count, at[1]])

    rows = b.tabulate([total, x.dims[1]], x.dtype, row)
    begins = _begins(b, places, experts)
    made = [
        expert(slice_axis(b, rows, 0, begin, end - begin), number)
        for number, (begin, end) in enumerate(pairwise(begins))
    ]
    given = concat(b, made, 0)
    numbers = b.tabulate([total], I64, lambda at: at[0].cast(I64))
    rank = reshape(b, scattered_back(b, order, numbers), [x.dims[0], count])  # where a row lies
    given, rank, weights = (
        Value(v.dtype, v.dims, ssa=b.tensor(v)) for v in (given, rank, routes.weights)
    )

    def summed(at: list[Scalar]) -> Scalar:
        result = const(0.0, x.dtype)
        for j in range(count):
            route = [at[0], const(j, INDEX)]
            value = b.read(given, [b.read(rank, route).cast(INDEX), at[1]])
            result = result + value * b.read(weights, route)
        return result

    return b.tabulate(x.dims, x.dtype, summed)


def _begins(b: Builder, places: Value, experts: int) -> list[Dim]:
    """How many routes go to experts before each, and how many there are."""
    number, route = (ir.AffineDimExpr.get(i) for i in range(2))
    maps = [ir.AffineMap.get(2, 0, at) for at in ([route], [number])]
    dims = (Dim.of(experts),)

    def body(place: ir.Value, so_far: ir.Value) -> list[ir.Value]:
        before = Scalar(place, places.dtype) < Scalar(linalg.IndexOp(0).result, INDEX).cast(I64)
        return [(Scalar(so_far, I64) + before.cast(I64)).ssa]

    (counts,) = b.structured([b.tensor(places)], [b.full(I64, dims, 0)], maps, [True, False], body)
    before = Value(I64, dims, ssa=counts)
    return [*(b.run_time(b.item(before, e)) for e in range(experts)), places.dims[0]]


def halves(b: Builder, x: Value, *, interleaved: bool) -> tuple[Value, Value]:
    """Two tensors [R, N] of columns of one [R, 2 N]: every other one, or one half each."""
    size = x.dims[1] // 2
    if interleaved:
        pairs = reshape(b, x, [x.dims[0], size, Dim.of(2)])
        parts = [slice_axis(b, pairs, 2, i, 1) for i in range(2)]
        first, second = (reshape(b, part, [x.dims[0], size]) for part in parts)
        return first, second
    return slice_axis(b, x, 1, 0, size), slice_axis(b, x, 1, size, size)
