"""The softmax of rows whose scores come a few keys at a time (Milakov and Gimelshein, 2018).

Of each row the greatest score so far is kept, the sum of exp(score - greatest), and the values
weighed so; where a greater score comes, sum and values are scaled down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value
from abqc.dialects.mlir import math

from ..exponential import exp_of_negative
from ..float_products.matrix import Matrix
from ..float_products.tile import (
    PANEL,
    TILE_PANELS,
    multiply_rows,
    row_tiles,
    tile_rows,
)
from .spec import AttentionSpec, Problem, Rows

MINUS_INFINITY = float("-inf")
HIDDEN = -1e30  # a mask of this or less leaves nothing of a key, unless all are hidden


def exp(x: Value) -> Value:
    return Value(math.exp(x.ir))


def across(b: Builder, lanes: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """All lanes in one, as a tree: `vector.reduction` of floats goes from lane to lane."""
    while (half := lanes.lanes // 2) > 1:
        lanes = combine(b.slice(lanes, 0, half), b.slice(lanes, half, half))
    return combine(b.extract(lanes, 0), b.extract(lanes, 1))


def shift_of(b: Builder, greatest: Value) -> Value:
    """What is subtracted from scores: the greatest one. Where there is none yet but minus infinity,
    exp(x - 0) is 0 too, and no NaN."""
    return b.select(greatest == MINUS_INFINITY, b.const(0.0, "f32"), greatest)


def padded_columns(spec: AttentionSpec) -> int:
    """Of the sums of a row."""
    return -(-spec.value_head // PANEL) * PANEL


@dataclass(frozen=True)
class OnlineSoftmax:
    """The state of at most `most` rows, on the stack; `keys` are those that come at a time."""

    b: Builder
    problem: Problem
    rows: Rows
    keys: int
    scores: Value  # f32 [most][keys]: scores, then exp(score - greatest)
    sums: Value  # f32 [most][padded E]
    greatest: Value  # f32 [most]
    totals: Value  # f32 [most]

    @staticmethod
    def begin(b: Builder, problem: Problem, rows: Rows, most: int, keys: int) -> OnlineSoftmax:
        columns = padded_columns(problem.spec)
        sizes = (most * keys, most * columns, most, most)
        state = OnlineSoftmax(b, problem, rows, keys, *(b.alloca(size, "f32") for size in sizes))
        zeros = b.const(0.0, f"vector<{PANEL}xf32>")
        with b.loop(0, rows.count) as row:
            for column in range(0, columns, PANEL):
                b.store(zeros, state.sums, row.i * columns + column)
            b.store(b.const(MINUS_INFINITY, "f32"), state.greatest, row.i)
            b.store(b.const(0.0, "f32"), state.totals, row.i)
        return state

    def add(self, key: Value, end: Value, values: Matrix) -> None:
        """Add the keys from `key` on, at most `keys`, up to `end`; their products with the queries
        are in `scores`."""
        with self.b.loop(0, self.rows.count) as row:
            self._weigh(row.i, key, end)
        self._add_values(key, end, values)

    def sees(self, row: Value, begin: Value | int, end: Value) -> Value:
        """Whether the mask, which is added, lets a row see one of the keys `begin` .. `end`."""
        b, vector = self.b, f"vector<{PANEL}xf32>"
        assert self.problem.mask is not None and self.problem.spec.mask == "add"
        at, lowest = self.problem.entry(self.rows.masks, row), b.const(HIDDEN, vector)
        with b.loop(begin, end, PANEL, carry=[lowest]) as loop:
            known = b.mask(PANEL, end - loop.i)
            mask = self._mask(self.problem.mask, at, loop.i, known)
            # What is not a number is seen.
            hidden = b.select(mask <= HIDDEN, lowest, b.const(0.0, vector))
            loop.carry(b.max(b.select(known, hidden, lowest), loop.args[0]))
        return across(b, loop.results[0], b.max) > HIDDEN

    def _weigh(self, row: Value, key: Value, end: Value) -> None:
        """The row's products become scores, then weights; its total grows."""
        b, at, vector = self.b, row * self.keys, f"vector<{PANEL}xf32>"
        count = b.min(end - key, self.keys)
        low = b.const(MINUS_INFINITY, vector)
        with b.loop(0, count, PANEL, carry=[low]) as loop:
            known = b.mask(PANEL, count - loop.i)
            product = b.load(self.scores, at + loop.i, PANEL)
            score = b.select(known, self._score(product, row, key + loop.i, known), low)
            b.store(score, self.scores, at + loop.i)
            loop.carry(b.max(score, loop.args[0]))
        before = b.load(self.greatest, row)
        greatest = b.max(across(b, loop.results[0], b.max), before)
        shift = shift_of(b, greatest)
        with b.loop(0, count, PANEL, carry=[b.const(0.0, vector)]) as loop:
            score = b.load(self.scores, at + loop.i, PANEL)
            weight = exp_of_negative(b, score - b.splat(shift, PANEL))
            b.store(weight, self.scores, at + loop.i)
            loop.carry(loop.args[0] + weight)
        total = across(b, loop.results[0], lambda x, y: x + y)
        faded = exp(before - shift)
        b.store(b.load(self.totals, row) * faded + total, self.totals, row)
        b.store(greatest, self.greatest, row)
        with b.when(before != greatest):
            columns = padded_columns(self.problem.spec)
            for column in range(0, columns, PANEL):
                place = row * columns + column
                value = b.load(self.sums, place, PANEL) * b.splat(faded, PANEL)
                b.store(value, self.sums, place)

    def _score(self, product: Value, row: Value, key: Value, known: Value) -> Value:
        """scale * product + mask, of 16 keys."""
        b, problem = self.b, self.problem
        score = product * b.splat(problem.scale, PANEL)
        if problem.mask is None:
            return score
        mask = self._mask(problem.mask, problem.entry(self.rows.masks, row), key, known)
        if problem.spec.mask == "add":
            return score + mask
        return b.select(mask == 0.0, score, mask)

    def _mask(self, source: Value, at: Value, key: Value, known: Value) -> Value:
        """Of 16 keys: neighbours, or apart, which one number for all is too."""
        b, problem = self.b, self.problem
        stride = problem.of_mask[3]
        vector = f"vector<{PANEL}xf32>"

        def neighbours() -> list[Value]:
            return [b.load(source, at + key, PANEL, known)]

        def apart() -> list[Value]:
            lanes = b.const(0.0, vector)
            for lane in range(PANEL):
                place = b.min(key + lane, problem.t - 1)
                lanes = b.insert(b.load(source, at + place * stride), lanes, lane)
            return [lanes]

        return b.either(stride == 1, [vector], neighbours, apart)[0]

    def _add_values(self, key: Value, end: Value, values: Matrix) -> None:
        """sums += weights * values."""
        b, columns = self.b, padded_columns(self.problem.spec)
        terms = b.min(end - key, self.keys)
        wide = tile_rows(b.isa, TILE_PANELS)
        at_once = TILE_PANELS if wide else 1
        for first in range(0, columns, at_once * PANEL):
            panels = range(first, min(first + at_once * PANEL, columns), PANEL)

            def vectors(term: Value, panels: range = panels) -> list[Value]:
                base = values.row(key + term)
                return [values.panel(b, base, b.index(column)) for column in panels]

            def tile(row: Value, size: int, panels: range = panels) -> None:
                places = [(row + r) * columns + column for r in range(size) for column in panels]
                start = [b.load(self.sums, place, PANEL) for place in places]
                weights = [(row + r) * self.keys for r in range(size)]
                found = multiply_rows(b, self.scores, weights, vectors, terms, start)
                for place, total in zip(places, found, strict=True):
                    b.store(total, self.sums, place)

            row_tiles(b, b.index(0), self.rows.count, wide or tile_rows(b.isa, 1), tile)

    def finish(self) -> None:
        """Write y."""
        b, problem = self.b, self.problem
        columns = padded_columns(problem.spec)
        with b.loop(0, self.rows.count) as row:
            at = problem.entry(self.rows.results, row.i)
            total = b.load(self.totals, row.i)
            for column in range(0, columns, PANEL):
                value = b.load(self.sums, row.i * columns + column, PANEL)
                store_result(b, problem.spec, problem.y, at, column, value, total, problem.t)


def store_result(
    b: Builder,
    spec: AttentionSpec,
    y: Value,
    at: Value,
    column: int,
    value: Value,
    total: Value,
    t: Value,
) -> None:
    """16 columns of a row of y: sums over the total; 0 without keys, and where a row that is
    guarded would be NaN."""
    nothing = t == 0
    if spec.guarded:
        nothing = nothing | (total != total) | (total == 0.0)
    zeros = b.const(0.0, value.type)
    quotient = value / b.splat(total, PANEL)
    mask = b.mask(PANEL, b.index(spec.value_head - column))
    b.store(b.select(nothing, zeros, quotient), y, at + column, mask)
