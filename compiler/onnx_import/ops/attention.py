"""ONNX's attention: Attention, FlexAttention, RotaryEmbedding, and TensorScatter for its caches."""

from __future__ import annotations

from ..building.shaping import concat, pad
from ..parts.attending import (
    Allowed,
    attend,
    both,
    causal,
    join_heads,
    rotate,
    shorter_than,
    split_heads,
    window,
)
from ..parts.cache_updates import updated
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import F64, I64, ElementType
from ..values.symbolic import Dim
from ..values.value import Value
from .indexing import gather_rows

# What the fourth output of Attention shows.
SCORES, CAPPED, MASKED, PROBABILITIES = range(4)


@lowers("Attention")
def attention(node: Node) -> list[Value | None]:
    b = node.b
    q, k, v = (node.input(i) for i in range(3))
    packed = q.rank == 3
    if packed:
        q = split_heads(b, q, node.int("q_num_heads"))
        k, v = (split_heads(b, x, node.int("kv_num_heads")) for x in (k, v))
    past_key, past_value = node.optional(4), node.optional(5)
    if (past_key is None) != (past_value is None):
        raise node.error("past_key and past_value come together")
    if past_key is not None and past_value is not None:
        k, v = concat(b, [past_key, k], 2), concat(b, [past_value, v], 2)
    lengths = node.optional(6)
    allowed = _allowed(node, q, past_key, lengths)
    mask = node.optional(3)
    precision = node.int("softmax_precision", 0)
    made = attend(
        b, q, k, v,
        scale=node.float("scale", None),
        softcap=node.float("softcap", 0.0),
        bias=[] if mask is None else [_as_wide(node, mask, k.dims[2])],
        allowed=allowed,
        may_see_nothing=mask is not None or lengths is not None or node.has("left_window_size")
        or node.has("right_window_size"),
        softmax_type=node.known_type(precision) if precision else None,
    )  # fmt: skip
    shown = (made.scores, made.capped, made.masked, made.probabilities)
    mode = node.int("qk_matmul_output_mode", SCORES)
    if mode not in range(len(shown)):
        raise node.error(f"qk_matmul_output_mode is {mode}, expected 0 to {PROBABILITIES}")
    return [join_heads(b, made.y) if packed else made.y, k, v, shown[mode]]


def _allowed(node: Node, q: Value, past_key: Value | None, lengths: Value | None) -> Allowed | None:
    b = node.b
    left, right = (node.int(f"{side}_window_size", -1) for side in ("left", "right"))
    limits = [None if size < 0 else size for size in (left, right)]
    offset: Dim | Value = symbolic.ZERO
    if past_key is not None:
        offset = past_key.dims[2]
    elif lengths is not None:
        rows = b.scalar(q.dims[2]).cast(lengths.dtype)
        offset = b.elementwise([lengths], lengths.dtype, lambda n: n - rows)
    found: Allowed | None = causal(b, offset) if node.int("is_causal", 0) else None
    if limits != [None, None]:
        found = both(found, window(b, offset, left=limits[0], right=limits[1]))
    return both(found, shorter_than(b, lengths)) if lengths is not None else found


def _as_wide(node: Node, mask: Value, keys: Dim) -> Value:
    """A mask that may cover fewer keys than there are: the others are not allowed."""
    missing = keys - mask.dims[-1]
    if missing == symbolic.ZERO or mask.dims[-1] == symbolic.ONE:
        return mask
    ends = [symbolic.ZERO] * (mask.rank - 1) + [missing]
    fill = False if mask.dtype.is_bool else float("-inf")
    return pad(node.b, mask, [0] * mask.rank, ends, fill)


@lowers("FlexAttention", domain="ai.onnx.preview")
def flex_attention(node: Node) -> Value:
    q, k, v = (node.input(i) for i in range(3))
    default = F64 if q.dtype is F64 else node.known_type(1)
    precision = node.type_of("softmax_precision", default.onnx)
    return attend(
        node.b, q, k, v,
        scale=node.float("scale", None),
        softmax_type=precision,
        may_see_nothing=False,
        score_mod=_modifier(node, "score_mod", precision),
        prob_mod=_modifier(node, "prob_mod", precision),
    ).y  # fmt: skip


def _modifier(node: Node, name: str, dtype: ElementType):  # type: ignore[no-untyped-def]
    """A subgraph that changes the scores, or the probabilities."""
    if not node.has(name):
        return None

    def modify(value: Value) -> Value:
        given = value
        if value.dtype is not dtype:
            given = node.b.elementwise([value], dtype, lambda x: x.cast(dtype))
        (result,) = node.lowering.subgraph(node.graph(name), [given], node)
        if not isinstance(result, Value):
            raise node.error(f"'{name}' does not return a tensor")
        return result

    return modify


@lowers("RotaryEmbedding")
def rotary_embedding(node: Node) -> Value:
    """Inputs: x [B, S, H * D] or [B, H, S, D], tables of cosines and sines, position_ids."""
    b, x = node.b, node.input(0)
    packed = x.rank == 3
    heads = split_heads(b, x, node.int("num_heads")) if packed else x
    cos, sin = node.input(1), node.input(2)
    positions = node.optional(3)
    if positions is not None:
        cos, sin = (gather_rows(node, table, positions) for table in (cos, sin))
    width = node.int("rotary_embedding_dim", 0) or heads.dims[-1].value
    if width is None:
        half = cos.dims[-1].value
        if half is None:
            raise node.error(f"neither {x} nor its tables, {cos}, say how many columns it turns")
        width = 2 * half
        b.require_equal(heads.dims[-1], Dim.of(width), f"{x} has other columns than its tables")
    made = rotate(b, heads, cos, sin, width=width, interleaved=bool(node.int("interleaved", 0)))
    return join_heads(b, made) if packed else made


@lowers("TensorScatter")
def tensor_scatter(node: Node) -> Value:
    """`update` written into `past_cache` along `axis`, from `write_indices[b]` on."""
    b, cache, update, begins = node.b, node.input(0), node.input(1), node.optional(2)
    axis = node.axis("axis", cache.rank, -2)
    circular = node.choice("mode", "linear", "circular") == "circular"
    whole, added = cache.dims[axis], update.dims[axis]
    if begins is None:
        begins = Value(I64, (cache.dims[0],), ssa=b.full(I64, [cache.dims[0]], 0))
    if not circular:
        return updated(b, cache, update, begins, whole, axis)
    old, new, first = (Value(x.dtype, x.dims, ssa=b.tensor(x)) for x in (cache, update, begins))
    room, count = b.scalar(whole), b.scalar(added)

    def body(indices):  # type: ignore[no-untyped-def]
        begin = b.read(first, [indices[0]]).cast(indices[0].dtype)
        place = (indices[axis] - begin) % room
        written = (place >= 0) & (place < count)
        at = [written.select(place, 0) if i == axis else index for i, index in enumerate(indices)]
        kept = b.read(old, indices)
        return kept if added == symbolic.ZERO else written.select(b.read(new, at), kept)

    return b.tabulate(cache.dims, cache.dtype, body)
