"""onnxruntime's attention: MultiHeadAttention, Attention, RotaryEmbedding.

(What each computes is what onnxruntime's CPU kernels compute; its documentation is
ContribOperators.md.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..building.scalars import Scalar, const
from ..building.shaping import concat, reshape, slice_axis, transpose, unsqueeze
from ..parts.attending import (
    Allowed,
    Attended,
    attend,
    causal,
    join_heads,
    rotate,
    split_heads,
)
from ..parts.caches import filled_up, of_beams
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
    """Inputs: query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value,
    past_sequence_length, cache_indirection [samples, beams, T].

    With a past_sequence_length, past and present are buffers of one size that begin with the keys.
    """
    q, k, v = _projected(node, node.int("num_heads"))
    caches = with_past(node, k, v, past=6, length=8, beams=9)
    allowed = causal(node.b, caches.before) if node.int("unidirectional", 0) else None
    made = attended(node, q, caches, mask=node.optional(4), bias=node.optional(5), allowed=allowed)
    return [join_heads(node.b, made.y), *caches.present, made.masked]


@dataclass(frozen=True)
class Caches:
    """Keys and values that queries see, the buffers that go on, and how many keys are past ones."""

    keys: Value
    values: Value
    present: tuple[Value, Value]
    before: Dim


def with_past(node: Node, k: Value, v: Value, *, past: int, length: int, beams: int) -> Caches:
    """New keys and values behind those of input `past` and the next one.

    Input `length`: how many rows of these count; input `beams`: which beam had each.
    """
    b = node.b
    past_key, past_value = node.optional(past), node.optional(past + 1)
    if past_key is None or past_value is None:
        return Caches(k, v, (k, v), ZERO)
    if not node.given(length):
        if node.given(beams):
            raise node.error("cache_indirection needs past_sequence_length")
        keys, values = concat(b, [past_key, k], 2), concat(b, [past_value, v], 2)
        return Caches(keys, values, (keys, values), past_key.dims[2])
    before = node.integer_of(length)
    made, seen = [], []
    for new, cache in ((k, past_key), (v, past_value)):
        whole = filled_up(b, cache, new, before)
        part = slice_axis(b, whole, 2, 0, before + new.dims[2])
        origins = node.optional(beams)
        seen.append(part if origins is None else of_beams(b, part, origins, before))
        made.append(whole)
    return Caches(seen[0], seen[1], (made[0], made[1]), before)


def attended(
    node: Node,
    q: Value,
    caches: Caches,
    *,
    mask: Value | None,
    bias: Value | None,
    allowed: Allowed | None = None,
) -> Attended:
    """Of keys that a padding mask may leave out, plus a bias of the scores."""
    added = [x for x in (_padding(node, mask, q, caches.keys), bias) if x is not None]
    return attend(
        node.b, q, caches.keys, caches.values,
        scale=node.float("scale", 0.0) or None, bias=added, allowed=allowed, may_see_nothing=False,
    )  # fmt: skip


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
    q, k, v = with_bias(node, parts, node.optional(3))
    return q, k, v


def with_bias(node: Node, parts: Sequence[Value], bias: Value | None) -> list[Value]:
    """Each of [B, H, T, D] plus its part of a vector."""
    if bias is None:
        return list(parts)
    b, added, begin = node.b, [], ZERO
    for part in parts:
        width = part.dims[1] * part.dims[3]
        piece = reshape(b, slice_axis(b, bias, 0, begin, width), [1, part.dims[1], 1, part.dims[3]])
        added.append(b.elementwise([part, piece], part.dtype, lambda x, w: x + w))
        begin = begin + width
    return added


def _packed_part(node: Node, x: Value, i: int) -> Value:
    """Part i of [B, S, H, parts, D] as [B, H, S, D]."""
    batch, length, heads, _, width = x.dims
    part = reshape(node.b, slice_axis(node.b, x, 3, i, 1), [batch, length, heads, width])
    return transpose(node.b, part, [0, 2, 1, 3])


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
    """Inputs: x [B, S, H * D] or [B, H, S, D], position_ids [1] or [B, S], cosines, sines.

    (No kernel of onnxruntime reads the attribute `scale`.)
    """
    b, x, positions = node.b, node.input(0), node.input(1)
    cos, sin = node.input(2), node.input(3)
    if node.int("is_packed_batching", 0):
        raise node.error("is_packed_batching is not supported")
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
