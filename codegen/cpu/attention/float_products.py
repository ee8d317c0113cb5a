"""Attention's two products in f32, over keys and values as they lie or transposed on the stack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from abqc.codegen.builder import Builder, Value

from ..float_products.matrix import Matrix, copy_transposed
from ..float_products.tile import COLUMN_BLOCK, stack_block
from .online import OnlineSoftmax


def add_values(state: OnlineSoftmax, key: Value, end: Value, values: Matrix) -> None:
    """sums += weights, which are in scores, * values, of the keys from `key` up to `end`."""
    b = state.b

    def panel(term: Value, column: int) -> Value:
        return values.panel(b, values.row(key + term), b.index(column))

    state.add_products(state.scores, state.keys, panel, b.min(end - key, state.keys))


@dataclass(frozen=True)
class FloatProducts:
    """Products of many rows."""

    state: OnlineSoftmax
    block: Value  # f32 [D][48]: keys

    @staticmethod
    def of(b: Builder, state: OnlineSoftmax) -> FloatProducts:
        return FloatProducts(state, b.alloca(state.problem.spec.head * COLUMN_BLOCK, "f32"))

    def multiply_keys(self, keys: Matrix, key: Value, to: Value) -> None:
        """The products of all queries with 48 keys from `key` on, as scores from column `to` on."""
        b, problem = self.state.b, self.state.problem
        head = problem.spec.head
        copy_transposed(b, keys, self.block, (b.index(0), b.index(head)), key, problem.t)
        queries = partial(problem.entry, self.state.rows.queries)
        self.state.multiply_keys(problem.q, queries, stack_block(b, self.block), head, to)

    def weigh(self, key: Value, end: Value) -> None:
        """Products become weights."""
        self.state.weigh(key, end)

    def add_values(self, key: Value, end: Value, values: Matrix) -> None:
        add_values(self.state, key, end, values)
