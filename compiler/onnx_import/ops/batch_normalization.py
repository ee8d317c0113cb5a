"""Normalizations of images: by channel over a batch, by image, by group of channels, by place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..building.emit import Builder
from ..building.shaping import reshape
from ..parts.sliding import Windows, reduce_windows
from ..registry import Node, lowers
from ..values.constants import from_array
from ..values.element_types import ElementType
from ..values.symbolic import ONE, ZERO, Dim, product
from ..values.value import Value, constant_value
from .normalization import normalize


@lowers("BatchNormalization")
def batch_normalization(node: Node) -> list[Value]:
    """Per channel; until opset 9 with `spatial` 0 per element of an image.

    Outputs beyond the first are asked for in training mode alone: running mean and variance, then
    (until opset 14) those of the batch.
    """
    x, *parameters = [node.input(i) for i in range(5)]
    b, epsilon = node.b, node.float("epsilon", 1e-5)
    if x.rank < 2:
        raise node.error(f"its input is {x}: expected two axes or more")
    per_channel = bool(node.int("spatial", 1))
    wide = [_widened(b, x, value, per_channel=per_channel) for value in parameters]
    training = node.int("training_mode", int(node.version < 14 and node.output_count > 1))
    if not training:
        factor, offset = _affine(b, x.dtype, wide, epsilon)
        return [b.elementwise([x, factor, offset], x.dtype, lambda v, f, o: v * f + o)]
    scale, bias, mean, variance = wide
    own_mean, own_variance = _statistics(node, x, per_channel=per_channel)
    factor, offset = _affine(b, x.dtype, [scale, bias, own_mean, own_variance], epsilon)
    y = b.elementwise([x, factor, offset], x.dtype, lambda v, f, o: v * f + o)
    momentum = node.float("momentum", 0.9)
    running = [
        b.elementwise(
            [old, new], old.dtype,
            lambda o, n: o * momentum + n.cast(o.dtype) * (1.0 - momentum),
        )
        for old, new in ((mean, own_mean), (variance, own_variance))
    ]  # fmt: skip
    flat = [
        reshape(b, value, given.dims)
        for value, given in zip([*running, own_mean, own_variance], parameters[2:] * 2, strict=True)
    ]
    return [y, *flat]


def _widened(b: Builder, x: Value, value: Value, *, per_channel: bool) -> Value:
    """A parameter with an axis for each of x, that of the batch excepted."""
    if per_channel:
        return reshape(b, value, [value.dims[0], *[ONE] * (x.rank - 2)])
    return reshape(b, value, x.dims[1:])


def _affine(
    b: Builder, dtype: ElementType, parameters: Sequence[Value], epsilon: float
) -> tuple[Value, Value]:
    """The factor and the offset that scale, bias, mean and variance come down to."""
    arrays = [value.numpy() for value in parameters]
    known = [array.astype(np.float64) for array in arrays if array is not None]
    if len(known) == len(arrays):
        factors = known[0] / np.sqrt(known[3] + epsilon)
        return _constant(factors, dtype), _constant(known[1] - known[2] * factors, dtype)
    scale, bias, mean, variance = [
        value
        if value.dtype.inside() == dtype.inside()
        else b.elementwise([value], dtype, lambda v: v.cast(dtype))
        for value in parameters
    ]
    factor = b.elementwise([scale, variance], dtype, lambda s, v: s / (v + epsilon).sqrt())
    offset = b.elementwise([bias, mean, factor], dtype, lambda o, m, f: o - m * f)
    return factor, offset


def _constant(array: np.ndarray, dtype: ElementType) -> Value:
    """In the type that the values of `dtype` have inside: 16-bit floats are not rounded."""
    return constant_value(from_array(array.astype(dtype.inside_dtype)), dtype)


def _statistics(node: Node, x: Value, *, per_channel: bool) -> tuple[Value, Value]:
    """Mean and variance over the batch, as `_widened` has parameters."""
    b = node.b
    axes = [0, *range(2, x.rank)] if per_channel else [0]
    count = b.scalar(product(x.dims[axis] for axis in axes)).cast(x.dtype)
    (total,) = b.reduce([x], axes, [(x.dtype, 0)], lambda v, sum_: [v + sum_], keepdims=True)
    mean = b.elementwise([total], x.dtype, lambda v: v / count)
    centered = b.elementwise([x, mean], x.dtype, lambda v, m: v - m)
    (squares,) = b.reduce(
        [centered], axes, [(x.dtype, 0)], lambda v, sum_: [v * v + sum_], keepdims=True
    )
    variance = b.elementwise([squares], x.dtype, lambda v: v / count)
    return reshape(b, mean, mean.dims[1:]), reshape(b, variance, variance.dims[1:])


@lowers("InstanceNormalization")
def instance_normalization(node: Node) -> Value:
    x = node.input(0)
    return by_groups(node, x, x.dims[1], per_channel=True)


@lowers("GroupNormalization")
def group_normalization(node: Node) -> Value:
    """Until opset 21 scale and bias have an element for each group, then for each channel."""
    x, groups = node.input(0), node.int("num_groups")
    if x.rank < 2 or groups < 1 or (x.shape[1] is not None and x.shape[1] % groups):
        raise node.error(f"{x} cannot be taken apart into {groups} groups of channels")
    return by_groups(node, x, Dim.of(groups), per_channel=node.version >= 21)


def by_groups(node: Node, x: Value, groups: Dim, *, per_channel: bool) -> Value:
    """`scale * normalized + bias`; every group of channels of an image is normalized alone."""
    b, (scale, bias) = node.b, (node.input(1), node.input(2))
    if x.rank < 3:
        raise node.error(f"it normalizes images, the input is {x}: expected three axes or more")
    channels = x.dims[1]
    each = channels // groups
    b.require_equal(each * groups, channels, f"{x} does not fall into {groups} groups")
    rows = reshape(b, x, [x.dims[0], groups, each * product(x.dims[2:])])
    normal = normalize(
        b, rows, 2, node.float("epsilon", 1e-5), kind="layer", weight=None, bias=None
    ).y
    if per_channel:
        shape = x.dims
        vector = [channels, *[ONE] * (x.rank - 2)]
    else:
        shape = (x.dims[0], groups, each, *x.dims[2:])
        vector = [groups, *[ONE] * (x.rank - 1)]
    wide = [reshape(b, value, vector) for value in (scale, bias)]
    y = b.elementwise([reshape(b, normal, shape), *wide], x.dtype, lambda v, s, o: v * s + o)
    return reshape(b, y, x.dims)


@lowers("LRN")
def local_response_normalization(node: Node) -> Value:
    """Divided by a power of the sum of squares of the channels around each."""
    x, size = node.input(0), node.int("size")
    if x.rank < 3 or size < 1:
        raise node.error(f"its input is {x} and its size {size}")
    b, channels, places = node.b, x.dims[1], product(x.dims[2:])
    low = (size - 1) // 2
    windows = Windows(
        sizes=(channels, places), kernel=(size, 1), strides=(1, 1), dilations=(1, 1),
        begins=(Dim.of(low), ZERO), ends=(Dim.of(size - 1 - low), ZERO), outs=(channels, places),
    )  # fmt: skip
    images = reshape(b, x, [x.dims[0], ONE, channels, places])
    (sums,) = reduce_windows(
        b, images, windows, 0, [(x.dtype, 0)], lambda v, _, sum_: [v * v + sum_]
    )
    factor, beta = node.float("alpha", 1e-4) / size, node.float("beta", 0.75)
    base = node.float("bias", 1.0)
    return b.elementwise(
        [x, reshape(b, sums, x.dims)],
        x.dtype,
        lambda v, s: v / (s * factor + base).power(v.like(beta)),
    )
