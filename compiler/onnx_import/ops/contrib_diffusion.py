"""What onnxruntime fuses in diffusion models: GroupNorm, SkipGroupNorm, BiasSplitGelu."""

from __future__ import annotations

from ..building.shaping import channels_last, channels_second, reshape, slice_axis
from ..registry import MICROSOFT, Node, lowers
from ..values.symbolic import ONE, Dim
from ..values.value import Value
from .batch_normalization import by_groups

NOTHING, SILU = 0, 1  # attribute 'activation'


@lowers("GroupNorm", domain=MICROSOFT)
def group_norm(node: Node) -> Value:
    """Inputs: x [N, H, W, C], or [N, C, H, W] if `channels_last` is 0, gamma [C], beta [C]."""
    return _normalized(node, _image(node))


@lowers("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(node: Node) -> list[Value]:
    """As GroupNorm of x + skip + bias, and the sum; skip is an image, or one pixel of each: [N, C].

    Inputs: x, gamma, beta, skip, bias [C].
    """
    b, x, skip, bias = node.b, _image(node), node.input(3), node.optional(4)
    if skip.rank == 2:
        skip = reshape(b, skip, _of_channels(node, x, *skip.dims))
    total = b.elementwise([x, skip], x.dtype, lambda v, s: v + s, dims=x.dims)
    if bias is not None:
        wide = reshape(b, bias, _of_channels(node, x, ONE, bias.dims[0]))
        total = b.elementwise([total, wide], x.dtype, lambda v, w: v + w)
    return [_normalized(node, total), total]


def _image(node: Node) -> Value:
    x = node.input(0)
    if x.rank != 4:
        raise node.error(f"it normalizes images, its input is {x}: expected four axes")
    return x


def _channels_last(node: Node) -> bool:
    return bool(node.int("channels_last", 1))


def _of_channels(node: Node, x: Value, batch: Dim, channels: Dim) -> list[Dim]:
    """The dims of one pixel of each image."""
    ones = [ONE] * (x.rank - 2)
    return [batch, *ones, channels] if _channels_last(node) else [batch, channels, *ones]


def _normalized(node: Node, x: Value) -> Value:
    b, groups, activation = node.b, node.int("groups"), node.int("activation")
    if activation not in (NOTHING, SILU):
        raise node.error(f"attribute 'activation' is {activation}, expected 0 or 1")
    last = _channels_last(node)
    image = channels_second(b, x) if last else x
    if groups < 1 or (image.shape[1] is not None and image.shape[1] % groups):
        raise node.error(f"{x} cannot be taken apart into {groups} groups of channels")
    y = by_groups(node, image, Dim.of(groups), per_channel=True)
    y = channels_last(b, y) if last else y
    if activation == NOTHING:
        return y
    return b.elementwise([y], y.dtype, lambda v: v * v.sigmoid())


@lowers("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(node: Node) -> Value:
    """Half of the columns of x [N, S, D] + bias [D], each times the GELU of one of the others."""
    b, x = node.b, node.input(0)
    total = b.elementwise([x, node.input(1)], x.dtype, lambda v, w: v + w)
    axis, half = x.rank - 1, x.dims[-1] // 2
    b.require_equal(half * 2, x.dims[-1], f"the columns of {x} are no even number")
    left, right = (slice_axis(b, total, axis, begin, half) for begin in (Dim.of(0), half))
    return b.elementwise([left, right], x.dtype, lambda v, w: v * w.gelu())
