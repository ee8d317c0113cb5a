"""Reduce*: one number of the elements along some axes, or along all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from abqc.dialects.mlir import ir

from ..building.emit import Builder
from ..building.scalars import Number, Scalar
from ..building.shaping import reshape
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import F64, ElementType
from ..values.symbolic import ONE, Dim, product
from ..values.value import Value
from .shape import kept_dims, run_time_axes


def _same(x: Scalar) -> Scalar:
    return x


@dataclass(frozen=True)
class Reduction:
    """`after` of the `combine`d `before` of the elements, beginning with `start`.

    `in_floats`: integers are reduced as f64, because `before` or `after` is a function of floats.
    """

    start: Callable[[ElementType], Number]
    combine: Callable[[Scalar, Scalar], Scalar]
    before: Callable[[Scalar], Scalar] = _same
    after: Callable[[Scalar], Scalar] = _same
    in_floats: bool = False
    content: Callable[[Dim, Dim], Dim] | None = None


def _zero(dtype: ElementType) -> Number:
    return 0


def _lowest(dtype: ElementType) -> Number:
    return -math.inf if dtype.is_float else dtype.limits[0]


def _highest(dtype: ElementType) -> Number:
    return math.inf if dtype.is_float else dtype.limits[1]


def _sum(x: Scalar, total: Scalar) -> Scalar:
    return total + x


SUM = Reduction(_zero, _sum, content=lambda a, b: a + b)
MAX = Reduction(_lowest, lambda x, m: m.maximum(x), content=symbolic.maximum)
MIN = Reduction(_highest, lambda x, m: m.minimum(x), content=symbolic.minimum)

REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": SUM,
    "ReduceMax": MAX,
    "ReduceMin": MIN,
    "ReduceProd": Reduction(lambda dtype: 1, lambda x, p: p * x, content=lambda a, b: a * b),
    "ReduceSumSquare": Reduction(_zero, _sum, before=lambda x: x * x),
    "ReduceL1": Reduction(_zero, _sum, before=lambda x: x.abs()),
    "ReduceL2": Reduction(_zero, _sum, lambda x: x * x, lambda s: s.sqrt(), in_floats=True),
    "ReduceLogSum": Reduction(_zero, _sum, after=lambda s: s.log(), in_floats=True),
}


def _register(op_type: str, reduction: Reduction) -> None:
    @lowers(op_type)
    def lower(node: Node) -> Value:
        x = node.input(0)
        return _content(node, x, reduction) or reduced(node, x, reduction)


for _op_type, _reduction in REDUCTIONS.items():
    _register(_op_type, _reduction)


@lowers("ReduceMean")
def reduce_mean(node: Node) -> Value:
    x = node.input(0)
    total = reduced(node, x, SUM)
    count = _count(node, x, total)
    number = count.value
    if number:
        return node.b.elementwise([total], x.dtype, lambda s: s / s.like(number))
    divisor = node.b.scalar(count)
    if not x.dtype.is_float:  # an integer is not divided by 0
        divisor = divisor.maximum(1)
    parts = divisor.cast(x.dtype)
    return node.b.elementwise([total], x.dtype, lambda s: s / parts)


def _count(node: Node, x: Value, total: Value) -> Dim:
    """How many elements each element of the result is of."""
    axes = static_axes(node, x)
    if axes is not None:
        return product(x.dims[axis] for axis in axes)
    flags = reduced_flags(node, x)
    return product(symbolic.select(flag, dim, ONE) for flag, dim in zip(flags, x.dims, strict=True))


@lowers("ReduceLogSumExp")
def reduce_log_sum_exp(node: Node) -> Value:
    """`log(sum(exp(x - m))) + m` with the maximum m, that exp may not overflow."""
    x, b = node.input(0), node.b
    dtype = x.dtype if x.dtype.is_float else F64
    values = x if x.dtype.is_float else b.elementwise([x], F64, lambda v: v.cast(F64))
    largest = reduced(node, values, MAX, keepdims=True)
    shift = b.elementwise([largest], dtype, lambda m: m.is_infinite().select(m.like(0.0), m))
    powers = b.elementwise([values, shift], dtype, lambda v, m: (v - m).exp())
    total = reduced(node, powers, SUM, keepdims=True)
    result = b.elementwise([total, shift], x.dtype, lambda s, m: (s.log() + m).cast(x.dtype))
    return result if _keeps(node) else reshape(b, result, _without_kept(node, x, result))


def reduced(node: Node, x: Value, reduction: Reduction, *, keepdims: bool | None = None) -> Value:
    """The reduction of `x` along the node's axes."""
    b = node.b
    working = F64 if reduction.in_floats and not x.dtype.is_float else x.dtype
    keep = _keeps(node) if keepdims is None else keepdims
    axes = static_axes(node, x)
    start = reduction.start(working)

    def combine(element: Scalar, total: Scalar) -> list[Scalar]:
        return [reduction.combine(reduction.before(element.cast(working)), total)]

    if axes is not None:
        (result,) = b.reduce([x], axes, [(working, start)], combine, keepdims=keep)
    else:
        result = _along_unknown_axes(node, x, working, start, combine)
        if not keep:
            result = reshape(b, result, _without_kept(node, x, result))
    if reduction.after is _same and working == x.dtype:
        return result
    return b.elementwise([result], x.dtype, lambda v: reduction.after(v).cast(x.dtype))


def _keeps(node: Node) -> bool:
    return bool(node.int("keepdims", 1))


# Axes


def static_axes(node: Node, x: Value) -> list[int] | None:
    """The axes to reduce, not negative and in order; None if only a run knows them."""
    if node.has("axes"):
        wanted: Sequence[int | None] | None = node.ints("axes")
    else:
        dims = node.dims_of(1)
        wanted = None if dims is None else [dim.value for dim in dims]
    if not wanted:
        return [] if node.int("noop_with_empty_axes", 0) else list(range(x.rank))
    known = [axis for axis in wanted if axis is not None]
    if len(known) < len(wanted):
        return None
    return sorted({node.counted(axis, x.rank) for axis in known})


def reduced_flags(node: Node, x: Value) -> list[Dim]:
    """For each axis whether (1 or 0) it is reduced, where a run gives the axes."""
    return run_time_axes(node, node.dims_of(1) or [], x.rank)


def _along_unknown_axes(
    node: Node,
    x: Value,
    dtype: ElementType,
    start: Number,
    combine: Callable[[Scalar, Scalar], list[Scalar]],
) -> Value:
    """With two loops for each axis, one over what is kept and one over what is reduced.

    One of the two has a single turn, so their sum is the place in `x`.
    """
    b, rank = node.b, x.rank
    flags = reduced_flags(node, x)
    kept = [symbolic.select(flag, ONE, dim) for flag, dim in zip(flags, x.dims, strict=True)]
    summed = [symbolic.select(flag, dim, ONE) for flag, dim in zip(flags, x.dims, strict=True)]
    d = [ir.AffineDimExpr.get(i) for i in range(2 * rank)]
    maps = [
        ir.AffineMap.get(2 * rank, 0, [d[i] + d[rank + i] for i in range(rank)]),
        ir.AffineMap.get(2 * rank, 0, d[rank:]),
        ir.AffineMap.get(2 * rank, 0, d[:rank]),
    ]
    loops = b.empty(dtype, summed)  # gives the loops their sizes, nothing reads it

    def body(element: ir.Value, _: ir.Value, total: ir.Value) -> list[ir.Value]:
        return [combine(Scalar(element, x.dtype), Scalar(total, dtype))[0].ssa]

    out = b.full(dtype, kept, start)
    (ssa,) = b.structured([b.tensor(x), loops], [out], maps, [True] * rank + [False] * rank, body)
    return Value(dtype, tuple(kept), ssa=ssa)


def _without_kept(node: Node, x: Value, result: Value) -> list[Dim]:
    """The dims of a result that has sizes of 1 along the reduced axes, without these."""
    axes = static_axes(node, x)
    if axes is not None:
        return [dim for axis, dim in enumerate(result.dims) if axis not in axes]
    count = x.rank - len(node.dims_of(1) or [])
    return kept_dims(reduced_flags(node, x), x.dims, count)


# Shape tensors


def _content(node: Node, x: Value, reduction: Reduction) -> Value | None:
    """All elements of a shape tensor reduced to one."""
    if reduction.content is None or x.content is None or x.rank != 1 or not x.content:
        return None
    if static_axes(node, x) != [0] or x.dtype.is_bool:
        return None
    total = reduce(reduction.content, x.content)
    return node.b.content([total], x.dtype, [1] if _keeps(node) else [])


def summed(b: Builder, x: Value, axes: Sequence[int], *, keepdims: bool = False) -> Value:
    """The sum along axes that are known."""
    (result,) = b.reduce([x], axes, [(x.dtype, 0)], lambda v, t: [t + v], keepdims=keepdims)
    return result
