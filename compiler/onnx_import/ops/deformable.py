"""Patches of images by place: convolved where data moves them, or added up to an image again."""

from __future__ import annotations

from ..building.scalars import Scalar, const
from ..building.shaping import pad, reshape
from ..parts.sampling import interpolated, linear_weights, nothing_outside, require_elements
from ..parts.sliding import explicit_pads, per_axis, sum_over
from ..registry import Node, lowers
from ..values.element_types import INDEX
from ..values.symbolic import Dim, product
from ..values.value import Value
from .convolution import add_bias, conv_windows, multiply_patches


@lowers("DeformConv")
def deform_conv(node: Node) -> Value:
    """A convolution whose windows see the image at places that are off by `offset`, times `mask`.

    `offset` is B x (groups, window, axes) x outs, `mask` B x (groups, window) x outs.
    """
    x, w, offset = (node.input(i) for i in range(3))
    bias, mask = node.optional(3), node.optional(4)
    b, windows = node.b, conv_windows(node, x, w)
    groups, apart, rank = node.int("group", 1), node.int("offset_group", 1), windows.rank
    if apart < 1 or groups < 1:
        raise node.error(f"it has {groups} groups and {apart} groups of offsets")
    together = x.dims[1] // apart  # channels that share offsets
    b.require_equal(together * apart, x.dims[1], f"{x} has no {apart} equal groups of channels")
    b.require_equal(x.dims[1], w.dims[1] * groups, f"the channels of {x} and {w} differ")
    places = apart * windows.count
    wanted = (x.dims[0], Dim.of(places * rank), *windows.outs)
    _require_dims(node, offset, wanted)
    if mask is not None:
        _require_dims(node, mask, (x.dims[0], Dim.of(places), *windows.outs))
    require_elements(b, x)
    image = Value(x.dtype, x.dims, ssa=b.tensor(x))
    moved = Value(offset.dtype, offset.dims, ssa=b.tensor(offset))
    factors = None if mask is None else Value(mask.dtype, mask.dims, ssa=b.tensor(mask))
    begins = [b.scalar(begin) for begin in windows.begins]
    resolve = nothing_outside(b)

    def seen(indices: list[Scalar]) -> Scalar:
        batch, channel = indices[:2]
        window, outs = indices[2 : 2 + rank], indices[2 + rank :]
        flat = channel // b.scalar(together)
        for at, size in zip(window, windows.kernel, strict=True):
            flat = flat * size + at
        coordinates = []
        for axis in range(rank):
            place = outs[axis] * windows.strides[axis] + window[axis] * windows.dilations[axis]
            by = b.read(moved, [batch, flat * rank + axis, *outs])
            coordinates.append((place - begins[axis]).cast(by.dtype) + by)
        value = interpolated(b, image, [batch, channel], coordinates, linear_weights, resolve)
        if factors is None:
            return value
        return value * b.read(factors, [batch, flat, *outs]).cast(value.dtype)

    dims = [*x.dims[:2], *map(Dim.of, windows.kernel), *windows.outs]
    patches = b.tabulate(dims, x.dtype, seen)
    return add_bias(b, multiply_patches(b, patches, w, windows, groups), bias)


def _require_dims(node: Node, value: Value, dims: tuple[Dim, ...]) -> None:
    text = ", ".join(map(str, dims))
    if value.rank != len(dims):
        raise node.error(f"one of its inputs is {value}, expected [{text}]")
    for size, wanted in zip(value.dims, dims, strict=True):
        node.b.require_equal(size, wanted, f"one of its inputs is {value}, expected [{text}]")


@lowers("Col2Im")
def col2im(node: Node) -> Value:
    """B x (C, block) x places to B x C x image: a pixel is the sum of what blocks have there."""
    x, b = node.input(0), node.b
    image, block = node.dims_of(1) or [], node.dims_of(2) or []
    rank = len(image)
    if x.rank != 3 or rank < 1 or len(block) != rank:
        raise node.error(f"its input is {x}, its image has {rank} axes, its block {len(block)}")
    strides, dilations = (per_axis(node, name, rank) for name in ("strides", "dilations"))
    begins, ends = explicit_pads(node, rank)
    outs = [
        (size + begin + end - (length - 1) * dilation - 1) // stride + 1
        for size, begin, end, length, dilation, stride in zip(
            image, begins, ends, block, dilations, strides, strict=True
        )
    ]
    count, places = product(block), product(outs)
    channels = x.dims[1] // count
    b.require_equal(channels * count, x.dims[1], f"the channels of {x} are no multiple of blocks")
    b.require_equal(x.dims[2], places, f"blocks of {x} do not fill the image")
    # Places that no block has are the one behind the last, a zero.
    columns = reshape(b, pad(b, x, [0] * 3, [0, 0, 1]), [x.dims[0], channels, *block, places + 1])
    source = Value(x.dtype, columns.dims, ssa=b.tensor(columns))
    nowhere, steps = b.scalar(places), [b.scalar(out) for out in outs]

    def term(pixel: list[Scalar], window: list[Scalar]) -> Scalar:
        legal, flat = None, const(0, INDEX)
        for axis in range(rank):
            reach = pixel[2 + axis] + begins[axis] - window[axis] * dilations[axis]
            step = reach // strides[axis]
            exists = (step * strides[axis] == reach) & (reach >= 0) & (step < steps[axis])
            legal = exists if legal is None else legal & exists
            flat = flat * steps[axis] + step
        assert legal is not None
        return b.read(source, [*pixel[:2], *window, legal.select(flat, nowhere)])

    return sum_over(b, [x.dims[0], channels, *image], block, x.dtype, term)
