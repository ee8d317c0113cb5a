"""LinearAttention: attention whose past is one matrix a head, updated token by token.

    S = exp(g) * S + k (x) v                     "linear" (without g), "gated"
    S = exp(g) * S + beta * k (x) (v - S' k)     "delta" (without g), "gated_delta"; S' = exp(g) * S
    y = scale * q S

S is [keys, values], g the decay of its rows or of all of it (Yang et al., "Gated Delta Networks",
2025). ONNX has the operator from opset 27 on; onnxruntime's adds states of several tokens and heads
of queries or keys that several heads of values share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..building.looping import Iteration, Loop
from ..building.shaping import concat, expand, pad, reshape, slice_axis, transpose
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import Value
from .matmul import batched


@lowers("LinearAttention")
@lowers("LinearAttention", domain=MICROSOFT)
def linear_attention(node: Node) -> list[Value | None]:
    """Inputs: query [B, T, Hq * K], key [B, T, Hk * K], value [B, T, H * V], past_state
    [B, H, K, V], decay [B, T, H * K] or [B, T, H], beta [B, T, H] or [B, T, 1].

    Outputs: y [B, T, max(Hq, H) * V] and the state. With a `state_window` of W, states have a first
    axis: one for each of the last W tokens, 0 where there is none.
    """
    b = node.b
    sizes = _Sizes.of(node)
    tokens = _tokens(node, sizes)
    state = _past(node, sizes)
    count = _window(node)
    shown = symbolic.minimum(sizes.length, Dim.of(count))
    begin = sizes.length - shown
    state, rows, _ = _run(node, tokens, state, ZERO, begin, keep=False)
    present: Value | None = state
    if count:
        _, more, states = _run(node, tokens, state, begin, shown, keep=True)
        rows = concat(b, [rows, more], 0)
        assert states is not None
        present = pad(b, states, [count - shown, 0, 0, 0, 0], [0] * 5)
    by_sample = transpose(b, rows, [1, 0, 2, 3, 4])  # [B, T, H, queries, V]
    width = sizes.heads * rows.dims[3] * sizes.values
    return [reshape(b, by_sample, [sizes.batch, sizes.length, width]), present]


@dataclass(frozen=True)
class _Sizes:
    """`heads` are those of the values and of the state."""

    batch: Dim
    length: Dim
    heads: int
    keys: Dim
    values: Dim

    @staticmethod
    def of(node: Node) -> _Sizes:
        query, value = node.input(0), node.input(2)
        for x in (query, node.input(1), value):
            if x.rank != 3:
                raise node.error(f"its inputs must have three axes, one is {x}")
        of_query, heads = node.int("q_num_heads"), node.int("kv_num_heads")
        if min(of_query, heads) < 1 or max(of_query, heads) % min(of_query, heads):
            raise node.error(f"{of_query} heads of queries do not go with {heads} of values")
        keys, values = query.dims[2] // of_query, value.dims[2] // heads
        what = "the last axis of {} does not fall into {} heads"
        node.b.require_equal(keys * of_query, query.dims[2], what.format(query, of_query))
        node.b.require_equal(values * heads, value.dims[2], what.format(value, heads))
        return _Sizes(query.dims[0], query.dims[1], heads, keys, values)


@dataclass(frozen=True)
class _Tokens:
    """What a step takes a row of. `q` is scaled; `key` is a column, `faded` a row times the decay.

    q [T, B, H, queries, K], key [T, B, H, K, 1], faded [T, B, H, 1, K], value [T, B, H, 1, V],
    decay [T, B, H, K or 1, 1], beta [T, B, H or 1, 1, 1].
    """

    q: Value
    key: Value
    faded: Value
    value: Value
    decay: Value | None
    beta: Value | None


def _tokens(node: Node, sizes: _Sizes) -> _Tokens:
    b, rule = node.b, node.choice("update_rule", "gated_delta", "linear", "gated", "delta")
    query, key, value = (node.input(i) for i in range(3))
    heads, of_query = sizes.heads, node.int("q_num_heads")
    of_key = (key.dims[2] // sizes.keys).value or heads
    if heads % of_key:
        raise node.error(f"{of_key} heads of keys do not go with {heads} of values")
    q = _by_head(node, sizes, query, of_query, sizes.keys)
    if of_query >= heads:
        q = reshape(b, q, [*q.dims[:2], heads, of_query // heads, sizes.keys])
    else:
        q = _as_rows(node, _repeated(node, q, heads))
    q = _scaled(node, q, sizes.keys)
    k = _repeated(node, _by_head(node, sizes, key, of_key, sizes.keys), heads)
    rows = _as_rows(node, k)
    decay = _decay(node, sizes) if rule.startswith("gated") else None
    faded = rows
    if decay is not None:
        by_row = reshape(b, decay, [*decay.dims[:3], ONE, decay.dims[3]])
        faded = b.elementwise([rows, by_row], rows.dtype, lambda x, d: x * d)
    return _Tokens(
        q,
        reshape(b, k, [*k.dims, ONE]),
        faded,
        _as_rows(node, _by_head(node, sizes, value, heads, sizes.values)),
        decay,
        _beta(node, sizes) if rule.endswith("delta") else None,
    )


def _by_head(node: Node, sizes: _Sizes, x: Value, heads: int, width: Dim) -> Value:
    """[B, T, heads * width] as [T, B, heads, width]."""
    b = node.b
    for own, size in zip(x.dims[:2], (sizes.batch, sizes.length), strict=True):
        b.require_equal(own, size, f"{x} and the queries differ in batch or length")
    apart = reshape(b, x, [sizes.batch, sizes.length, Dim.of(heads), width])
    return transpose(b, apart, [1, 0, 2, 3])


def _repeated(node: Node, x: Value, heads: int) -> Value:
    """[T, B, fewer, D] with every head several times in a row."""
    fewer = x.dims[2].value or heads
    if fewer == heads:
        return x
    lead, width = x.dims[:2], x.dims[3]
    apart = reshape(node.b, x, [*lead, fewer, ONE, width])
    wide = expand(node.b, apart, [*lead, Dim.of(fewer), Dim.of(heads // fewer), width])
    return reshape(node.b, wide, [*lead, heads, width])


def _as_rows(node: Node, x: Value) -> Value:
    return reshape(node.b, x, [*x.dims[:3], ONE, x.dims[3]])


def _scaled(node: Node, q: Value, keys: Dim) -> Value:
    b, scale = node.b, node.float("scale", 0.0)
    if scale or keys.value is not None:
        factor = scale or 1.0 / math.sqrt(keys.value or 1)
        return b.elementwise([q], q.dtype, lambda x: x * factor)
    root = b.scalar(keys).cast(q.dtype).sqrt()
    return b.elementwise([q], q.dtype, lambda x: x / root)


def _decay(node: Node, sizes: _Sizes) -> Value:
    """exp(g) for each row of the state, or one number for all rows."""
    b, decay = node.b, node.optional(4)
    if decay is None:
        raise node.error("its update_rule needs decay (input 4)")
    single = symbolic.equal(decay.dims[2], Dim.of(sizes.heads)) is True
    x = _by_head(node, sizes, decay, sizes.heads, ONE if single else sizes.keys)
    wide = reshape(b, x, [*x.dims, ONE])
    return b.elementwise([wide], x.dtype, lambda g: g.exp())


def _beta(node: Node, sizes: _Sizes) -> Value:
    beta = node.optional(5)
    if beta is None:
        raise node.error("its update_rule needs beta (input 5)")
    x = _by_head(node, sizes, beta, 1 if beta.dims[2] == ONE else sizes.heads, ONE)
    return reshape(node.b, x, [*x.dims, ONE])


def _window(node: Node) -> int:
    size = node.int("state_window", 0)
    if not 0 <= size <= 8:
        raise node.error(f"attribute 'state_window' is {size}, expected 0 to 8")
    return size


def _past(node: Node, sizes: _Sizes) -> Value:
    """The state before the first token."""
    b, past = node.b, node.optional(3)
    dims = (sizes.batch, Dim.of(sizes.heads), sizes.keys, sizes.values)
    if past is None:
        dtype = node.input(0).dtype
        return Value(dtype, dims, ssa=b.full(dtype, dims, 0))
    if _window(node):
        newest = slice_axis(b, past, 0, _window(node) - 1, 1)
        past = reshape(b, newest, past.dims[1:])
    if past.rank != 4:
        raise node.error(f"its past_state is {node.input(3)}, expected [B, H, K, V]")
    for own, size in zip(past.dims, dims, strict=True):
        b.require_equal(own, size, f"past_state is {past}, expected {list(map(str, dims))}")
    return b.made(b.tensor(past), past.dtype, dims)


def _run(
    node: Node, tokens: _Tokens, state: Value, begin: Dim, count: Dim, *, keep: bool
) -> tuple[Value, Value, Value | None]:
    """`count` tokens from `begin` on: the state behind, the rows of y, and all states if kept."""
    b = node.b
    made = [
        None if x is None else Value(x.dtype, x.dims, ssa=b.tensor(x))
        for x in (tokens.q, tokens.key, tokens.faded, tokens.value, tokens.decay, tokens.beta)
    ]

    def body(at: Dim, given: Sequence[Value]) -> Iteration:
        q, key, faded, value, decay, beta = (
            None if x is None else reshape(b, slice_axis(b, x, 0, begin + at, 1), x.dims[1:])
            for x in made
        )
        assert q is not None and key is not None and faded is not None and value is not None
        (before,) = given
        if beta is not None:
            known = batched(b, faded, before)
            value = b.elementwise(
                [beta, value, known], value.dtype, lambda rate, v, old: rate * (v - old)
            )
        dtype = before.dtype
        if decay is None:
            after = b.elementwise([before, key, value], dtype, lambda s, k, v: s + k * v)
        else:
            after = b.elementwise(
                [before, decay, key, value], dtype, lambda s, d, k, v: s * d + k * v
            )
        return Iteration(ONE, [after], [batched(b, q, after), *([after] if keep else [])])

    (last,), rows = Loop(b, [state], count, ONE, body).emit()
    return last, rows[0], rows[1] if keep else None
