"""RelativePositionBias: what T5 adds to the scores of its attention, by distance."""

from __future__ import annotations

import math

from ..building.scalars import Scalar, const
from ..building.shaping import reshape
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import F32, INDEX
from ..values.symbolic import ONE
from ..values.value import Value


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
