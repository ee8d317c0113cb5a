"""What is added to the scores of attention by distance: T5's table, and WavLM's gates on it."""

from __future__ import annotations

import math

from ..building.scalars import Scalar, const
from ..building.shaping import reshape, slice_axis
from ..parts.attending import split_heads
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import F32, INDEX
from ..values.symbolic import ONE, Dim
from ..values.value import Value
from .matmul import product_of


@lowers("RelativePositionBias", domain=MICROSOFT)
def relative_position_bias(node: Node) -> Value:
    """[1, H, S, S] of a table of `buckets` numbers for each of H heads and a length S.

    The table is declared [buckets, H], but its elements lie in memory head by head. The first half
    of the buckets are distances 0, 1, ...; the others grow as the logarithm up to `max_distance`.
    If `is_bidirectional`, half of the buckets are for keys ahead of the query.
    """
    b, table = node.b, node.input(0)
    if table.rank != 2:
        raise node.error(f"its table is {table}, expected a matrix")
    buckets, heads = table.dims
    by_head = reshape(b, table, [heads, buckets])
    source = Value(table.dtype, by_head.dims, ssa=b.tensor(by_head))
    length = node.integer_of(1)
    b.require_equal(length, node.integer_of(2), "query_length and key_length differ")
    bidirectional = bool(node.int("is_bidirectional", 0))
    count = buckets.value
    if count is None:
        raise node.error(f"the number of buckets must be static, its table is {table}")
    near = count // 2 if bidirectional else count  # buckets of one direction
    exact = near // 2
    farthest = node.int("max_distance")
    if exact < 1 or farthest <= exact:
        raise node.error(f"{count} buckets do not go with a max_distance of {farthest}")
    factor = (near - exact) / math.log(farthest / exact)

    def bucket(row: Scalar, column: Scalar) -> Scalar:
        ahead = column - row
        distance = ahead.abs()
        far = (distance.maximum(1).cast(F32) / float(exact)).log() * factor
        place = (far.cast(INDEX) + exact).minimum(near - 1)
        place = (distance < exact).select(distance, place)
        if not bidirectional:
            return place
        return place + (ahead > 0).select(const(near, INDEX), 0)

    def body(at: list[Scalar]) -> Scalar:
        _, head, row, column = at
        return b.read(source, [head, bucket(row, column)])

    return b.tabulate([ONE, heads, length, length], table.dtype, body)


@lowers("GatedRelativePositionBias", domain=MICROSOFT)
def gated_relative_position_bias(node: Node) -> Value:
    """Inputs: queries [B, S, H * D], their bias, positions [1, H, S, S], weight [D, G], bias [G],
    a [1, H, 1, 1]. Output: `(u * (r * a - 1) + 2) * positions`, [B, H, S, S].

    u and r are gates of each query: the sigmoids of the sums of half of its G columns
    (Chen et al., "WavLM", 2022).
    """
    if node.given(6):
        raise node.error("token_offset (queries without padding) is not supported")
    b, queries, positions = node.b, node.input(0), node.input(2)
    if queries.rank != 3:
        raise node.error(f"its queries are {queries}, expected [batch, length, hidden]")
    biased = b.elementwise([queries, node.input(1)], queries.dtype, lambda x, c: x + c)
    heads = split_heads(b, biased, node.int("num_heads"))  # [B, H, S, D]
    scores = product_of(node, heads, node.input(3))
    scores = b.elementwise([scores, node.input(4)], scores.dtype, lambda x, c: x + c)
    half = scores.dims[3] // 2
    b.require_equal(half * 2, scores.dims[3], f"the columns of {node.input(3)} are no even number")
    parts = reshape(b, scores, [*scores.dims[:3], Dim.of(2), half])
    (sums,) = b.reduce([parts], [4], [(parts.dtype, 0)], lambda x, total: [total + x])
    u, r = (slice_axis(b, sums, 3, i, 1) for i in range(2))  # [B, H, S, 1]

    def gated(u: Scalar, r: Scalar, a: Scalar, position: Scalar) -> Scalar:
        return (u.sigmoid() * (r.sigmoid() * a - 1.0) + 2.0) * position

    return b.elementwise([u, r, node.input(5), positions], positions.dtype, gated)
