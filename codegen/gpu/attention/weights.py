"""The softmax of tiles of many rows: weights as halves, by bases that seldom change.

Weights are powers of two, 2^(exponent - base). The base of a row is chosen below the largest
exponent so far, so that small weights keep their bits as f16, and need not follow it: while the
weights of a tile have room below the largest f16 the base stays, and nothing is compared or scaled.
What it is does not matter when y is divided by the sum of all weights.

Most rows need none: where the largest exponent of a row is neither so small that f16 would lose
too much of the others nor so large that they may become infinite, its base is 0. A warp that has
such rows alone takes exponents as they are.

A thread has of accumulators by 8 columns two neighbours in each of two rows (mma.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from abqc.codegen.builder import Value

from ..builder import FULL, GpuBuilder
from .halves import Halves
from .spec import MINUS_INFINITY, Scale, finite

MOST_WEIGHT = 2.0**15  # of a thread's keys of a tile together: each of them is a finite f16
LARGEST = 8.0  # the exponent of the largest weight by a new base: 32 of them are far below that
LARGEST_OF_ALL = 12.0  # the same of the first base of a row, where that is 0
# Of a row with a base of 0, what the largest weight then is at least. Of f16: those from 2^-14 of
# it on are normal, and n smaller ones, each rounded by up to 2^-25, together by up to 2^-13 of it.
LEAST_LARGEST = {"f16": 1.0, "bf16": 2.0**-16}
LEAST_OF_A_KEY = 2.0**-12
SIGNS, LEAST_OF_EXPONENT = 0x8000_8000, 0x0400_0400  # of two f16

Fragments = list[list[list[Value]]]  # registers by step of 16 keys and part
A_REGISTERS = 4  # of a step and part
Tiles = Sequence[Sequence[Value]]  # accumulators by 8 columns


def registers_of(fragments: Fragments) -> list[Value]:
    return [register for step in fragments for part in step for register in part]


def like(fragments: Fragments, registers: Sequence[Value]) -> Fragments:
    """The same of other registers, in the order of `registers_of`."""
    left = iter(registers)
    return [[[next(left) for _ in part] for part in step] for step in fragments]


@dataclass(frozen=True)
class State:
    """What a thread has of its rows: bases; whether scores of all rows of the warp are exponents as
    they are (i1); sums of its own weights, 0 where products make them; and accumulators: sums of y
    and, where products make them, of weights."""

    bases: Sequence[Value]
    unshifted: Value
    totals: Sequence[Value]
    sums: Sequence[Value]

    @staticmethod
    def first(b: GpuBuilder, sums: int) -> State:
        """Before all keys; no base is the largest one of nothing."""
        zero = b.const(0.0, "f32")
        none = [b.const(MINUS_INFINITY, "f32")] * 2
        return State(none, b.const(0, "i1"), [zero] * 2, [zero] * sums)

    @staticmethod
    def of(values: Sequence[Value]) -> State:
        return State(values[:2], values[2], values[3:5], values[5:])

    @property
    def values(self) -> list[Value]:
        return [*self.bases, self.unshifted, *self.totals, *self.sums]


@dataclass(frozen=True)
class Weighed:
    """A tile's weights, and the state by the same bases; totals have the tile, sums have not."""

    weights: Fragments
    state: State

    @property
    def values(self) -> list[Value]:
        return [*registers_of(self.weights), *self.state.values]

    @staticmethod
    def of(values: Sequence[Value], registers: int, parts: int) -> Weighed:
        """`registers` of them are those of weights in `parts`."""
        left = iter(values[:registers])
        steps = range(registers // (A_REGISTERS * parts))
        weights = [[[next(left) for _ in range(A_REGISTERS)] for _ in range(parts)] for _ in steps]
        return Weighed(weights, State.of(values[registers:]))


@dataclass(frozen=True)
class Weights:
    """`may_stay`: whether bases may be other than maxima, which takes registers for weights beside
    their scores. `adds`: whether weights are added up here; else products do it, of weights in one
    part. `scale` is that of the scores, `keys` (i32) the number of all of them."""

    b: GpuBuilder
    half: Halves
    may_stay: bool
    adds: bool
    scale: Scale
    keys: Value

    def weigh(self, scores: Tiles, factor: Value, state: State) -> Weighed:
        """The next tile; `factor`, above 0, makes of its scores exponents of 2."""
        if not self.may_stay:
            return self.rise(scores, factor, state)
        b = self.b

        def flat(bases: Sequence[Value] | None) -> list[Value]:
            weights, added = self._weights(scores, factor, bases)
            return [*registers_of(weights), *added]

        count = len(scores) // 2 * self.half.parts * A_REGISTERS
        types = ["i32"] * count + ["f32"] * 2
        values = b.either(state.unshifted, types, lambda: flat(None), lambda: flat(state.bases))
        registers, added = values[:count], values[count:]
        if self.adds:
            # Sums that are infinite, by the first bases, or NaN are not less.
            stays = (added[0] < MOST_WEIGHT) & (added[1] < MOST_WEIGHT)
        else:
            stays = self._all_finite(registers)
        kept = [*registers, *state.values, *added]

        def risen() -> list[Value]:
            weighed, added = self._risen(scores, factor, state)
            return [*weighed.values, *added]

        values = b.either(self._by_all(stays), [value.type for value in kept], lambda: kept, risen)
        return self._with(Weighed.of(values[:-2], count, self.half.parts), values[-2:])

    def row_totals(self, state: State) -> list[Value]:
        """The sums of the weights of both rows."""
        if self.adds:
            return [self.b.warp_sum(total, 4) for total in state.totals]
        return [state.sums[-4], state.sums[-2]]

    def rise(self, scores: Tiles, factor: Value, state: State) -> Weighed:
        """The same by new bases, which follow the largest exponents so far."""
        return self._with(*self._risen(scores, factor, state))

    def _with(self, weighed: Weighed, added: Sequence[Value]) -> Weighed:
        """With a tile's sums of weights in the totals."""
        totals = [old + new for old, new in zip(weighed.state.totals, added, strict=True)]
        return Weighed(weighed.weights, replace(weighed.state, totals=totals))

    def _risen(self, scores: Tiles, factor: Value, state: State) -> tuple[Weighed, Sequence[Value]]:
        """With the totals of before by new bases, and what is to be added to them."""
        b = self.b
        bases, finite_bases, kept = [], [], []
        for half, base in enumerate(state.bases):
            top = b.const(MINUS_INFINITY, "f32")
            for score in (four[2 * half + i] for four in scores for i in range(2)):
                top = b.float_max(top, score)
            for distance in (2, 1):
                top = b.float_max(top, b.exchange(top, "bfly", distance))
            top = b.float_max(base, self._base(top * factor, base))
            bases.append(top)
            finite_bases.append(finite(b, top))
            kept.append(b.exp2(base - finite_bases[half]))
        weights, added = self._weights(scores, factor, finite_bases)
        totals = [k * total for k, total in zip(kept, state.totals, strict=True)]
        # Most tiles behind the first few have no new maximum in any row of the warp.
        sums = b.either(
            self._by_all((kept[0] == 1.0) & (kept[1] == 1.0)),
            ["f32"] * len(state.sums),
            lambda: state.sums,
            lambda: [s * kept[i // 2 % 2] for i, s in enumerate(state.sums)],
        )
        unshifted = self._by_all((bases[0] == 0.0) & (bases[1] == 0.0) & (self.scale.scores == 1.0))
        return Weighed(weights, State(bases, unshifted, totals, sums)), added

    def _base(self, largest: Value, before: Value) -> Value:
        """By a row's largest exponent, and the base so far."""
        b = self.b
        least = b.const(LEAST_LARGEST[self.half.element], "f32")
        if self.half.element == "f16":
            least = b.max(b.to_float(self.keys) * LEAST_OF_A_KEY, least)
        most = b.select(before == 0.0, b.const(LARGEST, "f32"), LARGEST_OF_ALL)
        unshifted = (b.exp2(largest) >= least) & (largest <= most)
        below = largest - LARGEST
        # Beside 2^27, a mask of -1e8, this may be 16 below: a weight that f16 has not.
        below = b.select(largest - below > LARGEST, largest, below)
        return b.select(unshifted, b.const(0.0, "f32"), below)

    def _weights(
        self, scores: Tiles, factor: Value, bases: Sequence[Value] | None
    ) -> tuple[Fragments, list[Value]]:
        """Weights, and the thread's sums of two rows, if it adds up; without bases scores are
        exponents."""
        b = self.b

        def weight(score: Value, half: int) -> Value:
            if bases is None:
                return b.exp2(score)
            return b.exp2(b.fma(score, factor, shifts[half]))

        shifts = [] if bases is None else [-base for base in bases]
        fragments, sums = [], [b.const(0.0, "f32")] * 2
        for first in range(0, len(scores), 2):
            low, high = (
                [weight(score, i // 2) for i, score in enumerate(four)]
                for four in scores[first : first + 2]
            )
            fragments.append(self.half.fragments([low[:2], low[2:], high[:2], high[2:]]))
            if not self.adds:
                continue
            for half, at in enumerate((0, 2)):
                of_row = (low[at] + low[at + 1]) + (high[at] + high[at + 1])
                sums[half] = sums[half] + of_row if first else of_row
        return fragments, sums

    def _all_finite(self, registers: Sequence[Value]) -> Value:
        """Whether all of these pairs of f16, which are not negative, are finite. Two maxima are one
        instruction."""
        b = self.b
        largest = registers[0]
        for pair in registers[1:]:
            largest = b.asm("max.u16x2 $0, $1, $2;", "=r,r,r", ["i32"], largest, pair)[0]
        # The least f16 that is not has an exponent of ones alone.
        return ((largest | (largest + LEAST_OF_EXPONENT)) & SIGNS) == 0

    def _by_all(self, condition: Value) -> Value:
        """Whether it holds in all lanes of the warp."""
        b = self.b
        return b.intrinsic("llvm.nvvm.vote.all.sync", "i1", b.const(FULL, "i32"), condition)
