"""onnxruntime's GroupQueryAttention: the attention of decoders, with their caches inside."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..building.scalars import Scalar
from ..building.shaping import reshape, slice_axis
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
from ..parts.caches import CacheCodes, appended, from_row
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.element_types import I64
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import Value
from .indexing import gather_rows
from .normalization import normalize

NO_SCORES, BEFORE_SOFTMAX, BEHIND_SOFTMAX = range(3)  # attribute 'qk_output'


@lowers("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(node: Node) -> list[Value | None]:
    """Inputs: query (or q, k and v packed), key, value, past_key, past_value, seqlens_k [B],
    total_sequence_length, cos_cache, sin_cache, position_ids, attention_bias, head_sink [H],
    k_scale, v_scale, q_norm_weight [D], k_norm_weight [D], query_seqlens [B].

    Sample b has `seqlens_k[b] + 1` keys, of which the last `query_seqlens[b]`, all new ones by
    default, are new. Past and present are buffers [B, Hk, capacity, D] with a sample's keys at
    their beginning: all, or with `sliding_window_cache` the newest.
    """
    b = node.b
    q, k, v = _normed(node, *_queries(node))
    steps = _steps(node, q)
    if node.int("do_rotary", 0):
        positions = _rotary_positions(node, steps.before, q)
        cos, sin = (gather_rows(node, node.input(i), positions) for i in (7, 8))
        flip = bool(node.int("rotary_interleaved", 0))
        q, k = (rotate(b, x, cos, sin, width=_rotary_width(cos), interleaved=flip) for x in (q, k))
    if node.int("sliding_window_cache", 0):
        return _of_window(node, steps, q, k, v)
    capacity = _capacity(node, q.dims[2])
    used = _total(node, capacity)
    presents, seen = [], []
    for new, past, codes in _caches(node, k, v):
        rows = new if codes is None else codes.encoded(b, new)
        present = appended(b, past, rows, steps.before, capacity)
        part = slice_axis(b, present, 2, 0, used)
        seen.append(part if codes is None else codes.decoded(b, part, new.dims[3], new.dtype))
        presents.append(present)
    made = _attended(node, q, seen[0], seen[1], steps.before)
    return [join_heads(b, made.y), *presents, _scores(node, made)]


# Queries, keys and values


def _queries(node: Node) -> tuple[Value, Value, Value]:
    b, heads, shared = node.b, node.int("num_heads"), node.int("kv_num_heads")
    query, key, value = node.input(0), node.optional(1), node.optional(2)
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


def _normed(node: Node, q: Value, k: Value, v: Value) -> tuple[Value, Value, Value]:
    """RMS norms of each head's queries and keys, where there are weights for them."""
    weights = node.optional(14), node.optional(15)
    if weights == (None, None):
        return q, k, v
    if None in weights:
        raise node.error("q_norm_weight and k_norm_weight come together")
    default = node.float("qk_norm_epsilon", 1e-6)
    q, k = (
        normalize(
            node.b, x, 3, node.float(f"{name}_norm_epsilon", default), kind="rms", weight=weight,
            bias=None,
        ).y
        for x, name, weight in zip((q, k), "qk", weights, strict=True)
    )  # fmt: skip
    return q, k, v


def _rotary_width(cos: Value) -> int:
    return 2 * (cos.dims[-1].value or 0)


def _rotary_positions(node: Node, before: Value, q: Value) -> Value:
    """[B, S]: given, or the rows behind those that a sample has."""
    given = node.optional(9)
    if given is not None:
        return given
    b = node.b
    return b.tabulate(
        [q.dims[0], q.dims[2]], I64,
        lambda at: b.read(before, [at[0]]) + at[1].cast(I64),
    )  # fmt: skip


# Lengths


@dataclass(frozen=True)
class _Steps:
    """How many keys each sample has had, and has now, [B] of i64."""

    before: Value
    now: Value


def _steps(node: Node, q: Value) -> _Steps:
    b, rows = node.b, q.dims[2]
    now = _made(node, b.elementwise([_of_samples(node, 5, q)], I64, lambda n: n.cast(I64) + 1))
    if node.given(16):
        new = _of_samples(node, 16, q)
        before = b.elementwise([now, new], I64, lambda n, m: n - m.cast(I64))
    else:
        # A first prompt may be shorter than the padded one: its rows begin at 0 all the same.
        count = b.scalar(rows).cast(I64)
        before = b.elementwise([now], I64, lambda n: (n - count).maximum(0))
    return _Steps(_made(node, before), now)


def _of_samples(node: Node, i: int, q: Value) -> Value:
    return reshape(node.b, node.input(i), [q.dims[0]])


def _made(node: Node, x: Value) -> Value:
    return Value(x.dtype, x.dims, ssa=node.b.tensor(x))


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


# Caches

_Cache = tuple[Value, Value | None, CacheCodes | None]  # new rows, past, how it is stored


def _caches(node: Node, k: Value, v: Value) -> list[_Cache]:
    caches: list[_Cache] = []
    for new, name, past, scale in ((k, "k", 3, 12), (v, "v", 4, 13)):
        codes = _codes(node, name, node.optional(past), node.optional(scale))
        caches.append((new, node.optional(past), codes))
    return caches


def _codes(node: Node, name: str, past: Value | None, scale: Value | None) -> CacheCodes | None:
    kind = node.choice(f"{name}_quant_type", "NONE", "PER_TENSOR", "PER_CHANNEL", "")
    if kind in ("NONE", ""):
        return None
    bits = node.int("kv_cache_bit_width", 8)
    if past is None or scale is None or bits not in (4, 8):
        raise node.error(f"a cache of {bits} bits needs its past and {name}_scale")
    codes = CacheCodes(scale, bits)
    if past.dtype is not codes.dtype:
        raise node.error(
            f"a cache of {bits} bits is stored as {codes.dtype.name} here, not as {past.dtype.name}"
        )
    return codes


def _of_window(node: Node, steps: _Steps, q: Value, k: Value, v: Value) -> list[Value | None]:
    """With buffers that hold the newest keys alone, whose number the length of a sample decides.

    The new keys are first put behind all that a buffer holds, then what has become too old is
    left out. Places are counted from the oldest key of a buffer: distances are what they were.
    """
    b, past, size = node.b, node.input(3), node.int("local_window_size", -1)
    if node.given(10) or node.wants(3):
        raise node.error("sliding_window_cache goes with neither attention_bias nor output_qk")
    if any(codes is not None for _, _, codes in _caches(node, k, v)):
        raise node.error("sliding_window_cache does not go with caches of codes")
    capacity = past.dims[2]
    fits = symbolic.negated(symbolic.is_less(capacity, Dim.of(size)))
    b.require(fits, f"local_window_size is {size}, the caches hold {capacity} keys")
    if size < 1:
        raise node.error("sliding_window_cache needs a local_window_size")
    slack, room = b.scalar(capacity - size + 1).cast(I64), b.scalar(capacity).cast(I64)

    def kept(total: Scalar) -> Scalar:
        turns = ((total - room).maximum(0) + slack - 1) // slack
        return total - slack * turns

    before = _made(node, b.elementwise([steps.before], I64, kept))
    shift = b.elementwise(
        [before, steps.before, steps.now],
        I64,
        lambda held, had, now: held + (now - had) - kept(now),
    )
    shift = _made(node, shift)
    staged = [
        appended(b, cache, new, before, capacity + q.dims[2])
        for new, cache, _ in _caches(node, k, v)
    ]
    made = _attended(node, q, staged[0], staged[1], before)
    presents = [from_row(b, x, shift, capacity) for x in staged]
    return [join_heads(b, made.y), *presents]


# Attention


def _attended(node: Node, q: Value, k: Value, v: Value, before: Value) -> Attended:
    b = node.b
    local = node.int("local_window_size", -1)
    allowed: Allowed | None = (
        window(b, before, left=local - 1, right=0) if local > 0 else causal(b, before)
    )
    if not node.int("causal", 1):
        lengths = b.elementwise([before], I64, lambda n: n + b.scalar(q.dims[2]).cast(I64))
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


def _scores(node: Node, made: Attended) -> Value | None:
    """What output_qk shows; 0 for keys that a query does not see."""
    which = node.int("qk_output", NO_SCORES)
    if which not in (NO_SCORES, BEFORE_SOFTMAX, BEHIND_SOFTMAX):
        raise node.error(f"attribute 'qk_output' is {which}, expected 0, 1 or 2")
    if which == NO_SCORES:
        return None
    if which == BEHIND_SOFTMAX:
        return made.probabilities
    return node.b.elementwise(
        [made.masked], made.masked.dtype, lambda s: (s == -math.inf).select(s.like(0), s)
    )
