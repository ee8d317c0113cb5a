"""Attention on values with an axis of heads: what all operators of it are made of.

    scores = scale * q k^T         [B, H, M, T]
    scores = softcap * tanh(scores / softcap)
    scores = scores + bias, minus infinity where a key is not allowed
    y      = softmax(scores) v     [B, H, M, E]

Heads of k and v may be fewer: consecutive heads of q share one (Ainslie et al., "GQA", 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abqc.dialects.mlir import linalg

from ..building.emit import Builder
from ..building.scalars import Scalar, const
from ..building.shaping import expand, reshape, transpose
from ..ops.matmul import batched
from ..ops.softmax import guarded_softmax, softmax
from ..values.element_types import BOOL, INDEX, ElementType
from ..values.symbolic import ONE, Dim
from ..values.value import Value

# Whether query m of head h of sample b may see key t.
Allowed = Callable[[Scalar, Scalar, Scalar, Scalar], Scalar]


@dataclass(frozen=True)
class Attended:
    """The result and what it was made of, for those who want to see it."""

    y: Value
    scores: Value  # scaled
    capped: Value
    masked: Value
    probabilities: Value


def split_heads(b: Builder, x: Value, heads: int | Dim) -> Value:
    """[B, S, H * D] as [B, H, S, D]."""
    count = Dim.of(heads)
    batch, length, width = x.dims
    return transpose(b, reshape(b, x, [batch, length, count, width // count]), [0, 2, 1, 3])


def join_heads(b: Builder, x: Value) -> Value:
    """[B, H, S, D] as [B, S, H * D]."""
    batch, heads, length, width = x.dims
    return reshape(b, transpose(b, x, [0, 2, 1, 3]), [batch, length, heads * width])


def attend(
    b: Builder,
    q: Value,
    k: Value,
    v: Value,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    bias: Sequence[Value] = (),
    allowed: Allowed | None = None,
    may_see_nothing: bool = True,
    sink: Value | None = None,
    softmax_type: ElementType | None = None,
    score_mod: Callable[[Value], Value] | None = None,
    prob_mod: Callable[[Value], Value] | None = None,
) -> Attended:
    """Attention of q [B, H, M, D], k [B, Hk, T, D], v [B, Hk, T, E].

    `scale`: 1 / sqrt(D) by default. `bias`: floats that are added and bools that say what is
    allowed, broadcast to [B, H, M, T]. `may_see_nothing`: a query to which no key is allowed, whose
    row is 0 then, may be among them. `sink`: one more score for each head, [H], that takes part
    in the sum and has no value ("smooth softmax" with zeros).
    """
    group = _group_size(b, q, k)
    k, v = _shared(b, k, group), _shared(b, v, group)
    factor = 1.0 / math.sqrt(q.dims[-1].value or 1) if scale is None else scale
    if scale is None and q.dims[-1].value is None:
        root = b.scalar(q.dims[-1]).cast(q.dtype).sqrt()
        q = b.elementwise([q], q.dtype, lambda x: x / root)
    product = batched(b, q, transpose(b, k, [0, 1, 3, 2]))
    scores = product
    if factor != 1.0:
        scores = b.elementwise([product], q.dtype, lambda s: s * factor)
    capped = scores
    if softcap:
        capped = b.elementwise([scores], q.dtype, lambda s: (s / softcap).tanh() * softcap)
    masked = _masked(b, capped, bias, allowed)
    if score_mod is not None:
        masked = score_mod(masked)
    wide = masked
    if softmax_type is not None and softmax_type is not masked.dtype:
        wide = b.elementwise([masked], softmax_type, lambda s: s.cast(softmax_type))
    guarded = may_see_nothing and (bool(bias) or allowed is not None)
    if guarded or sink is not None:
        probabilities = guarded_softmax(b, wide, sink)
    else:
        probabilities = softmax(b, wide, [3])
    if prob_mod is not None:
        probabilities = prob_mod(probabilities)
    if probabilities.dtype is not v.dtype:
        probabilities = b.elementwise([probabilities], v.dtype, lambda p: p.cast(v.dtype))
    return Attended(batched(b, probabilities, v), scores, capped, masked, probabilities)


def _group_size(b: Builder, q: Value, k: Value) -> Dim:
    heads, shared = q.dims[1], k.dims[1]
    group = ONE if heads == shared else heads // shared
    b.require_equal(group * shared, heads, f"{heads} heads of queries share {shared} heads of keys")
    return group


def _shared(b: Builder, x: Value, group: Dim) -> Value:
    """Every head `group` times (passes/share_heads.py reads them in place)."""
    if group == ONE:
        return x
    batch, heads, length, width = x.dims
    apart = reshape(b, x, [batch, heads, ONE, length, width])
    wide = expand(b, apart, [batch, heads, group, length, width])
    return reshape(b, wide, [batch, heads * group, length, width])


def _masked(b: Builder, scores: Value, bias: Sequence[Value], allowed: Allowed | None) -> Value:
    """One loop: floats are added, and what any of the others forbids is minus infinity."""
    if not bias and allowed is None:
        return scores

    def body(score: Scalar, *rest: Scalar) -> Scalar:
        seen: Scalar | None = None
        for each in rest:
            if each.dtype.is_bool:
                seen = each if seen is None else seen & each
            else:
                score = score + each.cast(score.dtype)
        if allowed is not None:
            at = [Scalar(linalg.IndexOp(axis).result, INDEX) for axis in range(4)]
            here = allowed(*at)
            seen = here if seen is None else seen & here
        return score if seen is None else seen.select(score, score.like(-math.inf))

    return b.elementwise([scores, *bias], scores.dtype, body, dims=scores.dims)


def causal(b: Builder, offset: Dim | Value) -> Allowed:
    """Query m sees keys up to `offset + m`; an offset for each sample, [B], if it is a value."""
    return window(b, offset, left=None, right=0)


def window(b: Builder, offset: Dim | Value, *, left: int | None, right: int | None) -> Allowed:
    """Query m, at position p = offset + m, sees keys from p - left to p + right; None: all."""
    if isinstance(offset, Value):
        b.tensor(offset)
    else:
        b.index(offset)

    def allowed(sample: Scalar, head: Scalar, row: Scalar, key: Scalar) -> Scalar:
        begin = (
            b.read(offset, [sample]).cast(INDEX) if isinstance(offset, Value) else b.scalar(offset)
        )
        position = begin + row
        seen = const(True, BOOL)
        if right is not None:
            seen = seen & (key <= position + right)
        if left is not None:
            seen = seen & (key >= position - left)
        return seen

    return allowed


def shorter_than(b: Builder, lengths: Value) -> Allowed:
    """Keys before `lengths[b]` of each sample are seen."""
    b.tensor(lengths)
    return lambda sample, head, row, key: key < b.read(lengths, [sample]).cast(INDEX)


def both(first: Allowed | None, second: Allowed | None) -> Allowed | None:
    if first is None or second is None:
        return first or second
    return lambda *at: first(*at) & second(*at)


def rotate(
    b: Builder,
    x: Value,
    cos: Value,
    sin: Value,
    *,
    width: int | None = None,
    interleaved: bool = False,
) -> Value:
    """Rotary embedding of x [B, H, S, D]; `cos` and `sin` are [B or 1, S, width / 2].

    The first `width` columns (all by default) are rotated in pairs: j and j + width / 2, or
    neighbours if `interleaved` (Su et al., "RoFormer", 2021). One loop, no copies of halves.
    """
    total = x.dims[-1].value
    rotated = total if width is None or width == 0 else width
    assert rotated is not None
    half = rotated // 2
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    tables = [Value(t.dtype, t.dims, ssa=b.tensor(t)) for t in (cos, sin)]
    single = [t.dims[0] == ONE for t in tables]

    def body(indices: list[Scalar]) -> Scalar:
        sample, head, row, column = indices
        if interleaved:
            pair, first = column // 2, column % 2 == 0
            other = first.select(column + 1, column - 1)
        else:
            first = column < half
            pair = first.select(column, column - half)
            other = first.select(column + half, column - half)
        value = b.read(source, indices)
        if rotated != total:
            inside = column < rotated
            pair, other = inside.select(pair, 0), inside.select(other, 0)
        partner = b.read(source, [sample, head, row, other])
        c, s = (
            b.read(t, [const(0, INDEX) if one else sample, row, pair]).cast(x.dtype)
            for t, one in zip(tables, single, strict=True)
        )
        turned = value * c + first.select(-(partner * s), partner * s)
        return turned if rotated == total else inside.select(turned, value)

    return b.tabulate(x.dims, x.dtype, body)
