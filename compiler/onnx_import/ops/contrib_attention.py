"""onnxruntime's attention: MultiHeadAttention, GroupQueryAttention, Attention, RotaryEmbedding.

(What each computes is what onnxruntime's CPU kernels compute; its documentation is
ContribOperators.md.)
"""

from __future__ import annotations

from collections.abc import Sequence

from ..building.scalars import Scalar, const
from ..building.shaping import concat, pad, reshape, slice_axis, transpose, unsqueeze
from ..parts.attending import (
    Allowed,
    Attended,
    attend,
    causal,
    join_heads,
    rotate,
    shorter_than,
    split_heads,
    window,
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


@lowers("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(node: Node) -> list[Value | None]:
    """Inputs: query (or q, k and v packed), key, value, past_key, past_value, seqlens_k [B],
    total_sequence_length, cos_cache, sin_cache, position_ids, attention_bias, head_sink [H].

    Sample b has `seqlens_k[b] + 1` keys, the last of which are new. Past and present are buffers
    [B, Hk, capacity, D] with a sample's keys at their beginning.
    """
    b, heads, shared = node.b, node.int("num_heads"), node.int("kv_num_heads")
    q, k, v = _queries(node, heads, shared)
    rows = q.dims[2]
    total = reshape(b, node.input(5), [q.dims[0]])
    lengths = b.elementwise([total], I64, lambda n: n.cast(I64) + 1)
    count = b.scalar(rows).cast(I64)
    # A first prompt may be shorter than the padded one: its rows begin at 0 all the same.
    past_lengths = b.elementwise([lengths], I64, lambda n: (n - count).maximum(0))
    past_lengths = Value(I64, past_lengths.dims, ssa=b.tensor(past_lengths))
    if node.int("do_rotary", 0):
        positions = _rotary_positions(node, past_lengths, q)
        cos, sin = (gather_rows(node, node.input(i), positions) for i in (7, 8))
        flip = bool(node.int("rotary_interleaved", 0))
        q, k = (rotate(b, x, cos, sin, width=_rotary_width(cos), interleaved=flip) for x in (q, k))
    capacity = _capacity(node, rows)
    keys = _appended(node, node.optional(3), k, past_lengths, capacity)
    values = _appended(node, node.optional(4), v, past_lengths, capacity)
    used = _total(node, capacity)
    seen_keys, seen_values = (slice_axis(b, x, 2, 0, used) for x in (keys, values))
    made = _attended(node, q, seen_keys, seen_values, past_lengths)
    return [join_heads(b, made.y), keys, values, made.masked]


def _queries(node: Node, heads: int, shared: int) -> tuple[Value, Value, Value]:
    b, query, key, value = node.b, node.input(0), node.optional(1), node.optional(2)
    for name in ("k_quant_type", "v_quant_type"):
        if node.string(name, "NONE") not in ("", "NONE"):
            raise node.error(f"{name} (quantized caches) is not supported")
    if key is not None and value is not None:
        return (
            split_heads(b, query, heads),
            split_heads(b, key, shared),
            split_heads(b, value, shared),
        )
    width = query.dims[2] // (heads + 2 * shared)
    parts, begin = [], ZERO
    for count in (heads, shared, shared):
        part = slice_axis(b, query, 2, begin, width * count)
        parts.append(split_heads(b, part, count))
        begin = begin + width * count
    return parts[0], parts[1], parts[2]


def _rotary_width(cos: Value) -> int:
    return 2 * (cos.dims[-1].value or 0)


def _rotary_positions(node: Node, past_lengths: Value, q: Value) -> Value:
    """[B, S]: given, or the rows behind those that a sample has."""
    given = node.optional(9)
    if given is not None:
        return given
    b = node.b
    return b.tabulate(
        [q.dims[0], q.dims[2]], I64,
        lambda at: b.read(past_lengths, [at[0]]) + at[1].cast(I64),
    )  # fmt: skip


def _total(node: Node, capacity: Dim) -> Dim:
    """The number of keys that the longest sample has; the rest of the buffers is not read."""
    (total,) = node.b.integers(reshape(node.b, node.input(6), [1]))
    return symbolic.minimum(total, capacity)


def _capacity(node: Node, rows: Dim) -> Dim:
    """The keys that a buffer holds after this step: the past's, or more if they do not fit."""
    past = node.optional(3)
    (total,) = node.b.integers(reshape(node.b, node.input(6), [1]))
    before = past.dims[2] if past is not None else ZERO
    if symbolic.equal(before + rows, total) is True:
        return total
    return symbolic.maximum(before, total)


def _appended(
    node: Node, past: Value | None, new: Value, past_lengths: Value, capacity: Dim
) -> Value:
    """A buffer with a sample's keys of the past and, behind them, the new ones."""
    b = node.b
    dims = (*new.dims[:2], capacity, new.dims[3])
    added = Value(new.dtype, new.dims, ssa=b.tensor(new))
    count = b.scalar(new.dims[2])
    old = None if past is None else Value(past.dtype, past.dims, ssa=b.tensor(past))
    has_old = past is not None and past.dims[2] != ZERO
    room = b.scalar(past.dims[2]) if past is not None else const(0, INDEX)

    def body(at: list[Scalar]) -> Scalar:
        place = at[2] - b.read(past_lengths, [at[0]]).cast(INDEX)
        is_new = (place >= 0) & (place < count)
        value = b.read(added, [at[0], at[1], is_new.select(place, 0), at[3]])
        other = value.like(0)
        if has_old and old is not None:
            # Nothing is read of a past without rows: where it has none, all are new or zeros.
            other = _read_within(node, old, at, room)
        return is_new.select(value, other)

    if has_old and past is not None and past.dims[2].value is None:
        # At least one row, so that a loop may read row 0 of a past that has none in this run.
        padded = symbolic.maximum(past.dims[2], ONE)
        old = _with_room(node, past, padded)
    return b.tabulate(dims, new.dtype, body)


def _with_room(node: Node, past: Value, length: Dim) -> Value:
    ends = [ZERO, ZERO, length - past.dims[2], ZERO]
    wide = pad(node.b, past, [0] * 4, ends)
    return Value(past.dtype, wide.dims, ssa=node.b.tensor(wide))


def _read_within(node: Node, old: Value, at: Sequence[Scalar], room: Scalar) -> Scalar:
    inside = at[2] < room
    value = node.b.read(old, [at[0], at[1], inside.select(at[2], 0), at[3]])
    return inside.select(value, 0)


def _attended(node: Node, q: Value, k: Value, v: Value, past_lengths: Value) -> Attended:
    b = node.b
    local = node.int("local_window_size", -1)
    allowed: Allowed | None = (
        window(b, past_lengths, left=local - 1, right=0) if local > 0 else causal(b, past_lengths)
    )
    if not node.int("causal", 1):
        lengths = b.elementwise([past_lengths], I64, lambda n: n + b.scalar(q.dims[2]).cast(I64))
        allowed = shorter_than(b, lengths)
    bias = node.optional(10)
    sink = node.optional(11)
    if sink is None and node.int("smooth_softmax", 0) > 0:
        dims = (Dim.of(node.int("num_heads")),)
        sink = Value(q.dtype, dims, ssa=b.full(q.dtype, dims, 0.0))
    added = [] if bias is None else [_cut(node, bias, k.dims[2])]
    return attend(
        b, q, k, v,
        scale=node.float("scale", 0.0) or None,
        softcap=node.float("softcap", 0.0),
        bias=added,
        allowed=allowed,
        may_see_nothing=bias is not None,
        sink=sink,
    )  # fmt: skip


def _cut(node: Node, bias: Value, keys: Dim) -> Value:
    """The part of a bias for keys that there are."""
    if bias.dims[-1] in (keys, ONE):
        return bias
    return slice_axis(node.b, bias, bias.rank - 1, 0, keys)
