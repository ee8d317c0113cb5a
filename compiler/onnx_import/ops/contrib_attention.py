"""onnxruntime's attention: MultiHeadAttention, Attention, RotaryEmbedding.

(What each computes is what onnxruntime's CPU kernels compute; its documentation is
ContribOperators.md.)
"""

from __future__ import annotations

from ..building.scalars import Scalar, const
from ..building.shaping import concat, reshape, slice_axis, transpose, unsqueeze
from ..parts.attending import (
    attend,
    causal,
    join_heads,
    rotate,
    split_heads,
)
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.element_types import I64, INDEX
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import Value
from .indexing import gather_rows
from .matmul import is_vector, product_of

MASKED = -10000.0  # what is added to the scores of keys that a mask leaves out, by default


@lowers("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(node: Node) -> list[Value | None]:
    """Inputs: query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value."""
    _refuse(node, 8, "past_sequence_length", "buffers shared by past and present")
    _refuse(node, 9, "cache_indirection", "beam search")
    heads = node.int("num_heads")
    q, k, v = _projected(node, heads)
    past_key, past_value = node.optional(6), node.optional(7)
    before = ZERO
    if past_key is not None and past_value is not None:
        before = past_key.dims[2]
        k, v = concat(node.b, [past_key, k], 2), concat(node.b, [past_value, v], 2)
    bias = [x for x in (_padding(node, node.optional(4), q, k), node.optional(5)) if x is not None]
    made = attend(
        node.b, q, k, v,
        scale=node.float("scale", 0.0) or None,
        bias=bias,
        allowed=causal(node.b, before) if node.int("unidirectional", 0) else None,
        may_see_nothing=False,
    )  # fmt: skip
    return [join_heads(node.b, made.y), k, v, made.masked]


def _projected(node: Node, heads: int) -> tuple[Value, Value, Value]:
    """q, k and v with an axis of heads, whichever way they are packed, their bias added."""
    b, query, key, value = node.b, node.input(0), node.optional(1), node.optional(2)
    if query.rank == 5:  # [B, S, H, 3, D]
        parts = [_packed_part(node, query, i) for i in range(3)]
    elif key is not None and key.rank == 5:  # [B, T, H, 2, D]
        parts = [split_heads(b, query, heads), *(_packed_part(node, key, i) for i in range(2))]
    elif key is None or value is None:
        raise node.error("key and value are missing, and query is not packed (rank 5)")
    else:
        parts = [x if x.rank == 4 else split_heads(b, x, heads) for x in (query, key, value)]
    bias = node.optional(3)
    if bias is None:
        return parts[0], parts[1], parts[2]
    added, begin = [], ZERO
    for part in parts:
        width = part.dims[1] * part.dims[3]
        piece = reshape(b, slice_axis(b, bias, 0, begin, width), [1, part.dims[1], 1, part.dims[3]])
        added.append(b.elementwise([part, piece], part.dtype, lambda x, w: x + w))
        begin = begin + width
    return added[0], added[1], added[2]


def _packed_part(node: Node, x: Value, i: int) -> Value:
    """Part i of [B, S, H, parts, D] as [B, H, S, D]."""
    batch, length, heads, _, width = x.dims
    part = reshape(node.b, slice_axis(node.b, x, 3, i, 1), [batch, length, heads, width])
    return transpose(node.b, part, [0, 2, 1, 3])


def _refuse(node: Node, i: int, name: str, what: str) -> None:
    if node.given(i):
        raise node.error(f"input '{name}' ({what}) is not supported")


def _padding(node: Node, mask: Value | None, q: Value, k: Value) -> Value | None:
    """What a padding mask adds to the scores, for the forms that onnxruntime takes.

    [B]: lengths of keys; [2 * B]: ends, then begins; [B, T] and [B, M, T]: 1 where a key counts;
    [B, 1, X, X]: the same for positions, of which the last M x T count.
    """
    if mask is None:
        return None
    b = node.b
    batch, keys = q.dims[0], k.dims[2]
    low = node.float("mask_filter_value", MASKED)
    table = Value(mask.dtype, mask.dims, ssa=b.tensor(mask))

    def filtered(keep: Scalar) -> Scalar:
        return keep.select(const(0.0, q.dtype), low)

    if mask.rank == 1:
        ends_only = symbolic.equal(mask.dims[0], batch)
        with_begins = symbolic.equal(mask.dims[0], batch * 2)
        if ends_only is not True and with_begins is not True:
            raise node.error(f"a mask of {mask} is neither one nor two numbers for each sample")
        count = b.scalar(batch)

        def of_lengths(at: list[Scalar]) -> Scalar:
            sample, _, _, key = at
            keep = key < b.read(table, [sample]).cast(INDEX)
            if ends_only is not True:
                keep = keep & (key >= b.read(table, [sample + count]).cast(INDEX))
            return filtered(keep)

        return b.tabulate([batch, ONE, ONE, keys], q.dtype, of_lengths)
    if mask.rank in (2, 3):
        wide = unsqueeze(b, mask, [1, 2] if mask.rank == 2 else [1])
        return b.elementwise([wide], q.dtype, lambda m: filtered(m != 0))
    if mask.rank == 4:
        rows = slice_axis(b, mask, 2, keys - q.dims[2], q.dims[2])
        part = slice_axis(b, rows, 3, 0, keys)
        return b.elementwise([part], q.dtype, lambda m: filtered(m != 0))
    raise node.error(f"a mask of rank {mask.rank} is not supported")


@lowers("Attention", domain=MICROSOFT)
def attention(node: Node) -> list[Value | None]:
    """Inputs: x [B, S, D], weights [D, 3 * H], bias, mask, past [2, B, H, P, E], attention_bias."""
    b, x, weight, bias = node.b, node.input(0), node.input(1), node.optional(2)
    fused = bias if bias is not None and is_vector(bias, weight) else None
    packed = product_of(node, x, weight, fused)
    if bias is not None and fused is None:
        packed = b.elementwise([packed, bias], packed.dtype, lambda v, w: v + w)
    return attention_of(node, packed, mask=node.optional(3), past=node.optional(4),
                        bias=node.optional(5))  # fmt: skip


def attention_of(
    node: Node, packed: Value, *, mask: Value | None, past: Value | None, bias: Value | None
) -> list[Value | None]:
    """The attention of queries, keys and values side by side, [B, S, Hq + Hk + Hv].

    Outputs: y, and past and present keys and values as one tensor [2, B, H, T, E].
    """
    b, heads = node.b, node.int("num_heads")
    if node.given(6) and node.op_type == "Attention":
        raise node.error("buffers shared by past and present are not supported")
    third = packed.dims[2] // 3
    widths = [Dim.of(n) for n in node.ints("qkv_hidden_sizes", [])] or [third] * 3
    parts, begin = [], ZERO
    for width in widths:
        parts.append(split_heads(b, slice_axis(b, packed, 2, begin, width), heads))
        begin = begin + width
    q, k, v = parts
    before = ZERO
    if past is not None:
        before = past.dims[3]
        k, v = (concat(b, [_half(node, past, i), part], 2) for i, part in enumerate((k, v)))
    if node.int("do_rotary", 0):
        raise node.error("do_rotary is not supported", hint="use RotaryEmbedding before it")
    added = [value for value in (_padding(node, mask, q, k), bias) if value is not None]
    made = attend(
        b, q, k, v,
        scale=node.float("scale", 0.0) or None,
        bias=added,
        allowed=causal(b, before) if node.int("unidirectional", 0) else None,
        may_see_nothing=False,
    )  # fmt: skip
    present = None
    if node.wants(1):
        present = concat(b, [unsqueeze(b, k, [0]), unsqueeze(b, v, [0])], 0)
    return [join_heads(b, made.y), present]


def _half(node: Node, past: Value, i: int) -> Value:
    return reshape(node.b, slice_axis(node.b, past, 0, i, 1), past.dims[1:])


@lowers("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(node: Node) -> Value:
    """Inputs: x [B, S, H * D] or [B, H, S, D], position_ids [1] or [B, S], cosines, sines."""
    b, x, positions = node.b, node.input(0), node.input(1)
    cos, sin = node.input(2), node.input(3)
    if node.int("is_packed_batching", 0):
        raise node.error("is_packed_batching is not supported")
    if node.float("scale", 1.0) != 1.0:
        raise node.error("scale is not supported")
    packed, width = x.rank == 3, node.int("rotary_embedding_dim", 0)
    heads = node.int("num_heads", 0)
    if packed and not heads:
        # Heads as wide as the tables say.
        wide = width or (cos.dims[1].value or 0) * 2
        if not wide:
            raise node.error("num_heads is missing, and the tables' width is not known")
        split = split_heads(b, x, x.dims[2] // wide)
    else:
        split = split_heads(b, x, heads) if packed else x
    rows = _positions(node, positions, split.dims[0], split.dims[2])
    made = rotate(
        b, split, gather_rows(node, cos, rows), gather_rows(node, sin, rows),
        width=width, interleaved=bool(node.int("interleaved", 0)),
    )  # fmt: skip
    return join_heads(b, made) if packed else made


def _positions(node: Node, positions: Value, batch: Dim, length: Dim) -> Value:
    """Positions of every token, [B, S]: given, or counted from one number on."""
    if positions.rank == 2 and positions.dims[1] != ONE:
        return positions
    if positions.rank == 2 and length == ONE:
        return positions
    b = node.b
    first = reshape(b, positions, [1])
    source = Value(first.dtype, first.dims, ssa=b.tensor(first))
    zero = const(0, INDEX)
    return b.tabulate(
        [ONE, length], I64, lambda at: b.read(source, [zero]).cast(I64) + at[1].cast(I64)
    )
