"""Resizing along one axis: which elements each output element is made of, and with which weights.

As ONNX's Resize defines it, in f32. What depends on the output's position along the axis alone is
computed once, into tables of taps x positions, and then used for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..building.shaping import reshape
from ..values import symbolic
from ..values.element_types import BOOL, F32, I64, INDEX
from ..values.symbolic import Dim
from ..values.value import Value
from .sliding import sum_over


@dataclass(frozen=True, eq=False)
class ResizedAxis:
    """`scale` is what the model says, or out / size; `factor` is it where known before a run.

    `length` is the output's size before it was rounded. `roi` are begin and end as fractions of
    the input, of tf_crop_and_resize alone.
    """

    axis: int
    size: Dim
    out: Dim
    scale: Scalar
    length: Scalar
    factor: float | None
    roi: tuple[Scalar, Scalar] | None = None


@dataclass(frozen=True)
class Filter:
    """How elements are weighted: attributes of Resize by their names there, `mode` not nearest."""

    mode: str
    transformation: str
    antialias: bool = False
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False

    @property
    def support(self) -> int:
        """Elements to each side that have a weight, where the scale is 1 or more."""
        return 2 if self.mode == "cubic" else 1


def coordinate(b: Builder, axis: ResizedAxis, transformation: str, position: Scalar) -> Scalar:
    """Where in the input the output's `position` along `axis` lies; both f32."""
    size = b.scalar(axis.size).cast(F32)
    if transformation == "asymmetric":
        return position / axis.scale
    if transformation == "align_corners":
        place = position * (size - 1.0) / (axis.length - 1.0)
        return (axis.length == 1.0).select(position.like(0.0), place)
    if transformation == "tf_half_pixel_for_nn":
        return (position + 0.5) / axis.scale
    half_pixel = (position + 0.5) / axis.scale - 0.5
    if transformation == "pytorch_half_pixel":
        return (b.scalar(axis.out) > 1).select(half_pixel, 0.0)
    if transformation == "half_pixel_symmetric":
        adjustment = b.scalar(axis.out).cast(F32) / axis.length
        return size * 0.5 * (1.0 - adjustment) + half_pixel
    if transformation == "tf_crop_and_resize":
        assert axis.roi is not None
        begin, end = axis.roi
        single = (begin + end) * (size - 1.0) * 0.5
        step = (end - begin) * (size - 1.0) / (axis.length - 1.0)
        return (axis.length == 1.0).select(single, begin * (size - 1.0) + position * step)
    assert transformation == "half_pixel"
    return half_pixel


def inside(b: Builder, axis: ResizedAxis, place: Scalar) -> Scalar:
    """The element at an i64 place, the first or last one instead of those beyond them."""
    last = b.scalar(axis.size).cast(I64) - 1
    return place.minimum(last).maximum(0)


def interpolate(b: Builder, x: Value, axis: ResizedAxis, how: Filter) -> Value:
    """`x`, of floats, resized along one axis."""
    taps, first = _taps(b, axis, how)
    places, weights = _tables(b, axis, how, taps, first)
    return _weighted(b, x, axis, places, weights)


def extrapolated(b: Builder, y: Value, axis: ResizedAxis, number: float) -> Value:
    """`number` at the positions along an axis that lie beyond the input (tf_crop_and_resize)."""

    def flag(at: list[Scalar]) -> Scalar:
        place = coordinate(b, axis, "tf_crop_and_resize", at[0].cast(F32))
        return (place < 0.0) | (place > b.scalar(axis.size).cast(F32) - 1.0)

    flags = b.tabulate([axis.out], BOOL, flag)
    wide = reshape(b, flags, [axis.out, *[symbolic.ONE] * (y.rank - 1 - axis.axis)])
    return b.elementwise([y, wide], y.dtype, lambda v, out: out.select(v.like(number), v))


def _place(b: Builder, axis: ResizedAxis, how: Filter, index: Scalar) -> Scalar:
    return coordinate(b, axis, how.transformation, index.cast(F32))


def _taps(b: Builder, axis: ResizedAxis, how: Filter) -> tuple[Dim, Scalar]:
    """How many elements make one, and where the first is relative to the coordinate's floor."""
    support = how.support
    if not how.antialias:
        return Dim.of(2 * support), const(1 - support, I64)
    if axis.factor is not None:
        first = floor(-support / min(axis.factor, 1.0)) + 1
        return Dim.of(2 - 2 * first), const(first, I64)
    shrunk = axis.scale.minimum(1.0)
    first_scalar = ((-float(support)) / shrunk).floor().cast(I64) + 1
    return b.run_time(2 - first_scalar * 2), first_scalar


def _tables(
    b: Builder, axis: ResizedAxis, how: Filter, taps: Dim, first: Scalar
) -> tuple[Value, Value]:
    """Elements (i64) and their weights (f32), each taps x out."""
    dims = [taps, axis.out]

    def places(at: list[Scalar]) -> Scalar:
        return _place(b, axis, how, at[1]).floor().cast(I64) + first + at[0].cast(I64)

    def weight(at: list[Scalar]) -> Scalar:
        place, element = _place(b, axis, how, at[1]), places(at)
        distance = (element.cast(F32) - place).abs()
        if how.antialias:
            distance = distance * axis.scale.minimum(1.0)
        value = _kernel(how, distance)
        if how.exclude_outside:
            legal = (element >= 0) & (element < b.scalar(axis.size).cast(I64))
            value = legal.select(value, 0.0)
        return value

    elements = b.tabulate(dims, I64, lambda at: inside(b, axis, places(at)))
    weights = b.tabulate(dims, F32, weight)
    if how.antialias or how.exclude_outside:
        (total,) = b.reduce([weights], [0], [(F32, 0)], lambda v, sum_: [v + sum_])
        weights = b.elementwise(
            [weights, total], F32, lambda w, t: w / (t == 0.0).select(t.like(1.0), t)
        )
    return elements, weights


def _kernel(how: Filter, distance: Scalar) -> Scalar:
    """The weight of an element at a distance that is not negative."""
    if how.mode == "linear":
        return (1.0 - distance).maximum(0.0)
    a, x = how.cubic_coeff_a, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1.0
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return (x <= 1.0).select(near, (x < 2.0).select(far, 0.0))


def _weighted(b: Builder, x: Value, axis: ResizedAxis, places: Value, weights: Value) -> Value:
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    at = axis.axis
    dims = (*x.dims[:at], axis.out, *x.dims[at + 1 :])
    taps = places.dims[0]

    def term(indices: Sequence[Scalar], tap: Scalar) -> Scalar:
        entry = [tap, indices[at]]
        place = b.read(places, entry).cast(INDEX)
        element = b.read(source, [*indices[:at], place, *indices[at + 1 :]])
        return element * b.read(weights, entry).cast(x.dtype)

    if taps.value is not None and taps.value <= 4:
        count = taps.value

        def unrolled(indices: list[Scalar]) -> Scalar:
            total = term(indices, const(0, INDEX))
            for tap in range(1, count):
                total = total + term(indices, const(tap, INDEX))
            return total

        return b.tabulate(dims, x.dtype, unrolled)
    return sum_over(b, dims, [taps], x.dtype, lambda indices, inner: term(indices, inner[0]))


# Nearest neighbours


def nearest(b: Builder, axis: ResizedAxis, transformation: str, rounding: str) -> Value:
    """The element (i64) that each position along an axis takes."""

    def element(at: list[Scalar]) -> Scalar:
        place = coordinate(b, axis, transformation, at[0].cast(F32))
        return inside(b, axis, _ROUNDINGS[rounding](place).cast(I64))

    return b.tabulate([axis.out], I64, element)


_ROUNDINGS = {
    "round_prefer_floor": lambda x: (x - 0.5).ceil(),
    "round_prefer_ceil": lambda x: (x + 0.5).floor(),
    "floor": lambda x: x.floor(),
    "ceil": lambda x: x.ceil(),
}

# Transformations and roundings with which position q * n + r of an axis n times as large takes
# element q for every r < n.
_REPEATS = {
    ("asymmetric", "floor"), ("tf_half_pixel_for_nn", "floor"),
    *((transformation, rounding)
      for transformation in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
      for rounding in ("round_prefer_floor", "round_prefer_ceil")),
}  # fmt: skip


def repeats(axis: ResizedAxis, transformation: str, rounding: str) -> int | None:
    """n where each element of an axis is taken n times in a row, else None."""
    if (transformation, rounding) not in _REPEATS or axis.factor is None:
        return None
    count = int(axis.factor)
    return count if count >= 1 and axis.factor == count and axis.out == axis.size * count else None


def rounded_product(size: Dim, scale: float) -> Dim | None:
    """floor(size * scale) in f32, as onnx infers it; None where no polynomial says it."""
    if size.value is not None:
        return Dim.of(int(np.floor(np.float32(size.value) * np.float32(scale))))
    numerator, denominator = float(scale).as_integer_ratio()
    # Of fractions with few bits the product is exact.
    if denominator > 64 or abs(numerator) > 4096:
        return None
    return (size * numerator) // denominator
