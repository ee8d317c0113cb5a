"""Which of a target's kernels of attention are launched, and by what number of rows.

Variants are `AttentionVariant`s (codegen/strategy.py): for few rows of a head, their ranges count
the rows of all heads that share keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir

from ..resolve_dims import index


def reachable(variants: Sequence[Any], m: int, heads: int, shared: int) -> list[Any]:
    """Those of the variants that are launched for some number of rows, as far as sizes are known:
    where a cache's heads have many of queries, kernels for one row of all have no use."""
    few = [variant.max_rows or 0 for variant in variants if variant.blocks]
    if not few or abq.DYNAMIC in (heads, shared) or not shared:
        return list(variants)
    most, group = max(few), heads // shared
    known = [max(m, 1)] if m != abq.DYNAMIC else range(1, most + 1)
    wanted = [min(group * rows, most) if rows <= most else rows for rows in known]
    many = m == abq.DYNAMIC
    return [v for v in variants if any(map(v.covers, wanted)) or (many and v.min_rows > most)]


def rows_of_ranges(variants: Sequence[Any], m: ir.Value, group: ir.Value) -> ir.Value:
    """The number by which variants are chosen."""
    few = [variant.max_rows or 0 for variant in variants if variant.blocks]
    if not few:
        return m
    most = index(max(few))
    is_few = arith.CmpIOp(arith.CmpIPredicate.ule, m, most).result
    rows = arith.MinUIOp(arith.MulIOp(group, m).result, most).result
    return arith.SelectOp(is_few, rows, m).result
