"""CropAndResize: regions of images, brought to one size (as TensorFlow's `crop_and_resize`)."""

from __future__ import annotations

from ..building.scalars import Scalar, const
from ..parts.sampling import require_elements
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.element_types import BOOL, INDEX
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import Value
from .vision import checked, half_away


@lowers("CropAndResize", domain=MICROSOFT)
def crop_and_resize(node: Node) -> Value:
    """Inputs: x [N, C, H, W], rois [R, 4], the image of each [R], the size of all crops [2].

    A region [y1, x1, y2, x2] is in units of the image's size, 0 its first row or column and 1 its
    last; corners of regions and crops agree. Points outside of the image have one value.
    """
    x, rois, images, b = node.input(0), node.input(1), node.input(2), node.b
    nearest = node.choice("mode", "bilinear", "nearest") == "nearest"
    outside = node.float("extrapolation_value", 0.0)
    if x.rank != 4 or rois.rank != 2 or images.rank != 1:
        raise node.error(f"its inputs are {x}, {rois} and {images}")
    b.require_equal(rois.dims[1], Dim.of(4), f"the regions {rois} need four coordinates")
    b.require_equal(rois.dims[0], images.dims[0], "each region needs the number of an image")
    require_elements(b, x)
    sides = [symbolic.maximum(side, ZERO) for side in node.integers_of(3, 2)]
    for side in sides:
        b.require(symbolic.is_less(ZERO, side), "the sides of a crop must be positive")
    source, regions, numbers = (
        Value(v.dtype, v.dims, ssa=b.tensor(v)) for v in (x, rois, images)
    )  # fmt: skip
    count = b.scalar(x.dims[0])
    lasts = [b.scalar(size - 1) for size in x.dims[2:]]
    ends = [b.scalar(side - 1) for side in sides]

    def point(region: Scalar, axis: int, place: Scalar) -> Scalar:
        """Where the crop's row or column lies in the image."""
        begin, end = (
            b.read(regions, [region, const(axis + side, INDEX)]) * lasts[axis].cast(rois.dtype)
            for side in (0, 2)
        )
        if sides[axis] == ONE:
            return (begin + end) * 0.5
        last = ends[axis]
        step = (end - begin) / last.maximum(1).cast(rois.dtype)
        inner = (place == last).select(end, begin + place.cast(rois.dtype) * step)
        return inner if sides[axis].value else (last == 0).select((begin + end) * 0.5, inner)

    def sample(at: list[Scalar]) -> Scalar:
        region, channel, *places = at
        image = checked(b, b.read(numbers, [region]).cast(INDEX), count)
        inside = const(True, BOOL)
        lows, highs, rests = [], [], []
        for axis, place in enumerate(places):
            where, last = point(region, axis, place), lasts[axis].cast(rois.dtype)
            legal = (where >= 0.0) & (where <= last)
            inside = inside & legal
            kept = legal.select(where, 0.0)
            low = half_away(kept) if nearest else kept.floor()
            lows.append(low.cast(INDEX))
            highs.append(kept.ceil().cast(INDEX))
            rests.append((kept - low).cast(x.dtype))

        def pixel(row: Scalar, column: Scalar) -> Scalar:
            return b.read(source, [image, channel, row, column])

        if nearest:
            return inside.select(pixel(*lows), outside)
        (low, left), (high, right), (down, along) = lows, highs, rests
        top, bottom = (
            pixel(row, left) + (pixel(row, right) - pixel(row, left)) * along for row in (low, high)
        )
        return inside.select(top + (bottom - top) * down, outside)

    return b.tabulate([rois.dims[0], x.dims[1], *sides], x.dtype, sample)
