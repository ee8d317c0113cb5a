"""Horner's rule with signs: products of planes in one accumulator, for which a chain has two.

    4 p - 2 n + r = ((p * -2) + n) * -2 + r

What counts as negative is added while the sum itself is negative, so that accumulators are
multiplied once between powers, by a power of two or minus one, and none are kept beside.
"""

from __future__ import annotations

from dataclasses import dataclass

from .chain import Chain, Pair


@dataclass(frozen=True)
class Run:
    """Products added to a sum that is multiplied by `factor` before; the first run begins it."""

    factor: int
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class SignedRuns:
    """The sum of a chain is what the runs leave, times `scale`."""

    runs: tuple[Run, ...]
    scale: int

    @staticmethod
    def of(chain: Chain) -> SignedRuns:
        made: list[Run] = []
        value, sign = 0, 1  # of the sum at hand: what one of it counts for
        for power in sorted({*chain.positive, *chain.negative}, reverse=True):
            by_sign = {1: chain.positive.get(power), -1: chain.negative.get(power)}
            if not made and not by_sign[sign]:
                sign = -sign
            for next_sign in (sign, -sign):
                pairs = by_sign[next_sign]
                if not pairs:
                    continue
                counts = next_sign << power
                made.append(Run(value // counts if made else 1, tuple(pairs)))
                value, sign = counts, next_sign
        return SignedRuns(tuple(made), value)

    @property
    def products(self) -> int:
        """Pairs of planes."""
        return sum(len(run.pairs) for run in self.runs)
