"""QAttention: onnxruntime's Attention whose projection is a product of codes."""

from __future__ import annotations

from ..parts.affine import dequantize
from ..registry import MICROSOFT, Node, lowers
from ..values.value import Value
from .contrib_attention import attention_of
from .integer_products import with_bias


@lowers("QAttention", domain=MICROSOFT)
def qattention(node: Node) -> list[Value | None]:
    """Inputs: x, weights, bias, their scales, mask, their zero points, past."""
    x = dequantize(node, node.input(0), node.input(3), node.optional(6))
    w = dequantize(node, node.input(1), node.input(4), node.optional(7), axis=-1)
    packed = with_bias(node, x, w, node.input(2))
    return attention_of(node, packed, mask=node.optional(5), past=node.optional(8), bias=None)
