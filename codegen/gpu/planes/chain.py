"""In which order products of planes are added up: sum of 2^power * (products of pairs of planes).

The accumulators of an MMA are doubled between powers (Horner's rule), which takes four instructions
for a tile of 16 x 8. Where a group is short, they are more than its MMAs; then a pair may rather be
multiplied twice.
"""

from __future__ import annotations

from dataclasses import dataclass

Pair = tuple[int, int]  # a plane of the weight, and a bit tile of the rows
PairsByPower = dict[int, list[Pair]]  # by the binary logarithm of what a product counts for

# Of a scheduler, an MMA of one unit of K. Half of what m16n8k256 takes is 3.7 cycles on Hopper, and
# 4 on an A100; assumed is that the shorter form reaches three quarters of the rate.
UNIT_CYCLES = 4.9
GROUP_END = 20  # instructions that end a group of a tile, with its share of the loop


@dataclass(frozen=True)
class Chain:
    """Pairs of planes whose products are added up by Horner's rule: those that count, and those
    that count as negative (two's complement: the top plane). A pair may stand at a power twice."""

    positive: PairsByPower
    negative: PairsByPower

    @property
    def low(self) -> int:
        """The power that the sum of negative pairs is left at."""
        return min(self.negative, default=0)

    @property
    def settled(self) -> int:
        """The power of the positive sum from which the negative one is taken."""
        return max((power for power in self.positive if power <= self.low), default=self.low)

    @property
    def powers(self) -> list[int]:
        """Those that the positive sum passes through, descending."""
        return sorted({*self.positive, self.settled, 0}, reverse=True)

    @property
    def products(self) -> int:
        """Pairs, as often as they stand."""
        return sum(len(of) for pairs in (self.positive, self.negative) for of in pairs.values())

    @property
    def steps(self) -> int:
        """Instructions for a sum between products: doublings, and the subtraction."""
        between = len(self.powers) - 1
        return between + len(self.negative) if self.negative else between

    def by_four(self) -> Chain:
        """The same sum, multiplied by 4 every other power: pairs between are multiplied twice."""
        return Chain(_by_four(self.positive), _by_four(self.negative))

    def cost(self, units: int) -> float:
        """Cycles of a scheduler for a tile and so many units of K: tensor cores or issue slots."""
        issued = self.products * -(-units // 2) + 4 * self.steps + GROUP_END
        return max(self.products * units * UNIT_CYCLES, issued)


def _by_four(pairs: PairsByPower) -> PairsByPower:
    least = min(pairs, default=0)
    made: PairsByPower = {}
    for power, of in pairs.items():
        odd = (power - least) % 2
        made.setdefault(power - odd, []).extend(of * (1 + odd))
    return made
