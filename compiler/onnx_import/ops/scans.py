"""CumSum, CumProd: running sums and products along an axis."""

from __future__ import annotations

from collections.abc import Callable

from abqc.dialects.mlir import ir

from ..building.emit import Builder
from ..building.scalars import Number, Scalar
from ..registry import Node, lowers
from ..values.symbolic import Dim
from ..values.value import Value
from .shape import run_time_axes


@lowers("CumSum")
def cum_sum(node: Node) -> Value:
    return _cumulated(node, 0, lambda total, x: total + x)


@lowers("CumProd")
def cum_prod(node: Node) -> Value:
    return _cumulated(node, 1, lambda total, x: total * x)


def _cumulated(node: Node, start: Number, combine: Callable[[Scalar, Scalar], Scalar]) -> Value:
    x, b = node.input(0), node.b
    exclusive, reverse = bool(node.int("exclusive", 0)), bool(node.int("reverse", 0))
    (axis,) = node.dims_of(1) or [Dim.of(0)]
    number = axis.value
    if number is not None:
        at = node.counted(number, x.rank)
        return cumulated(b, x, at, start, combine, exclusive=exclusive, reverse=reverse)
    # Which axis is known to a run: one of all results is chosen.
    flags = run_time_axes(node, [axis], x.rank)
    result = x
    for at, flag in enumerate(flags):
        other = cumulated(b, x, at, start, combine, exclusive=exclusive, reverse=reverse)
        here = b.truth(flag)
        result = b.elementwise([other, result], x.dtype, lambda a, c, here=here: here.select(a, c))
    return result


def cumulated(
    b: Builder,
    x: Value,
    axis: int,
    start: Number,
    combine: Callable[[Scalar, Scalar], Scalar],
    *,
    exclusive: bool = False,
    reverse: bool = False,
) -> Value:
    """`y[i] = combine(y[i - 1], x[i])` along `axis`, beginning with `start`.

    `exclusive`: `y[i]` is without `x[i]`; `reverse`: from the end to the front. One loop that goes
    along the axis in order, as reductions do, with the total so far as its second result.
    """
    source = turned(b, x, axis) if reverse else x
    rank = x.rank
    identity = ir.AffineMap.get_identity(rank)
    kept = [ir.AffineDimExpr.get(at) for at in range(rank) if at != axis]
    total = b.full(x.dtype, [dim for at, dim in enumerate(x.dims) if at != axis], start)

    def body(element: ir.Value, _: ir.Value, so_far: ir.Value) -> list[ir.Value]:
        before = Scalar(so_far, x.dtype)
        after = combine(before, Scalar(element, x.dtype))
        return [(before if exclusive else after).ssa, after.ssa]

    result, _ = b.structured(
        [b.tensor(source)],
        [b.empty(x.dtype, x.dims), total],
        [identity, identity, ir.AffineMap.get(rank, 0, kept)],
        [at != axis for at in range(rank)],
        body,
    )
    y = Value(x.dtype, x.dims, ssa=result)
    return turned(b, y, axis) if reverse else y


def turned(b: Builder, x: Value, axis: int) -> Value:
    """From the last element along `axis` to the first."""
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    last = b.scalar(x.dims[axis] - 1)
    return b.tabulate(
        x.dims,
        x.dtype,
        lambda at: b.read(source, [*at[:axis], last - at[axis], *at[axis + 1 :]]),
    )
