"""The softmax of tiles of many rows: weights as halves, by bases that seldom change.

Weights are powers of two, 2^(exponent - base). The base of a row is chosen below the largest
exponent so far, so that small weights keep their bits as f16, and need not follow it: while the
weights of a tile have room below the largest f16 the base stays, and nothing is compared or scaled.
What it is does not matter when y is divided by the sum of all weights.

A thread has of accumulators by 8 columns two neighbours in each of two rows (mma.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..builder import FULL, GpuBuilder
from .halves import Halves
from .spec import MINUS_INFINITY, finite

MOST_WEIGHT = 2.0**15  # of a thread's keys of a tile together: each of them is a finite f16
LARGEST = 8  # the exponent of the largest weight by a new base: 32 of them are far below that

Fragments = list[list[list[Value]]]  # registers by step of 16 keys and part
Tiles = Sequence[Sequence[Value]]  # accumulators by 8 columns


def registers_of(fragments: Fragments) -> list[Value]:
    return [register for step in fragments for part in step for register in part]


def like(fragments: Fragments, registers: Sequence[Value]) -> Fragments:
    """The same of other registers, in the order of `registers_of`."""
    left = iter(registers)
    return [[[next(left) for _ in part] for part in step] for step in fragments]


@dataclass(frozen=True)
class State:
    """What a thread has of its rows: bases, sums of its own weights, and sums of y."""

    bases: Sequence[Value]
    totals: Sequence[Value]
    sums: Sequence[Value]

    @staticmethod
    def first(b: GpuBuilder, sums: int) -> State:
        """Before all keys; no base is the largest one of nothing."""
        zero = b.const(0.0, "f32")
        return State([b.const(MINUS_INFINITY, "f32")] * 2, [zero] * 2, [zero] * sums)

    @staticmethod
    def of(values: Sequence[Value]) -> State:
        return State(values[:2], values[2:4], values[4:])

    @property
    def values(self) -> list[Value]:
        return [*self.bases, *self.totals, *self.sums]


@dataclass(frozen=True)
class Weighed:
    """A tile's weights, and the state by the same bases; totals have the tile, sums have not."""

    weights: Fragments
    state: State

    @property
    def values(self) -> list[Value]:
        return [*registers_of(self.weights), *self.state.values]


@dataclass(frozen=True)
class Weights:
    """`may_stay`: whether bases may be other than maxima, which takes registers for weights beside
    their scores."""

    b: GpuBuilder
    half: Halves
    may_stay: bool

    def weigh(self, scores: Tiles, factor: Value, state: State) -> Weighed:
        """The next tile; `factor`, above 0, makes of its scores exponents of 2."""
        if not self.may_stay:
            return self._risen(scores, factor, state)
        weights, added = self._weights(scores, factor, state.bases)
        totals = [old + new for old, new in zip(state.totals, added, strict=True)]
        kept = Weighed(weights, State(state.bases, totals, state.sums))
        # Sums that are infinite, by the first bases, or NaN are not less.
        stays = (added[0] < MOST_WEIGHT) & (added[1] < MOST_WEIGHT)
        values = self.b.either(
            self._by_all(stays),
            [value.type for value in kept.values],
            lambda: kept.values,
            lambda: self._risen(scores, factor, state).values,
        )
        count = len(registers_of(weights))
        return Weighed(like(weights, values[:count]), State.of(values[count:]))

    def _risen(self, scores: Tiles, factor: Value, state: State) -> Weighed:
        """By bases that follow the largest exponents so far."""
        b = self.b
        bases, finite_bases, kept = [], [], []
        for half, base in enumerate(state.bases):
            top = b.const(MINUS_INFINITY, "f32")
            for score in (four[2 * half + i] for four in scores for i in range(2)):
                top = b.float_max(top, score)
            for distance in (2, 1):
                top = b.float_max(top, b.exchange(top, "bfly", distance))
            top = b.float_max(base, b.fma(top, factor, b.const(-float(LARGEST), "f32")))
            bases.append(top)
            finite_bases.append(finite(b, top))
            kept.append(b.exp2(base - finite_bases[half]))
        weights, added = self._weights(scores, factor, finite_bases)
        totals = [b.fma(k, t, a) for k, t, a in zip(kept, state.totals, added, strict=True)]
        # Most tiles behind the first few have no new maximum in any row of the warp.
        sums = b.either(
            self._by_all((kept[0] == 1.0) & (kept[1] == 1.0)),
            ["f32"] * len(state.sums),
            lambda: state.sums,
            lambda: [s * kept[i // 2 % 2] for i, s in enumerate(state.sums)],
        )
        return Weighed(weights, State(bases, totals, sums))

    def _weights(
        self, scores: Tiles, factor: Value, bases: Sequence[Value]
    ) -> tuple[Fragments, list[Value]]:
        """Weights, and the thread's sums of two rows."""
        b = self.b
        shifts = [-base for base in bases]
        fragments, sums = [], [b.const(0.0, "f32")] * 2
        for first in range(0, len(scores), 2):
            low, high = (
                [b.exp2(b.fma(score, factor, shifts[i // 2])) for i, score in enumerate(four)]
                for four in scores[first : first + 2]
            )
            fragments.append(self.half.fragments([low[:2], low[2:], high[:2], high[2:]]))
            for half, at in enumerate((0, 2)):
                of_row = (low[at] + low[at + 1]) + (high[at] + high[at + 1])
                sums[half] = sums[half] + of_row if first else of_row
        return fragments, sums

    def _by_all(self, condition: Value) -> Value:
        """Whether it holds in all lanes of the warp."""
        b = self.b
        return b.intrinsic("llvm.nvvm.vote.all.sync", "i1", b.const(FULL, "i32"), condition)
