"""Sampling of images: at the points of a grid, in regions of interest; and pixels as channels."""

from __future__ import annotations

import math

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..building.shaping import reshape, transpose
from ..parts.sampling import (
    Resolve,
    Resolved,
    as_place,
    cubic_weights,
    edge_outside,
    element,
    interpolated,
    linear_weights,
    nothing_outside,
    repeat,
    require_elements,
)
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import F32, INDEX
from ..values.symbolic import Dim
from ..values.value import Value


@lowers("DepthToSpace")
def depth_to_space(node: Node) -> Value:
    """Channels become pixels: [B, s * s * C, H, W] -> [B, C, H * s, W * s]."""
    x, step, b = node.input(0), node.int("blocksize"), node.b
    mode = node.choice("mode", "DCR", "CRD")
    size = _block_size(node, x, step)
    batch, channels, *image = x.dims
    rank = len(image)
    steps = [Dim.of(step)] * rank
    inner = channels // size
    b.require_equal(inner * size, channels, f"the channels of {x} are no multiple of {size}")
    if mode == "DCR":
        parts = reshape(b, x, [batch, *steps, inner, *image])
        channel, first = 1 + rank, 1
    else:
        parts = reshape(b, x, [batch, inner, *steps, *image])
        channel, first = 1, 2
    pairs = [axis for i in range(rank) for axis in (2 + rank + i, first + i)]
    y = transpose(b, parts, [0, channel, *pairs])
    return reshape(b, y, [batch, inner, *(side * step for side in image)])


@lowers("SpaceToDepth")
def space_to_depth(node: Node) -> Value:
    """Pixels become channels: [B, C, H * s, W * s] -> [B, s * s * C, H, W]."""
    x, step, b = node.input(0), node.int("blocksize"), node.b
    size = _block_size(node, x, step)
    mode = node.choice("mode", "DCR", "CRD")
    batch, channels, *image = x.dims
    rank = len(image)
    sides = [side // step for side in image]
    for side, whole in zip(sides, image, strict=True):
        b.require_equal(side * step, whole, f"the sides of {x} are no multiples of {step}")
    pairs = [dim for side in sides for dim in (side, Dim.of(step))]
    parts = reshape(b, x, [batch, channels, *pairs])
    places, offsets = ([2 + 2 * i + part for i in range(rank)] for part in (0, 1))
    lead = [*offsets, 1] if mode == "DCR" else [1, *offsets]
    y = transpose(b, parts, [0, *lead, *places])
    return reshape(b, y, [batch, channels * size, *sides])


def _block_size(node: Node, x: Value, step: int) -> int:
    """Pixels in a block."""
    if x.rank < 3 or step < 1:
        raise node.error(f"its input is {x} and its blocksize {step}")
    return step ** (x.rank - 2)


# At the points of a grid


@lowers("GridSample")
@lowers("GridSample", domain=MICROSOFT)
def grid_sample(node: Node) -> Value:
    """B x C x image and B x points x axes, the last axis of the image first, from -1 to 1."""
    x, grid, b = node.input(0), node.input(1), node.b
    rank = x.rank - 2
    mode = node.choice("mode", "linear", "bilinear", "nearest", "cubic", "bicubic")
    padding = node.choice("padding_mode", "zeros", "border", "reflection")
    corners, cubic = bool(node.int("align_corners", 0)), mode.endswith("cubic")
    if rank < 1 or grid.rank != x.rank:
        raise node.error(f"{x} cannot be sampled by a grid {grid}")
    b.require_equal(grid.dims[-1], Dim.of(rank), f"the points of {grid} need {rank} coordinates")
    b.require_equal(grid.dims[0], x.dims[0], f"{x} and the grid {grid} differ in their batch")
    require_elements(b, x)
    image = Value(x.dtype, x.dims, ssa=b.tensor(x))
    points = Value(grid.dtype, grid.dims, ssa=b.tensor(grid))
    borders = [_borders(b, size, corners) for size in x.dims[2:]]
    resolve = _resolve(b, padding, corners)

    def sample(indices: list[Scalar]) -> Scalar:
        batch, channel, *place = indices
        coordinates = []
        for axis in range(rank):
            at = [batch, *place, const(rank - 1 - axis, INDEX)]
            coordinate = _in_pixels(b, b.read(points, at), x.dims[2 + axis], corners)
            if mode == "nearest":
                coordinate = coordinate.round_even()
            # Cubic weights are of the point itself, as PyTorch and onnxruntime have it.
            if not cubic:
                coordinate = _kept(coordinate, *borders[axis], padding)
            coordinates.append(coordinate)
        if mode == "nearest":
            places = [
                resolve(as_place(c), size) for c, size in zip(coordinates, x.dims[2:], strict=True)
            ]
            return element(b, image, [batch, channel], places)
        weights = cubic_weights if cubic else linear_weights
        return interpolated(b, image, [batch, channel], coordinates, weights, resolve)

    return b.tabulate([*x.dims[:2], *grid.dims[1:-1]], x.dtype, sample)


def _in_pixels(b: Builder, value: Scalar, size: Dim, corners: bool) -> Scalar:
    """From -1 to 1 to the image's coordinates: from the first pixel's middle or from its border."""
    length = b.scalar(size).cast(value.dtype)
    if corners:
        return (value + 1.0) * 0.5 * (length - 1.0)
    return ((value + 1.0) * length - 1.0) * 0.5


def _borders(b: Builder, size: Dim, corners: bool) -> tuple[Scalar, Scalar, Scalar]:
    """Where an image begins and ends, and the last pixel."""
    length = b.scalar(size).cast(F32)
    last = length - 1.0
    return (last.like(0.0), last, last) if corners else (last.like(-0.5), last + 0.5, last)


def _kept(x: Scalar, low: Scalar, high: Scalar, last: Scalar, padding: str) -> Scalar:
    """A coordinate beyond the borders is brought inside, unless there is nothing (zeros)."""
    low, high, last = (border.cast(x.dtype) for border in (low, high, last))
    if padding == "zeros":
        return x
    outside = (x < low) | (x > high)
    if padding == "border":
        return outside.select(x.clamp(0.0, last), x)
    return outside.select(_reflected(x, low, high), x)


def _reflected(x: Scalar, low: Scalar, high: Scalar) -> Scalar:
    """A coordinate that lies outside, reflected at the borders until it lies inside."""
    span = high - low
    beyond = (low - x).maximum(x - high)
    count = (beyond / span).trunc()
    rest = beyond - count * span
    even = (count - (count * 0.5).floor() * 2.0) == 0.0
    from_low, from_high = low + rest, high - rest
    inside = (x < low).select(even.select(from_low, from_high), even.select(from_high, from_low))
    return (span == 0.0).select(low, inside)


def _resolve(b: Builder, padding: str, corners: bool) -> Resolve:
    if padding == "zeros":
        return nothing_outside(b)
    if padding == "border":
        return edge_outside(b)

    def reflect(place: Scalar, size: Dim) -> Resolved:
        low, high, _ = _borders(b, size, corners)
        x = place.cast(F32)
        kept = ((x < low) | (x > high)).select(_reflected(x, low, high), x)
        return edge_outside(b)(kept.cast(INDEX), size)

    return reflect


# In regions of interest


@lowers("RoiAlign")
def roi_align(node: Node) -> Value:
    """Mean or maximum of samples in each bin of each region, [x1, y1, x2, y2] of an image."""
    x, rois, images, b = node.input(0), node.input(1), node.input(2), node.b
    half_pixel = node.version >= 16 and node.choice(
        "coordinate_transformation_mode", "half_pixel", "output_half_pixel"
    ) == "half_pixel"  # fmt: skip
    largest = node.choice("mode", "avg", "max") == "max"
    sides = [node.int("output_height", 1), node.int("output_width", 1)]
    ratio, scale = node.int("sampling_ratio", 0), node.float("spatial_scale", 1.0)
    if x.rank != 4 or rois.rank != 2 or images.rank != 1:
        raise node.error(f"its inputs are {x}, {rois} and {images}")
    b.require_equal(rois.dims[1], Dim.of(4), f"the regions {rois} need four coordinates")
    b.require_equal(rois.dims[0], images.dims[0], "each region needs the number of an image")
    require_elements(b, x)
    source, regions, numbers = _made(b, x), _made(b, rois), _made(b, images)
    count = b.scalar(x.dims[0])

    def pooled(indices: list[Scalar]) -> Scalar:
        region, channel, *place = indices
        image = checked(b, b.read(numbers, [region]).cast(INDEX), count)
        begins, steps, samples = [], [], []
        for axis in range(2):
            edges = [
                b.read(regions, [region, const(side, INDEX)]) * scale - (0.5 if half_pixel else 0.0)
                for side in (1 - axis, 3 - axis)
            ]
            length = edges[1] - edges[0]
            if not half_pixel:
                length = length.maximum(1.0)
            step = length / float(sides[axis])
            steps.append(step)
            begins.append(edges[0] + place[axis].cast(step.dtype) * step)
            wanted = step.ceil().clamp(0.0, 1e6).cast(INDEX)
            samples.append(const(ratio, INDEX) if ratio > 0 else wanted)
        zero = const(0.0, x.dtype)
        start = const(-math.inf, x.dtype) if largest else zero

        def of_row(row: Scalar, total: Scalar) -> list[Scalar]:
            def of_sample(column: Scalar, inner: Scalar) -> list[Scalar]:
                point = [
                    begin + (number.cast(begin.dtype) + 0.5) * step / n.cast(begin.dtype)
                    for begin, step, number, n in zip(
                        begins, steps, (row, column), samples, strict=True
                    )
                ]
                terms = _corners(b, source, image, channel, point)
                if largest:
                    for term in terms:
                        inner = inner.maximum(term)
                    return [inner]
                return [inner + terms[0] + terms[1] + terms[2] + terms[3]]

            return repeat(b, const(0, INDEX), samples[1], [total], of_sample)

        (total,) = repeat(b, const(0, INDEX), samples[0], [start], of_row)
        points = samples[0] * samples[1]
        if largest:
            return (points == 0).select(zero, total)
        return total / points.maximum(1).cast(x.dtype)

    return b.tabulate([rois.dims[0], x.dims[1], *sides], x.dtype, pooled)


def _made(b: Builder, value: Value) -> Value:
    return Value(value.dtype, value.dims, ssa=b.tensor(value))


def checked(b: Builder, index: Scalar, count: Scalar) -> Scalar:
    """An index from data, an error of the run where it is out of range, and then 0."""
    legal = (index >= 0) & (index < count)
    b.check(legal, "an index is out of range")
    return legal.select(index, 0)


def _corners(
    b: Builder, source: Value, image: Scalar, channel: Scalar, point: list[Scalar]
) -> list[Scalar]:
    """The four pixels around a point, each times its weight; 0 beyond a pixel's distance."""
    legal: Scalar | None = None
    axes = []
    for coordinate, size in zip(point, source.dims[2:], strict=True):
        end = b.scalar(size).cast(coordinate.dtype)
        near = (coordinate >= -1.0) & (coordinate <= end)
        legal = near if legal is None else legal & near
        kept = coordinate.clamp(0.0, end - 1.0)
        low = kept.floor()
        rest = kept - low
        first = low.cast(INDEX)
        second = (first + 1).minimum(b.scalar(size) - 1)
        axes.append(((first, 1.0 - rest), (second, rest)))
    assert legal is not None
    terms = []
    for row, row_weight in axes[0]:
        for column, weight in axes[1]:
            pixel = b.read(source, [image, channel, row, column])
            term = pixel * (row_weight * weight).cast(pixel.dtype)
            terms.append(legal.select(term, 0.0))
    return terms


@lowers("MaxRoiPool")
def max_roi_pool(node: Node) -> Value:
    """The largest pixel in each bin of each region, [image, x1, y1, x2, y2]; 0 of empty bins."""
    x, rois, b = node.input(0), node.input(1), node.b
    sides, scale = node.ints("pooled_shape"), node.float("spatial_scale", 1.0)
    if x.rank != 4 or rois.rank != 2 or len(sides) != 2 or min(sides) < 1:
        raise node.error(f"its inputs are {x} and {rois}, its pooled_shape {sides}")
    b.require_equal(rois.dims[1], Dim.of(5), f"the regions {rois} need five numbers")
    require_elements(b, x)
    source, regions, count = _made(b, x), _made(b, rois), b.scalar(x.dims[0])

    def pooled(indices: list[Scalar]) -> Scalar:
        region, channel, *place = indices
        image = checked(b, b.read(regions, [region, const(0, INDEX)]).cast(INDEX), count)
        spans = []
        for axis in range(2):
            edges = [
                half_away(b.read(regions, [region, const(side, INDEX)]) * scale)
                for side in (2 - axis, 4 - axis)
            ]
            step = (edges[1] - edges[0] + 1.0).maximum(1.0) / float(sides[axis])
            at = place[axis].cast(step.dtype)
            end = b.scalar(x.dims[2 + axis]).cast(step.dtype)
            low = ((at * step).floor() + edges[0]).clamp(0.0, end)
            high = (((at + 1.0) * step).ceil() + edges[0]).clamp(0.0, end)
            spans.append((low.cast(INDEX), high.cast(INDEX)))
        (rows, columns) = spans
        lowest = const(-math.inf, x.dtype)

        def of_row(row: Scalar, top: Scalar) -> list[Scalar]:
            def of_pixel(column: Scalar, inner: Scalar) -> list[Scalar]:
                return [b.read(source, [image, channel, row, column]).maximum(inner)]

            return repeat(b, *columns, [top], of_pixel)

        (top,) = repeat(b, *rows, [lowest], of_row)
        empty = (rows[1] <= rows[0]) | (columns[1] <= columns[0])
        return empty.select(top.like(0.0), top)

    return b.tabulate([rois.dims[0], x.dims[1], *sides], x.dtype, pooled)


def half_away(x: Scalar) -> Scalar:
    """Rounded to the nearest integer, halves away from zero."""
    return (x < 0.0).select((x - 0.5).ceil(), (x + 0.5).floor())


@lowers("AffineGrid")
def affine_grid(node: Node) -> Value:
    """Points from -1 to 1 of an image of a size, moved by a matrix: B x image x axes."""
    theta, size, b = node.input(0), node.dims_of(1) or [], node.b
    corners, rank = bool(node.int("align_corners", 0)), len(size) - 2
    if rank < 1 or theta.rank != 3:
        raise node.error(f"its input is {theta}, its size has {len(size)} axes")
    for dim, wanted in zip(theta.dims[1:], (rank, rank + 1), strict=True):
        b.require_equal(dim, Dim.of(wanted), f"{theta} must be B x {rank} x {rank + 1}")
    b.require_equal(theta.dims[0], size[0], f"{theta} and the size differ in their batch")
    source = _made(b, theta)

    def moved(indices: list[Scalar]) -> Scalar:
        batch, *place, row = indices
        total = b.read(source, [batch, row, const(rank, INDEX)])
        for axis in range(rank):
            length = b.scalar(size[2 + axis]).cast(theta.dtype)
            at = place[axis].cast(theta.dtype)
            if corners:
                point = at * (2.0 / (length - 1.0).maximum(1.0)) - 1.0
            else:
                point = (at * 2.0 + 1.0) / length - 1.0
            total = total + b.read(source, [batch, row, const(rank - 1 - axis, INDEX)]) * point
        return total

    return b.tabulate([theta.dims[0], *size[2:], Dim.of(rank)], theta.dtype, moved)
