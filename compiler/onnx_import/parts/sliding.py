"""Windows that slide over the spatial axes of a tensor: sizes, padding, loops over them.

What convolutions and pools share. A tensor is B x C x spatial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from abqc.dialects.mlir import ir, linalg, tensor

from ..building.emit import Builder
from ..building.scalars import Number, Scalar
from ..building.shaping import pad
from ..registry import Node
from ..values import symbolic
from ..values.element_types import F32, INDEX, ElementType
from ..values.symbolic import Dim
from ..values.value import Value


@dataclass(frozen=True)
class Windows:
    """One entry of each field for every spatial axis; `sizes` are the input's, `outs` the result's.

    `ends` is what the model says; with ceil_mode the last window may reach beyond it.
    """

    sizes: tuple[Dim, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[Dim, ...]
    ends: tuple[Dim, ...]
    outs: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements from a window's first to its last."""
        return reach_of(self.kernel, self.dilations)

    @property
    def count(self) -> int:
        """Elements that a window has."""
        return prod(self.kernel)

    @property
    def static_pads(self) -> list[int] | None:
        """Begins, then ends, where all are known and none takes elements away."""
        pads = [dim.value for dim in (*self.begins, *self.ends)]
        known = [number for number in pads if number is not None and number >= 0]
        return known if len(known) == len(pads) else None

    @property
    def last(self) -> tuple[Dim, ...]:
        """What must be added at the end so that every window lies inside."""
        return tuple(
            symbolic.maximum(end, (out - 1) * stride + reach - size - begin)
            for out, stride, reach, size, begin, end in zip(
                self.outs, self.strides, self.reach, self.sizes, self.begins, self.ends,
                strict=True,
            )
        )  # fmt: skip

    @property
    def is_padded(self) -> bool:
        return any(amount != symbolic.ZERO for amount in (*self.begins, *self.last))


def reach_of(kernel: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))


def windows_of(node: Node, x: Value, kernel: Sequence[int]) -> Windows:
    """The windows that a node's attributes describe. Raises ModelError where they do not fit."""
    rank = len(kernel)
    if x.rank != rank + 2:
        raise node.error(f"its window has {rank} axes, the input is {x}: expected {rank + 2} axes")
    strides = per_axis(node, "strides", rank)
    dilations = per_axis(node, "dilations", rank)
    if min((*kernel, *strides, *dilations), default=1) < 1:
        raise node.error("window, strides and dilations must be positive")
    sizes, reach = x.dims[2:], reach_of(kernel, dilations)
    mode = auto_pad(node)
    if mode.startswith("SAME"):
        outs = tuple(
            symbolic.ceildiv(size, stride) for size, stride in zip(sizes, strides, strict=True)
        )
        begins, ends = _same_pads(sizes, outs, strides, reach, upper=mode == "SAME_UPPER")
    else:
        low, high = explicit_pads(node, rank) if mode == "NOTSET" else ([0] * rank, [0] * rank)
        ceil = bool(node.int("ceil_mode", 0))
        outs = tuple(
            _out_size(node, size, begin, end, stride, extent, ceil=ceil)
            for size, begin, end, stride, extent in zip(
                sizes, low, high, strides, reach, strict=True
            )
        )
        begins, ends = list(map(Dim.of, low)), list(map(Dim.of, high))
    return Windows(
        sizes, tuple(kernel), tuple(strides), tuple(dilations),
        tuple(begins), tuple(ends), outs,
    )  # fmt: skip


def auto_pad(node: Node) -> str:
    return node.choice("auto_pad", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def per_axis(node: Node, name: str, rank: int, default: int = 1) -> list[int]:
    """An attribute of one integer for each spatial axis."""
    values = node.ints(name, []) or [default] * rank
    if len(values) != rank:
        raise node.error(f"attribute '{name}' is {values}, expected {rank} numbers")
    return values


def explicit_pads(node: Node, rank: int) -> tuple[list[int], list[int]]:
    pads = per_axis(node, "pads", 2 * rank, default=0)
    return pads[:rank], pads[rank:]


def _out_size(
    node: Node, size: Dim, begin: int, end: int, stride: int, reach: int, *, ceil: bool
) -> Dim:
    whole = size + begin + end
    node.b.require(
        symbolic.negated(symbolic.is_less(whole, Dim.of(reach))),
        f"the input is smaller than the window: {size} with padding {begin} and {end}, the window "
        f"has {reach}",
    )
    if not ceil:
        return (whole - reach) // stride + 1
    # A window that would begin in the padding behind the input does not count.
    most = symbolic.ceildiv(size + begin, stride)
    return symbolic.minimum(symbolic.ceildiv(whole - reach, stride) + 1, most)


def _same_pads(
    sizes: Sequence[Dim],
    outs: Sequence[Dim],
    strides: Sequence[int],
    reach: Sequence[int],
    *,
    upper: bool,
) -> tuple[list[Dim], list[Dim]]:
    begins, ends = [], []
    for size, out, stride, extent in zip(sizes, outs, strides, reach, strict=True):
        total = symbolic.maximum((out - 1) * stride + extent - size, symbolic.ZERO)
        half = total // 2
        begins.append(half if upper else total - half)
        ends.append(total - begins[-1])
    return begins, ends


def padded(b: Builder, x: Value, windows: Windows, number: Number | Scalar) -> Value:
    """`x` surrounded by `number`, so that every window lies inside."""
    zeros = [symbolic.ZERO] * 2
    return pad(b, x, [*zeros, *windows.begins], [*zeros, *windows.last], number)


# combine(element, positions, *accumulators) -> accumulators; `positions` makes the element's place
# in the input along each spatial axis, negative or beyond the end in the padding.
Combine = Callable[..., Sequence[Scalar]]
Init = tuple[ElementType, Number]


def reduce_windows(
    b: Builder, x: Value, windows: Windows, outside: Number, inits: Sequence[Init], combine: Combine
) -> list[Value]:
    """B x C x outs: what `combine` makes of each window, from `inits`.

    `outside` is what the padding around `x` holds.
    """
    rank = windows.rank
    source = padded(b, x, windows, outside)
    dims = (*x.dims[:2], *windows.outs)
    d = [ir.AffineDimExpr.get(i) for i in range(2 + 2 * rank)]
    outs, window = d[2 : 2 + rank], d[2 + rank :]
    places = [
        o * stride + w * dilation
        for o, w, stride, dilation in zip(
            outs, window, windows.strides, windows.dilations, strict=True
        )
    ]
    maps = [
        ir.AffineMap.get(len(d), 0, [*d[:2], *places]),
        # Says how far the loops over the window go. It ends in an axis of size 1, so that the
        # innermost loop is the one over the result's last axis.
        ir.AffineMap.get(len(d), 0, [*window, ir.AffineConstantExpr.get(0)]),
        *[ir.AffineMap.get(len(d), 0, d[: 2 + rank])] * len(inits),
    ]
    extent = tensor.EmptyOp([*windows.kernel, 1], F32.inside()).result

    def positions() -> list[Scalar]:
        loops = [Scalar(linalg.IndexOp(i).result, INDEX) for i in range(2, 2 + 2 * rank)]
        return [
            o * stride + w * dilation - b.scalar(begin)
            for o, w, stride, dilation, begin in zip(
                loops[:rank], loops[rank:], windows.strides, windows.dilations, windows.begins,
                strict=True,
            )
        ]  # fmt: skip

    def body(element: ir.Value, _: ir.Value, *accumulators: ir.Value) -> list[ir.Value]:
        given = [Scalar(a, dtype) for a, (dtype, _) in zip(accumulators, inits, strict=True)]
        return [s.ssa for s in combine(Scalar(element, x.dtype), positions, *given)]

    for begin in windows.begins:
        b.index(begin)  # made before the loop
    made = b.structured(
        [b.tensor(source), extent],
        [b.full(dtype, dims, number) for dtype, number in inits],
        maps,
        [True] * (2 + rank) + [False] * rank,
        body,
    )
    return [Value(dtype, dims, ssa=ssa) for ssa, (dtype, _) in zip(made, inits, strict=True)]


def patches(b: Builder, x: Value, windows: Windows) -> Value:
    """B x C x kernel x outs: what every window sees of `x`, zeros around it."""
    rank = windows.rank
    source = padded(b, x, windows, 0)
    kernel = [Dim.of(size) for size in windows.kernel]
    dims = (*x.dims[:2], *kernel, *windows.outs)
    d = [ir.AffineDimExpr.get(i) for i in range(2 + 2 * rank)]
    places = [
        o * stride + w * dilation
        for w, o, stride, dilation in zip(
            d[2 : 2 + rank], d[2 + rank :], windows.strides, windows.dilations, strict=True
        )
    ]
    map_ = ir.AffineMap.get(len(d), 0, [*d[:2], *places])
    (ssa,) = b.generic(dims, [b.tensor(source)], [map_], [x.dtype], lambda element: [element])
    return Value(x.dtype, dims, ssa=ssa)


Term = Callable[[list[Scalar], list[Scalar]], Scalar]


def sum_over(
    b: Builder, dims: Sequence[Dim], extents: Sequence[Dim], dtype: ElementType, term: Term
) -> Value:
    """At each place of `dims` the sum of `term(place, inner)` over all `inner` below `extents`."""
    return reduce_over(b, dims, extents, dtype, term, start=0, combine=lambda v, total: v + total)


def reduce_over(
    b: Builder,
    dims: Sequence[Dim | int],
    extents: Sequence[Dim],
    dtype: ElementType,
    term: Term,
    *,
    start: Number,
    combine: Callable[[Scalar, Scalar], Scalar],
) -> Value:
    """As `sum_over`, with another beginning and another way to combine terms.

    The innermost loop is the one over the last axis of the result.
    """
    result = tuple(map(Dim.of, dims))
    outer, inner = len(result), len(extents)
    d = [ir.AffineDimExpr.get(i) for i in range(outer + inner)]
    extent = b.empty(F32, [*extents, symbolic.ONE])
    maps = [
        ir.AffineMap.get(len(d), 0, [*d[outer:], ir.AffineConstantExpr.get(0)]),
        ir.AffineMap.get(len(d), 0, d[:outer]),
    ]

    def body(_: ir.Value, total: ir.Value) -> list[ir.Value]:
        loops = [Scalar(linalg.IndexOp(i).result, INDEX) for i in range(len(d))]
        return [combine(term(loops[:outer], loops[outer:]), Scalar(total, dtype)).ssa]

    first = b.full(dtype, result, start)
    parallel = [True] * outer + [False] * inner
    (ssa,) = b.structured([extent], [first], maps, parallel, body)
    return Value(dtype, result, ssa=ssa)
