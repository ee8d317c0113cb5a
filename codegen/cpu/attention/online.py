"""The softmax of rows whose scores come a few keys at a time (Milakov and Gimelshein, 2018).

Of each row the greatest score so far is kept, the sum of exp(score - greatest), and the values
weighed so; where a greater score comes, sum and values are scaled down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value
from abqc.codegen.isa import Isa
from abqc.dialects.mlir import math

from ..exponential import exp_of_negative
from ..float_products.tile import (
    MAX_TILE_ROWS,
    PANEL,
    TILE_PANELS,
    MultiplyAdd,
    Weights,
    multiply_add,
    multiply_rows,
    row_tiles,
    tile_rows,
)
from .spec import AttentionSpec, Problem, Rows

MINUS_INFINITY = float("-inf")
HIDDEN = -1e30  # a mask of this or less leaves nothing of a key, unless all are hidden


Weigh = Callable[[Value, Value, Value, Value], Value]  # score, shift, row, key of those at hand


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


def _tiles(isa: Isa, max_rows: int) -> tuple[int, tuple[int, ...]]:
    """Panels and rows of register tiles, falling."""
    wide = tile_rows(isa, TILE_PANELS)
    heights = tuple(size for size in wide or tile_rows(isa, 1) if size <= max_rows)
    return TILE_PANELS if wide else 1, heights


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
    score_bytes: Value  # the same
    sums: Value  # f32 [most][padded E]
    greatest: Value  # f32 [most]
    greater: Value  # f32 [most]: with the keys at hand
    totals: Value  # f32 [most]

    @staticmethod
    def begin(b: Builder, problem: Problem, rows: Rows, most: int, keys: int) -> OnlineSoftmax:
        columns = padded_columns(problem.spec)
        sizes = (most * columns, most, most, most)
        score_bytes = b.alloca(4 * most * keys, "i8")
        scores = b.view(score_bytes, "f32", b.index(most * keys))
        others = (b.alloca(size, "f32") for size in sizes)
        state = OnlineSoftmax(b, problem, rows, keys, scores, score_bytes, *others)
        zeros = b.const(0.0, f"vector<{PANEL}xf32>")
        with b.loop(0, rows.count) as row:
            for column in range(0, columns, PANEL):
                b.store(zeros, state.sums, row.i * columns + column)
            b.store(b.const(MINUS_INFINITY, "f32"), state.greatest, row.i)
            b.store(b.const(0.0, "f32"), state.totals, row.i)
        return state

    def weigh(self, key: Value, end: Value, put: Weigh | None = None) -> None:
        """The products of all rows with the keys from `key` on, at most `keys`, up to `end`, which
        are in `scores`, become weights. `put` gives and stores the weights of 16 scores."""
        count = self.b.min(end - key, self.keys)
        # A loop for each half: a row waits for its maximum while others are at work.
        with self.b.loop(0, self.rows.count) as row:
            self._rate(row.i, key, count)
        with self.b.loop(0, self.rows.count) as row:
            self._weigh(row.i, count, put or self._put)

    def _put(self, score: Value, shift: Value, row: Value, key: Value) -> Value:
        weight = exp_of_negative(self.b, score - shift)
        self.b.store(weight, self.scores, row * self.keys + key)
        return weight

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

    def _rate(self, row: Value, key: Value, count: Value) -> None:
        """The row's products become scores, and the greatest one so far is found."""
        b, at, vector = self.b, row * self.keys, f"vector<{PANEL}xf32>"
        low = b.const(MINUS_INFINITY, vector)
        with b.loop(0, count, PANEL, carry=[low]) as loop:
            known = b.mask(PANEL, count - loop.i)
            product = b.load(self.scores, at + loop.i, PANEL)
            score = b.select(known, self._score(product, row, key + loop.i, known), low)
            b.store(score, self.scores, at + loop.i)
            loop.carry(b.max(score, loop.args[0]))
        greatest = b.max(across(b, loop.results[0], b.max), b.load(self.greatest, row))
        b.store(greatest, self.greater, row)

    def _weigh(self, row: Value, count: Value, put: Weigh) -> None:
        """The row's scores become weights; its total grows."""
        b, at, vector = self.b, row * self.keys, f"vector<{PANEL}xf32>"
        before, greatest = (b.load(source, row) for source in (self.greatest, self.greater))
        shift = shift_of(b, greatest)
        with b.loop(0, count, PANEL, carry=[b.const(0.0, vector)]) as loop:
            score = b.load(self.scores, at + loop.i, PANEL)
            weight = put(score, b.splat(shift, PANEL), row, loop.i)
            loop.carry(loop.args[0] + weight)
        total = across(b, loop.results[0], lambda x, y: x + y)
        # Before the first keys there is nothing to scale down.
        with b.when((before != greatest) & (before != MINUS_INFINITY)):
            faded, columns = exp(before - shift), padded_columns(self.problem.spec)
            b.store(b.load(self.totals, row) * faded, self.totals, row)
            for column in range(0, columns, PANEL):
                place = row * columns + column
                value = b.load(self.sums, place, PANEL) * b.splat(faded, PANEL)
                b.store(value, self.sums, place)
        b.store(b.load(self.totals, row) + total, self.totals, row)
        b.store(greatest, self.greatest, row)

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

    def multiply_keys(
        self,
        queries: Value,
        at: Callable[[Value], Value],
        keys: Weights,
        terms: int,
        to: Value,
        steps: Sequence[MultiplyAdd] = (multiply_add,),
        max_rows: int = MAX_TILE_ROWS,
    ) -> None:
        """The products of all queries, whose terms begin at `at` of a row, with 48 keys, as scores
        from column `to` on; `steps` and tiles of at most `max_rows` as in `Product`."""
        b, zeros = self.b, self.b.const(0.0, f"vector<{PANEL}xf32>")
        at_once, heights = _tiles(b.isa, max_rows)
        for first in range(0, TILE_PANELS, at_once):
            columns = [(first + p) * PANEL for p in range(at_once)]

            def vectors(term: Value, columns: list[int] = columns) -> list[Value]:
                return [keys(term, b.index(column)) for column in columns]

            def tile(row: Value, size: int, columns: list[int] = columns) -> None:
                rows = [at(row + r) for r in range(size)]
                start = [zeros] * (size * len(columns))
                found = multiply_rows(b, queries, rows, vectors, terms, start, steps)
                for r in range(size):
                    for p, column in enumerate(columns):
                        place = (row + r) * self.keys + to + column
                        b.store(found[r * len(columns) + p], self.scores, place)

            row_tiles(b, b.index(0), self.rows.count, heights, tile)

    def add_products(
        self,
        weights: Value,
        pitch: int,
        values: Callable[[Value, int], Value],
        terms: Value,
        steps: Sequence[MultiplyAdd] = (multiply_add,),
        max_rows: int = MAX_TILE_ROWS,
    ) -> None:
        """sums += weights, rows of `pitch`, times `values(term, column)`, 16 columns of a term."""
        b, columns = self.b, padded_columns(self.problem.spec)
        at_once, heights = _tiles(b.isa, max_rows)
        for first in range(0, columns, at_once * PANEL):
            panels = range(first, min(first + at_once * PANEL, columns), PANEL)

            def vectors(term: Value, panels: range = panels) -> list[Value]:
                return [values(term, column) for column in panels]

            def tile(row: Value, size: int, panels: range = panels) -> None:
                places = [(row + r) * columns + column for r in range(size) for column in panels]
                start = [b.load(self.sums, place, PANEL) for place in places]
                rows = [(row + r) * pitch for r in range(size)]
                found = multiply_rows(b, weights, rows, vectors, terms, start, steps)
                for place, total in zip(places, found, strict=True):
                    b.store(total, self.sums, place)

            row_tiles(b, b.index(0), self.rows.count, heights, tile)

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
