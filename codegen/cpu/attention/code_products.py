"""Products of a few rows with keys and values that are rows of quantized caches, by their codes.

With x = scale * q + low of each row (and group) of a cache a score is

    sum over groups of (scale * sum of query * q  +  low * sum of query)

and values come as sum over keys of (weight * scale) * q, and of weight * low: codes are all that
is decoded of an element. All rows of a block share what is decoded, and each has its terms added in
one order, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value
from abqc.dialects.cache_formats import UNIT

from ..float_products.cache_rows import CacheRows
from ..float_products.matrix import Matrix, row_bases, transpose
from ..float_products.tile import PANEL, broadcast, multiply_add
from .online import OnlineSoftmax, across, padded_columns

HEIGHTS = (1, 2, 3, 4, 6, 8)  # rows of register tiles
SUMS = {512: 24, 256: 6, 128: 2}  # panels of 16 that registers hold, by their bits


def _padded(columns: int) -> int:
    return -(-columns // PANEL) * PANEL


def _by_height(b: Builder, count: Value, most: int, tile: Callable[[Value, int], None]) -> None:
    """Call `tile(row, height)` for tiles of at most `most` rows that cover `count`, the last one
    of the least height that is enough."""
    heights = [height for height in HEIGHTS if height <= most]
    with b.loop(0, count, heights[-1]) as loop:
        rest = count - loop.i
        for below, height in zip([0, *heights], heights, strict=False):
            fits = rest > below if height == heights[-1] else (rest > below) & (rest <= height)
            with b.when(fits):
                tile(loop.i, height)


@dataclass(frozen=True)
class KeyCodes:
    """Scores of the rows of a block. 16 keys are side by side in a register: words of their rows
    are transposed on the stack, and codes shifted out of these."""

    state: OnlineSoftmax
    keys: Matrix
    stored: CacheRows
    queries: Value  # f32 [most][padded D], zeros behind the end
    totals: Value  # f32 [most][groups]: sums of queries
    words: Value  # i32 [units of a row][words of a unit][16]
    scales: Value  # i32 [groups][16]

    @staticmethod
    def of(b: Builder, state: OnlineSoftmax, keys: Matrix, most: int) -> KeyCodes:
        stored = keys.stored
        assert isinstance(stored, CacheRows)
        groups = stored.format.n_groups(stored.columns)
        words = _padded(stored.columns) // UNIT * stored.unit_words
        made = KeyCodes(
            state,
            keys,
            stored,
            b.alloca(most * _padded(stored.columns), "f32"),
            b.alloca(most * groups, "f32"),
            b.alloca(words * PANEL, "i32"),
            b.alloca(groups * PANEL, "i32"),
        )
        made._begin(b, most)
        return made

    @property
    def groups(self) -> int:
        return self.stored.format.n_groups(self.stored.columns)

    @property
    def pitch(self) -> int:
        return _padded(self.stored.columns)

    def _begin(self, b: Builder, most: int) -> None:
        """Queries and their sums onto the stack; rows of tiles behind the last one are zeros."""
        rows, q, size = self.state.rows, self.state.problem.q, self.pitch // self.groups
        zeros = b.const(0.0, f"vector<{PANEL}xf32>")
        with b.loop(rows.count * self.pitch, most * self.pitch, PANEL) as loop:
            b.store(zeros, self.queries, loop.i)
        with b.loop(rows.count * self.groups, most * self.groups) as loop:
            b.store(b.const(0.0, "f32"), self.totals, loop.i)
        with b.loop(0, rows.count) as row:
            at = self.state.problem.entry(rows.queries, row.i)
            with b.loop(0, self.groups) as group:
                begin = group.i * size
                with b.loop(begin, begin + size, PANEL, [zeros]) as loop:
                    part = b.load(q, at + loop.i, PANEL, b.mask(PANEL, self.keys.columns - loop.i))
                    b.store(part, self.queries, row.i * self.pitch + loop.i)
                    loop.carry(loop.args[0] + part)
                total = across(b, loop.results[0], lambda x, y: x + y)
                b.store(total, self.totals, row.i * self.groups + group.i)

    def add(self, key: Value, end: Value) -> None:
        """The products of all queries with the keys from `key` up to `end`, as scores."""
        b, state = self.state.b, self.state
        most = min(SUMS[b.isa.vector_bits], HEIGHTS[-1])
        with b.loop(key, b.min(key + state.keys, end), PANEL) as some:
            self._transpose(b, row_bases(b, self.keys, some.i, PANEL, state.problem.t))

            def tile(row: Value, height: int, at: Value = some.i - key) -> None:
                for r, score in enumerate(self._products(b, row, height)):
                    b.store(score, state.scores, (row + r) * state.keys + at)

            _by_height(b, state.rows.count, most, tile)

    def _transpose(self, b: Builder, bases: Sequence[Value]) -> None:
        """Words and scales of 16 rows onto the stack."""
        with b.loop(0, self.groups) as group:
            for lane, base in enumerate(bases):
                scale = self.stored.load_scale(b, self.keys.data, base, group.i)
                b.store(scale, self.scales, group.i * PANEL + lane)
        units, words = self.pitch // UNIT, self.stored.unit_words
        if self.stored.format.bits % 2:  # a unit ends in the middle of a word
            with b.loop(0, units) as unit:
                begin = unit.i * (2 * self.stored.format.bits)
                self._transpose_words(b, bases, begin, unit.i * words, words)
            return
        whole = units * words // PANEL * PANEL
        with b.loop(0, whole, PANEL) as loop:
            self._transpose_words(b, bases, loop.i * 4, loop.i, PANEL)
        self._transpose_words(b, bases, b.index(whole * 4), b.index(whole), units * words - whole)

    def _transpose_words(
        self, b: Builder, bases: Sequence[Value], begin: Value, to: Value, count: int
    ) -> None:
        """Up to 16 words from byte `begin` of each row on, as words from `to` on."""
        done = 0
        while done < count:
            width = 1 << (count - done).bit_length() - 1
            type_ = f"vector<{width}xi32>"
            parts = [b.load_as(self.keys.data, base + begin + 4 * done, type_) for base in bases]
            rows = [b.join(*parts[j::width]) for j in range(width)]
            for j, word in enumerate(transpose(b, rows)):
                b.store(word, self.words, (to + (done + j)) * PANEL)
            done += width

    def _products(self, b: Builder, row: Value, height: int) -> list[Value]:
        """Of 16 keys with `height` queries from `row` on."""
        size, zeros = self.pitch // self.groups, [b.const(0.0, f"vector<{PANEL}xf32>")] * height
        with b.loop(0, self.groups, 1, zeros) as group:
            begin = group.i * size
            with b.loop(begin, begin + size, UNIT, zeros) as unit:
                unit.carry(*self._unit_products(b, row, unit.i, unit.args))
            scale, low = self.stored.scale(b, b.load(self.scales, group.i * PANEL, PANEL))
            totals = []
            for r, (products, total) in enumerate(zip(unit.results, group.args, strict=True)):
                total = multiply_add(b, products, scale, total)
                if low is not None:
                    query = broadcast(b, self.totals, (row + r) * self.groups + group.i)
                    total = multiply_add(b, low, query, total)
                totals.append(total)
            group.carry(*totals)
        return group.results

    def _unit_products(
        self, b: Builder, row: Value, column: Value, sums: list[Value]
    ) -> list[Value]:
        """`sums` and queries times the 16 codes from `column` on."""
        first = column // UNIT * self.stored.unit_words
        words = [
            b.load(self.words, (first + j) * PANEL, PANEL) for j in range(self.stored.unit_words)
        ]
        for j, code in enumerate(self.stored.codes_of_words(b, words)):
            places = [(row + r) * self.pitch + (column + j) for r in range(len(sums))]
            sums = [
                multiply_add(b, broadcast(b, self.queries, place), code, total)
                for place, total in zip(places, sums, strict=True)
            ]
        return sums


@dataclass(frozen=True)
class ValueCodes:
    """Sums of the rows of a block. Where a byte has several codes of a width, bytes of 16 become
    panels of the first, the second, ... code each: sums are in the order of columns at the end."""

    state: OnlineSoftmax
    values: Matrix
    stored: CacheRows
    weights: Value  # f32 [most][keys]: times scales
    scales: Value  # i32 [groups][keys]

    @staticmethod
    def of(b: Builder, state: OnlineSoftmax, values: Matrix, most: int) -> ValueCodes:
        stored = values.stored
        assert isinstance(stored, CacheRows)
        groups = stored.format.n_groups(stored.columns)
        scales = b.alloca(groups * state.keys, "i32")
        weights = b.alloca(most * state.keys, "f32")
        zeros = b.const(0.0, f"vector<{PANEL}xf32>")
        with b.loop(state.rows.count * state.keys, most * state.keys, PANEL) as loop:
            b.store(zeros, weights, loop.i)
        return ValueCodes(state, values, stored, weights, scales)

    def add(self, key: Value, end: Value) -> None:
        """sums += weights, which are in scores, * values, of the keys from `key` up to `end`."""
        b, state, format = self.state.b, self.state, self.stored.format
        count = b.min(end - key, state.keys)
        groups = format.n_groups(self.stored.columns)
        # Where the last 16 are not full their weights are 0.
        with b.loop(0, (count + (PANEL - 1)) // PANEL * PANEL) as loop:
            base = self.values.row(b.min(key + loop.i, state.problem.t - 1))
            with b.loop(0, groups) as group:
                scale = self.stored.load_scale(b, self.values.data, base, group.i)
                b.store(scale, self.scales, group.i * state.keys + loop.i)
        with b.loop(0, groups) as group:
            self._weigh(b, group.i, count)
            self._add(b, key, count, group.i * self._group_columns)

    def _weigh(self, b: Builder, group: Value, count: Value) -> None:
        """Weights times scales; to sums of the group's columns those of weights times lows."""
        state, zeros = self.state, b.const(0.0, f"vector<{PANEL}xf32>")
        pitch, size = padded_columns(state.problem.spec), self._group_columns
        with b.loop(0, state.rows.count) as row:
            at = row.i * state.keys
            with b.loop(0, count, PANEL, [zeros]) as loop:
                stored = b.load(self.scales, group * state.keys + loop.i, PANEL)
                scale, low = self.stored.scale(b, stored)
                weight = b.load(state.scores, at + loop.i, PANEL)
                b.store(weight * scale, self.weights, at + loop.i)
                total = loop.args[0]
                loop.carry(total if low is None else multiply_add(b, weight, low, total))
            if not self.stored.format.is_blocks:
                low = b.splat(across(b, loop.results[0], lambda x, y: x + y), PANEL)
                for column in range(0, size, PANEL):
                    place = row.i * pitch + group * size + column
                    b.store(b.load(state.sums, place, PANEL) + low, state.sums, place)

    @property
    def shared(self) -> int:
        """Codes of a byte that become panels of their own."""
        bits, units = self.stored.format.bits, self._group_columns // UNIT
        each = 8 // bits if 8 % bits == 0 else 1
        return each if units % each == 0 else 1

    @property
    def _group_columns(self) -> int:
        columns = _padded(self.stored.columns)
        return columns // self.stored.format.n_groups(self.stored.columns)

    def _add(self, b: Builder, key: Value, count: Value, first: Value) -> None:
        """sums of the columns of a group, from `first` on, += their codes times weights."""
        state, shared = self.state, self.shared
        panels, pitch = self._group_columns // PANEL, padded_columns(state.problem.spec)
        most = max(SUMS[b.isa.vector_bits] // shared, 1)

        def tile(row: Value, height: int) -> None:
            wide = max(SUMS[b.isa.vector_bits] // height // shared, 1)
            tiles = -(-panels // shared // wide)
            wide = -(-panels // shared // tiles) * shared
            for begin in range(0, panels, wide):
                some = range(begin, min(begin + wide, panels))
                places = [
                    (row + r) * pitch + first + p * PANEL for r in range(height) for p in some
                ]
                start = [b.load(state.sums, place, PANEL) for place in places]
                with b.loop(0, count, 1, start) as loop:
                    base = self.values.row(key + loop.i)
                    codes = self._codes(b, base, first, some)
                    sums: list[Value] = []
                    for r in range(height):
                        weight = broadcast(b, self.weights, (row + r) * state.keys + loop.i)
                        for code in codes:
                            total = loop.args[len(sums)]
                            sums.append(multiply_add(b, weight, code, total))
                    loop.carry(*sums)
                for place, total in zip(places, loop.results, strict=True):
                    b.store(total, state.sums, place)

        _by_height(b, state.rows.count, min(most, HEIGHTS[-1]), tile)

    def _codes(self, b: Builder, base: Value, first: Value, panels: range) -> list[Value]:
        """Panels of a row's codes from column `first` on, f32."""
        data, found = self.values.data, []
        for p in panels[:: self.shared]:
            column = first + p * PANEL
            if self.shared == 1:
                found.append(self.stored.codes(b, data, base, column))
            else:
                found += self.stored.codes_of_bytes(b, data, base, column)
        return found

    def order(self) -> None:
        """Sums in the order of columns."""
        b, shared = self.state.b, self.shared
        pitch = padded_columns(self.state.problem.spec)
        if shared == 1:
            return
        with b.loop(0, self.state.rows.count) as row:
            for first in range(0, pitch, shared * PANEL):
                places = [row.i * pitch + (first + p * PANEL) for p in range(shared)]
                panels = [b.load(self.state.sums, place, PANEL) for place in places]
                whole = b.join(*panels)
                lanes = [j % shared * PANEL + j // shared for j in range(shared * PANEL)]
                for p, place in enumerate(places):
                    part = b.shuffle(whole, whole, lanes[p * PANEL : (p + 1) * PANEL])
                    b.store(part, self.state.sums, place)
