"""onnxruntime's DecoderMaskedMultiHeadAttention: one token at a time, with its caches."""

from __future__ import annotations

from ..building.shaping import slice_axis
from ..parts.attending import join_heads, split_heads
from ..registry import MICROSOFT, Node, lowers
from ..values.symbolic import ONE, ZERO
from ..values.value import Value
from .contrib_attention import Caches, attended, with_bias, with_past


@lowers("DecoderMaskedMultiHeadAttention", domain=MICROSOFT)
def decoder_masked_multi_head_attention(node: Node) -> list[Value | None]:
    """Inputs: query [B, 1, H * D] (or q, k and v packed), key, value, mask, attention_bias,
    past_key, past_value, past_sequence_length, beam_width, cache_indirection, bias.

    Keys and values with an axis of heads are those of an encoder: they have no past. The number of
    beams is that of cache_indirection. The caches are those of onnxruntime's CPU, in whose order of
    memory all are; its CUDA kernel has another for keys.
    """
    heads = node.int("num_heads")
    query, key, value = node.input(0), node.optional(1), node.optional(2)
    node.b.require_equal(query.dims[1], ONE, f"it decodes one token, its query is {query}")
    if key is not None and value is not None and key.rank == 4:
        (q,) = with_bias(node, [split_heads(node.b, query, heads)], node.optional(10))
        made = attended(
            node, q, Caches(key, value, (key, value), ZERO), mask=node.optional(3), bias=None
        )
        return [join_heads(node.b, made.y), None, None, made.masked]
    parts = [query, key, value] if key is not None else _thirds(node, query)
    q, k, v = with_bias(
        node, [split_heads(node.b, x, heads) for x in parts if x is not None], node.optional(10)
    )
    shared = bool(node.int("past_present_share_buffer", 0))
    if shared != node.given(7):
        raise node.error("past_present_share_buffer and past_sequence_length come together")
    caches = with_past(node, k, v, past=5, length=7, beams=9)
    made = attended(node, q, caches, mask=node.optional(3), bias=node.optional(4))
    return [join_heads(node.b, made.y), *caches.present, made.masked]


def _thirds(node: Node, packed: Value) -> list[Value | None]:
    width = packed.dims[2] // 3
    return [slice_axis(node.b, packed, 2, width * i, width) for i in range(3)]
