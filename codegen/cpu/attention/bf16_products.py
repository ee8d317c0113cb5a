"""Attention's two products of many rows in bf16, with f32 sums.

Queries and keys are rounded, then their products are those of exact pairs; of exp(score - greatest)
and the values likewise. A row is divided by the sum of its weights before they are rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from abqc.codegen.align import align
from abqc.codegen.builder import Builder, Value, vec

from ..bf16.dot import PAIR, dot_steps, max_tile_rows, rounded, rounded_pairs
from ..float_products.matrix import Matrix, copy_transposed
from ..float_products.tile import COLUMN_BLOCK, PANEL, ceil_div, multiply_add, stack_block
from .online import OnlineSoftmax, padded_columns

SCORE_BYTES, VALUE_BYTES = 4, 2
LEAST_POWER = -126.0  # of two, that is a normal number
MAGIC = 1.5 * 2.0**23  # what is added to it has its nearest integer in the lowest bits

# 2^f for |f| <= 1/2 within 2^-18 of itself, by interpolation in Chebyshev's points; the highest
# power comes first.
POWER = (9.666368515e-3, 5.592197584e-2, 2.402234904e-1, 6.931210452e-1, 1.0)


def short_exp(b: Builder, x: Value, shift: Value) -> Value:
    """exp(x - shift), x at most `shift`, within 2^-16 of itself; 0 below 2^-126."""
    # The difference first: scores of hidden keys may be the lowest f32.
    exponent = (x - shift) * (1 / math.log(2))
    inside = b.max(b.const(LEAST_POWER, x.type), exponent)
    nearest = inside + MAGIC
    f, power = inside - (nearest - MAGIC), b.const(POWER[0], x.type)
    for coefficient in POWER[1:]:
        power = multiply_add(b, power, f, b.const(coefficient, x.type))
    scale = (b.bitcast(nearest, vec(PANEL, "i32")) << 23) + 0x3F800000
    result = power * b.bitcast(scale, x.type)
    return b.select(exponent < LEAST_POWER, b.const(0.0, x.type), result)


@dataclass(frozen=True)
class Bf16Products:
    """The operands of both products on the stack, for the rows and keys of `state`."""

    state: OnlineSoftmax
    floats: Value  # f32 [D][48], keys before they are rounded
    keys: Value  # pairs along D, i32 [ceil(D / 2)][48]
    values: Value  # pairs of keys, i32 [keys / 2][padded E]
    queries: Value  # bytes: bf16 [rows][padded D]

    @staticmethod
    def of(b: Builder, state: OnlineSoftmax, most: int) -> Bf16Products:
        """With the queries of at most `most` rows, rounded."""
        spec = state.problem.spec
        head, columns = align(spec.head, PANEL), padded_columns(spec)
        made = Bf16Products(
            state,
            b.alloca(spec.head * COLUMN_BLOCK, "f32"),
            b.alloca(head // PAIR * COLUMN_BLOCK, "i32"),
            b.alloca(state.keys // PAIR * columns, "i32"),
            b.alloca(most * head * VALUE_BYTES, "i8"),
        )
        with b.loop(0, state.rows.count) as row:
            at = state.problem.entry(state.rows.queries, row.i)
            for column in range(0, head, PANEL):
                mask = b.mask(PANEL, b.index(spec.head - column))
                query = b.load(state.problem.q, at + column, PANEL, mask)
                to = (row.i * head + column) * VALUE_BYTES
                b.store_as(rounded(b, query), made.queries, to)
        return made

    def multiply_keys(self, keys: Matrix, key: Value, to: Value) -> None:
        """The products of all queries with 48 keys from `key` on, as scores from column `to` on."""
        state = self.state
        b, problem = state.b, state.problem
        head = problem.spec.head
        pairs, pitch = -(-head // PAIR), align(head, PANEL) // PAIR
        copy_transposed(b, keys, self.floats, (b.index(0), b.index(head)), key, problem.t)
        for column in range(0, COLUMN_BLOCK, PANEL):
            with b.loop(0, head // PAIR) as loop:
                at = loop.i * (PAIR * COLUMN_BLOCK) + column
                low, high = (b.load(self.floats, at + of * COLUMN_BLOCK, PANEL) for of in (0, 1))
                b.store(rounded_pairs(b, low, high), self.keys, loop.i * COLUMN_BLOCK + column)
            if head % PAIR:
                last = b.load(self.floats, (head - 1) * COLUMN_BLOCK + column, PANEL)
                alone = rounded_pairs(b, last, b.const(0.0, last.type))
                b.store(alone, self.keys, (pairs - 1) * COLUMN_BLOCK + column)
        queries = b.view(self.queries, "i32", state.rows.count * pitch)
        state.multiply_keys(
            queries,
            lambda row: row * pitch,
            stack_block(b, self.keys),
            pairs,
            to,
            dot_steps(b.isa),
            max_tile_rows(b.isa),
        )

    def weigh(self, key: Value, end: Value) -> None:
        """Products become weights, rounded, in the first half of what the scores of a row took."""
        b, state = self.state.b, self.state

        def put(score: Value, shift: Value, row: Value, key: Value) -> Value:
            weight = short_exp(b, score, shift)
            at = row * (state.keys * SCORE_BYTES) + key * VALUE_BYTES
            b.store_as(rounded(b, weight), state.score_bytes, at)
            return weight

        state.weigh(key, end, put)

    def add_values(self, key: Value, end: Value, values: Matrix) -> None:
        """sums += weights * values, of the keys from `key` up to `end`."""
        state = self.state
        b, columns = state.b, padded_columns(state.problem.spec)
        count = b.min(end - key, state.keys)
        pairs = ceil_div(count, PAIR)
        with b.loop(0, pairs) as loop:
            first = key + loop.i * PAIR
            both = first + 1 < end
            rows = values.row(first), values.row(b.select(both, first + 1, first))
            for column in range(0, columns, PANEL):
                low, high = (values.panel(b, row, b.index(column)) for row in rows)
                high = b.select(b.splat(both, PANEL), high, b.const(0.0, high.type))
                b.store(rounded_pairs(b, low, high), self.values, loop.i * columns + column)
        state.add_products(
            b.view(state.score_bytes, "i32", state.rows.count * state.keys),
            state.keys,
            lambda pair, column: b.load(self.values, pair * columns + column, PANEL),
            pairs,
            dot_steps(b.isa),
            max_tile_rows(b.isa),
        )
