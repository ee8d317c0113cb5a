"""Resize and the older Upsample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..building.shaping import expand, reshape
from ..parts.interpolation import (
    Filter,
    ResizedAxis,
    extrapolated,
    interpolate,
    nearest,
    repeats,
    rounded_product,
)
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import F32, INDEX, ElementType
from ..values.symbolic import ONE, Dim
from ..values.value import Value

TRANSFORMATIONS = (
    "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric",
    "tf_half_pixel_for_nn", "tf_crop_and_resize",
)  # fmt: skip


@lowers("Upsample")
def upsample(node: Node) -> Value:
    """Until opset 9; as Resize with asymmetric coordinates, rounded down."""
    x = node.input(0)
    mode = node.choice("mode", "nearest", "linear", "bilinear")
    if node.given(1):
        scales = _scalars(node, 1)
    elif node.has("scales"):
        scales = list(node.floats("scales"))
    else:
        scales = [1.0, 1.0, node.float("height_scale"), node.float("width_scale")]
    axes = _axes_by_scale(node, x, list(range(x.rank)), scales)
    return _resized(node, x, axes, mode, "asymmetric", "floor")


@lowers("Resize")
def resize_10(node: Node) -> Value:
    """Of opset 10: as Upsample, but a smaller result takes nearest elements rounded up."""
    x = node.input(0)
    mode = node.choice("mode", "nearest", "linear", "bilinear")
    scales = _scalars(node, 1)
    axes = _axes_by_scale(node, x, list(range(x.rank)), scales)
    shrinks = any(isinstance(scale, float) and scale < 1 for scale in scales)
    return _resized(node, x, axes, mode, "asymmetric", "ceil" if shrinks else "floor")


@lowers("Resize", since=11)
def resize(node: Node) -> Value:
    x = node.input(0)
    mode = node.choice("mode", "nearest", "linear", "cubic")
    transformation = node.choice("coordinate_transformation_mode", "half_pixel", *TRANSFORMATIONS)
    rounding = node.choice(
        "nearest_mode", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"
    )
    chosen = [node.counted(axis, x.rank) for axis in node.ints("axes", list(range(x.rank)))]
    axes = _axes(node, x, chosen)
    if transformation == "tf_crop_and_resize":
        axes = _with_roi(node, axes)
    return _resized(node, x, axes, mode, transformation, rounding)


def _resized(
    node: Node,
    x: Value,
    axes: Sequence[ResizedAxis],
    mode: str,
    transformation: str,
    rounding: str,
) -> Value:
    b = node.b
    for axis in axes:
        some = symbolic.is_less(symbolic.ZERO, axis.size)
        b.require(
            symbolic.call("or", some, symbolic.is_equal(axis.out, symbolic.ZERO)),
            f"axis {axis.axis} of {x} is resized, but has no elements",
        )
    axes = [axis for axis in axes if not _is_kept(axis)]
    if mode == "nearest":
        y = _nearest(b, x, axes, transformation, rounding)
    else:
        y = _interpolated(node, x, axes, mode, transformation)
    if transformation == "tf_crop_and_resize":
        number = node.float("extrapolation_value", 0.0)
        for axis in axes:
            y = extrapolated(b, y, axis, number)
    if y.dtype == x.dtype:
        return y
    return b.elementwise([y], x.dtype, lambda v: _rounded(v, x.dtype))


def _interpolated(
    node: Node, x: Value, axes: Sequence[ResizedAxis], mode: str, transformation: str
) -> Value:
    """In f32 where `x` is of integers."""
    b = node.b
    how = Filter(
        "cubic" if mode == "cubic" else "linear",
        transformation,
        antialias=bool(node.int("antialias", 0)),
        cubic_coeff_a=node.float("cubic_coeff_a", -0.75),
        exclude_outside=bool(node.int("exclude_outside", 0)),
    )
    y = x if x.dtype.is_float else b.elementwise([x], F32, lambda v: v.cast(F32))
    for axis in sorted(axes, key=lambda axis: -axis.axis):
        y = interpolate(b, y, axis, how)
    return y


def _rounded(v: Scalar, dtype: ElementType) -> Scalar:
    """To the nearest number of an integer type."""
    low, high = dtype.limits
    return v.round_even().clamp(float(low), float(high)).cast(dtype)


def _is_kept(axis: ResizedAxis) -> bool:
    """Whether an axis is surely as before."""
    return axis.factor == 1.0 and axis.out == axis.size and axis.roi is None


def _nearest(
    b: Builder, x: Value, axes: Sequence[ResizedAxis], transformation: str, rounding: str
) -> Value:
    counts = {axis.axis: repeats(axis, transformation, rounding) for axis in axes}
    if None not in counts.values():
        return _repeated(b, x, {at: count or 1 for at, count in counts.items()})
    tables = {axis.axis: nearest(b, axis, transformation, rounding) for axis in axes}
    outs = {axis.axis: axis.out for axis in axes}
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))

    def element(indices: list[Scalar]) -> Scalar:
        places = [
            b.read(tables[at], [index]).cast(INDEX) if at in tables else index
            for at, index in enumerate(indices)
        ]
        return b.read(source, places)

    return b.tabulate([outs.get(at, dim) for at, dim in enumerate(x.dims)], x.dtype, element)


def _repeated(b: Builder, x: Value, counts: dict[int, int]) -> Value:
    """Each element along an axis so many times in a row."""
    apart: list[Dim] = []
    wide: list[Dim] = []
    for at, dim in enumerate(x.dims):
        apart += [dim, ONE] if at in counts else [dim]
        wide += [dim, Dim.of(counts[at])] if at in counts else [dim]
    spread = expand(b, reshape(b, x, apart), wide)
    return reshape(b, spread, [dim * counts.get(at, 1) for at, dim in enumerate(x.dims)])


# Sizes of the result


def _scalars(node: Node, i: int) -> list[float | Scalar]:
    """The floats of input `i`; read by the run where they are not constant."""
    value = node.input(i)
    known = value.numpy()
    if known is not None:
        return [float(number) for number in np.asarray(known, np.float64).reshape(-1)]
    if value.rank != 1 or value.size is None:
        raise node.error(f"input {i} is {value}, expected one axis of a static size")
    return [node.b.item(value, at).cast(F32) for at in range(value.size)]


def _axes(node: Node, x: Value, chosen: Sequence[int]) -> list[ResizedAxis]:
    """The axes by `scales` (input 2) or `sizes` (input 3), one of which is empty or left out."""
    if node.given(2) and node.input(2).size != 0:
        return _axes_by_scale(node, x, chosen, _scalars(node, 2))
    sizes = node.dims_of(3)
    if sizes is None:
        raise node.error("it has neither scales nor sizes")
    if len(sizes) != len(chosen):
        raise node.error(f"there are {len(sizes)} sizes for {len(chosen)} axes")
    policy = node.choice("keep_aspect_ratio_policy", "stretch", "not_larger", "not_smaller")
    if policy != "stretch":
        return _axes_in_ratio(node, x, chosen, sizes, larger=policy == "not_smaller")
    return [
        _axis_of_size(node.b, axis, x.dims[axis], size)
        for axis, size in zip(chosen, sizes, strict=True)
    ]


def _axis_of_size(b: Builder, axis: int, size: Dim, out: Dim) -> ResizedAxis:
    factor = _quotient(out, size)
    length = b.scalar(out).cast(F32)
    scale = length / b.scalar(size).cast(F32)
    return ResizedAxis(axis, size, out, scale, length, factor)


def _quotient(out: Dim, size: Dim) -> float | None:
    """out / size, where it is the same number in every run."""
    if out == size:
        return 1.0
    if out.value is not None and size.value:
        return out.value / size.value
    whole = symbolic.exact_quotient(out, size)
    return None if whole is None or whole.value is None else float(whole.value)


def _axes_by_scale(
    node: Node, x: Value, chosen: Sequence[int], scales: Sequence[float | Scalar]
) -> list[ResizedAxis]:
    if len(scales) != len(chosen):
        raise node.error(f"there are {len(scales)} scales for {len(chosen)} axes")
    return [
        _axis_of_scale(node, axis, x.dims[axis], scale)
        for axis, scale in zip(chosen, scales, strict=True)
    ]


def _axis_of_scale(node: Node, axis: int, size: Dim, scale: float | Scalar) -> ResizedAxis:
    b = node.b
    if isinstance(scale, float) and not 0 < scale < float("inf"):
        raise node.error(f"the scale of axis {axis} is {scale}, expected a positive number")
    number = scale if isinstance(scale, Scalar) else const(scale, F32)
    length = b.scalar(size).cast(F32) * number
    out = rounded_product(size, scale) if isinstance(scale, float) else None
    if out is None:
        if isinstance(scale, Scalar):
            b.check(scale > 0.0, f"the scale of axis {axis} is not positive")
        out = b.run_time(length.floor())
    factor = scale if isinstance(scale, float) else None
    return ResizedAxis(axis, size, out, number, length, factor)


def _axes_in_ratio(
    node: Node, x: Value, chosen: Sequence[int], sizes: Sequence[Dim], *, larger: bool
) -> list[ResizedAxis]:
    """One scale for all axes: the largest or smallest that the sizes ask for."""
    b = node.b
    befores = [x.dims[axis] for axis in chosen]
    numbers = [(before.value, size.value) for before, size in zip(befores, sizes, strict=True)]
    known = [(before, size) for before, size in numbers if before and size is not None]
    if len(known) == len(numbers):
        ratio = (max if larger else min)(size / before for before, size in known)
        outs = [Dim.of(int(ratio * before + 0.5)) for before, _ in known]
        scale, factor = const(ratio, F32), ratio
    else:
        ratios = [
            b.scalar(size).cast(F32) / b.scalar(before).cast(F32)
            for before, size in zip(befores, sizes, strict=True)
        ]
        scale, factor = ratios[0], None
        for other in ratios[1:]:
            scale = scale.maximum(other) if larger else scale.minimum(other)
        outs = [
            b.run_time((scale * b.scalar(before).cast(F32) + 0.5).floor()) for before in befores
        ]
    return [
        ResizedAxis(axis, before, out, scale, b.scalar(before).cast(F32) * scale, factor)
        for axis, before, out in zip(chosen, befores, outs, strict=True)
    ]


def _with_roi(node: Node, axes: Sequence[ResizedAxis]) -> list[ResizedAxis]:
    """The part of the input that is resized: input 1, all begins and then all ends."""
    fractions = [
        number if isinstance(number, Scalar) else const(number, F32) for number in _scalars(node, 1)
    ]
    if len(fractions) != 2 * len(axes):
        raise node.error(f"roi has {len(fractions)} elements, expected {2 * len(axes)}")
    pairs = zip(fractions[: len(axes)], fractions[len(axes) :], strict=True)
    return [
        ResizedAxis(axis.axis, axis.size, axis.out, axis.scale, axis.length, axis.factor, roi=pair)
        for axis, pair in zip(axes, pairs, strict=True)
    ]
