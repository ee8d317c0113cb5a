"""Convolutions and pools of images whose channels are last, as onnxruntime's optimizers write them.

Transposes around convolutions of ONNX's order: those of neighbouring nodes cancel out.
"""

from __future__ import annotations

from ..building.shaping import channels_last, channels_second
from ..registry import MICROSOFT, Node, lowers
from ..values.value import Value
from .contrib_fused import activated
from .convolution import conv
from .pooling import max_pool


@lowers("NhwcConv", domain=MICROSOFT)
def nhwc_conv(node: Node) -> Value:
    """x [N, ..., C], weights [M, window, C / groups], bias [M].

    (So its kernel and the optimizer of diffusion models have the weights; its documentation is that
    of Conv.)
    """
    b, w = node.b, node.input(1)
    x = channels_second(b, node.input(0))
    return channels_last(b, conv(node.as_standard(x, channels_second(b, w), node.optional(2))))


@lowers("NhwcFusedConv", domain=MICROSOFT)
def nhwc_fused_conv(node: Node) -> Value:
    """As FusedConv, with weights as Conv has them: x and z [N, ..., C], weights [M, C, window]."""
    b, z = node.b, node.optional(3)
    x = channels_second(b, node.input(0))
    y = conv(node.as_standard(x, node.input(1), node.optional(2)))
    if z is not None:
        y = b.elementwise([y, channels_second(b, z)], y.dtype, lambda v, w: v + w)
    return channels_last(b, activated(node, y))


@lowers("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(node: Node) -> Value:
    x = channels_second(node.b, node.input(0))
    return channels_last(node.b, max_pool(node.as_standard(x))[0])
