"""Pools: what is largest, the mean or a norm of windows or of whole images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..building.scalars import Number, Scalar, const
from ..building.shaping import pad, reshape
from ..parts.sliding import Windows, explicit_pads, per_axis, reduce_windows, windows_of
from ..registry import Node, lowers
from ..values import symbolic
from ..values.constants import from_array
from ..values.element_types import F32, I64, ElementType
from ..values.symbolic import ONE, Dim, product
from ..values.value import Value, constant_value
from .scatter import scattered


@lowers("MaxPool")
def max_pool(node: Node) -> list[Value]:
    x = node.input(0)
    windows = windows_of(node, x, node.ints("kernel_shape"))
    lowest = lowest_of(x.dtype)
    if not node.wants(1):
        return reduce_windows(
            node.b, x, windows, lowest, [(x.dtype, lowest)], lambda v, _, top: [v.maximum(top)]
        )
    return _max_pool_with_indices(node, x, windows, lowest)


def lowest_of(dtype: ElementType) -> Number:
    """What no element of the type is below."""
    return -math.inf if dtype.is_float else dtype.limits[0]


def _max_pool_with_indices(node: Node, x: Value, windows: Windows, lowest: Number) -> list[Value]:
    """The second result: where in the whole input each maximum is, the first one of equal ones.

    The place of an element of an image is counted in row-major order, or with storage_order 1 in
    column-major order.
    """
    b = node.b
    sizes = windows.sizes
    order = range(windows.rank) if node.int("storage_order", 0) else reversed(range(windows.rank))
    factors, step = {}, ONE
    for axis in order:
        factors[axis] = b.scalar(step)
        step = step * sizes[axis]
    ends = [b.scalar(size) for size in sizes]

    def combine(
        element: Scalar, positions: Callable[[], list[Scalar]], top: Scalar, where: Scalar
    ) -> Sequence[Scalar]:
        places = positions()
        better = (element > top) | (where < 0)
        if windows.is_padded:
            for place, end in zip(places, ends, strict=True):
                better = better & (place >= 0) & (place < end)
        at = const(0, places[0].dtype)
        for axis, place in enumerate(places):
            at = at + place * factors[axis]
        return better.select(element, top), better.select(at.cast(I64), where)

    top, where = reduce_windows(b, x, windows, lowest, [(x.dtype, lowest), (I64, -1)], combine)
    channels, image = x.dims[1], b.scalar(step)
    # The number of the image is added.
    numbers = b.tabulate(
        [x.dims[0], channels, *[ONE] * windows.rank],
        I64,
        lambda indices: ((indices[0] * b.scalar(channels) + indices[1]) * image).cast(I64),
    )
    return [top, b.elementwise([where, numbers], I64, lambda place, begin: place + begin)]


@lowers("AveragePool")
def average_pool(node: Node) -> Value:
    x, b = node.input(0), node.b
    windows = windows_of(node, x, node.ints("kernel_shape"))
    total = sum_windows(node, x, windows)
    counts = _counts(node, windows, include_pad=bool(node.int("count_include_pad", 0)))
    if all(count is None for count in counts):
        factor = 1.0 / windows.count
        return b.elementwise([total], x.dtype, lambda v: v * factor)
    lengths = [
        b.constant(float(k), F32) if count is None else count
        for k, count in zip(windows.kernel, counts, strict=True)
    ]

    def divided(sum_: Scalar, *sizes: Scalar) -> Scalar:
        whole = sizes[0]
        for size in sizes[1:]:
            whole = whole * size
        return sum_ / whole.cast(x.dtype)

    return b.elementwise([total, *lengths], x.dtype, divided)


def sum_windows(node: Node, x: Value, windows: Windows) -> Value:
    (total,) = reduce_windows(node.b, x, windows, 0, [(x.dtype, 0)], lambda v, _, sum_: [v + sum_])
    return total


def _counts(node: Node, windows: Windows, *, include_pad: bool) -> list[Value | None]:
    """For every axis how many elements the windows along it have, in f32; None: all the kernel's.

    A window's elements count where they lie in the input or, with `include_pad`, in the padding
    that the model asks for; never where ceil_mode lets it reach beyond that.
    """
    return [_counts_along(node, windows, axis, include_pad) for axis in range(windows.rank)]


def _counts_along(node: Node, windows: Windows, axis: int, include_pad: bool) -> Value | None:
    size, out = windows.sizes[axis], windows.outs[axis]
    begin, end = windows.begins[axis], windows.ends[axis]
    kernel, stride, dilation = (
        windows.kernel[axis], windows.strides[axis], windows.dilations[axis]
    )  # fmt: skip
    first, behind = (-begin, size + end) if include_pad else (symbolic.ZERO, size)
    unpadded = begin == symbolic.ZERO and windows.last[axis] == symbolic.ZERO
    if unpadded or (include_pad and windows.last[axis] == end):
        return None
    shape = [out, *[ONE] * (windows.rank - 1 - axis)]
    numbers = [dim.value for dim in (begin, first, behind, out)]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers):
        low, left, right, length = known
        places = (np.arange(length) * stride - low)[:, None] + np.arange(kernel) * dilation
        inside = ((places >= left) & (places < right)).sum(axis=1).astype(np.float32)
        constant = from_array(inside.reshape([dim.value or 0 for dim in shape]))
        return constant_value(constant, F32)
    b = node.b
    begins, lows, highs = b.scalar(begin), b.scalar(first), b.scalar(behind)

    def counted(indices: list[Scalar]) -> Scalar:
        start = indices[0] * stride - begins
        total = const(0.0, F32)
        for i in range(kernel):
            place = start + i * dilation
            total = total + ((place >= lows) & (place < highs)).select(const(1.0, F32), 0.0)
        return total

    return b.tabulate(shape, F32, counted)


@lowers("LpPool")
def lp_pool(node: Node) -> Value:
    x, p = node.input(0), lp_order(node)
    windows = windows_of(node, x, node.ints("kernel_shape"))
    (total,) = reduce_windows(
        node.b, x, windows, 0, [(x.dtype, 0)], lambda v, _, sum_: [power(v, p) + sum_]
    )
    return node.b.elementwise([total], x.dtype, lambda v: root(v, p))


def lp_order(node: Node) -> float:
    """The attribute `p`: a float at first, later an integer."""
    p = node.float("p", 2.0)
    if p <= 0:
        raise node.error(f"attribute 'p' is {p}, expected a positive number")
    return p


def power(x: Scalar, p: float) -> Scalar:
    """|x|^p"""
    if p == 1:
        return x.abs()
    return x * x if p == 2 else x.abs().power(x.like(p))


def root(x: Scalar, p: float) -> Scalar:
    if p == 1:
        return x
    return x.sqrt() if p == 2 else x.power(x.like(1.0 / p))


# Of whole images


def _over_images(
    node: Node, init: Number, combine: Callable[[Scalar, Scalar], Scalar]
) -> tuple[Value, Dim]:
    """B x C x 1...: an image reduced to one element; and how many it has."""
    x, b = node.input(0), node.b
    if x.rank < 3:
        raise node.error(f"it pools images, the input is {x}: expected three axes or more")
    count = product(x.dims[2:])
    rows = reshape(b, x, [*x.dims[:2], count])
    (total,) = b.reduce([rows], [2], [(x.dtype, init)], lambda v, sum_: [combine(v, sum_)])
    return reshape(b, total, [*x.dims[:2], *[ONE] * (x.rank - 2)]), count


@lowers("GlobalAveragePool")
def global_average_pool(node: Node) -> Value:
    total, count = _over_images(node, 0, lambda v, sum_: v + sum_)
    b = node.b
    if count.value:
        factor = 1.0 / count.value
        return b.elementwise([total], total.dtype, lambda v: v * factor)
    number = b.scalar(count).cast(total.dtype)
    return b.elementwise([total], total.dtype, lambda v: v / number)


@lowers("GlobalMaxPool")
def global_max_pool(node: Node) -> Value:
    lowest = lowest_of(node.input(0).dtype)
    return _over_images(node, lowest, lambda v, top: v.maximum(top))[0]


@lowers("GlobalLpPool")
def global_lp_pool(node: Node) -> Value:
    p = lp_order(node)
    total, _ = _over_images(node, 0, lambda v, sum_: power(v, p) + sum_)
    return node.b.elementwise([total], total.dtype, lambda v: root(v, p))


@lowers("MaxUnpool")
def max_unpool(node: Node) -> Value:
    """Elements put back where MaxPool took them from, zeros elsewhere.

    The places (input 1) are counted in the image that the window's attributes give; another
    output_shape cuts it or fills it up at the end of each axis.
    """
    x, places, b = node.input(0), node.input(1), node.b
    kernel = node.ints("kernel_shape")
    rank = len(kernel)
    if x.rank != rank + 2 or places.rank != x.rank:
        raise node.error(f"its inputs are {x} and {places}, its window has {rank} axes")
    for size, own in zip(x.dims, places.dims, strict=True):
        b.require_equal(size, own, f"{x} and its places {places} differ in shape")
    strides, (begins, ends) = per_axis(node, "strides", rank), explicit_pads(node, rank)
    image = [
        (size - 1) * stride + extent - begin - end
        for size, stride, extent, begin, end in zip(
            x.dims[2:], strides, kernel, begins, ends, strict=True
        )
    ]
    dims = (*x.dims[:2], *image)
    whole, count = product(dims), product(x.dims)
    end = b.scalar(whole).cast(I64)

    def checked(place: Scalar) -> Scalar:
        legal = (place >= 0) & (place < end)
        b.check(legal, "a place is outside of the image")
        return legal.select(place, -1)  # changes nothing

    indices = reshape(b, b.elementwise([places], I64, checked), [count, ONE])
    zeros = Value(x.dtype, (whole,), ssa=b.full(x.dtype, [whole], 0))
    y = reshape(b, scattered(b, zeros, indices, reshape(b, x, [count])), dims)
    wanted = node.dims_of(2)
    if wanted is None:
        return y
    if len(wanted) != x.rank:
        raise node.error(f"its output_shape has {len(wanted)} axes, expected {x.rank}")
    return pad(b, y, [0] * x.rank, [out - size for out, size in zip(wanted, dims, strict=True)])
