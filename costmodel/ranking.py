"""What a cost model expects of the candidates for one operation, as data and as text.

Without numpy: `abqc inspect` makes its texts here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

NAMED = 4  # candidates that a text names


@dataclass(frozen=True)
class Prediction:
    """A candidate, the seconds it takes, and the resource that decides (`DRAM-bound`)."""

    candidate: str
    seconds: float
    bound: str
    strategy: str = ""

    @property
    def text(self) -> str:
        return f"{self.candidate}: {time_text(self.seconds)} {self.bound}"


@dataclass(frozen=True)
class Ranking:
    """The candidates for `rows` rows (M), cheapest first.

    `chosen` names the one that is used, where that is known: it may be a slower one, as it is used
    for other rows too. Of the schedules of a strategy those far behind are counted alone (`more`).
    """

    rows: int
    candidates: tuple[Prediction, ...]
    chosen: str = ""
    more: int = 0

    @property
    def text(self) -> str:
        """The candidate that is used, the cheapest one of each strategy, and how many others."""
        used = [each for each in self.candidates if each.candidate == self.chosen]
        seen = {each.strategy for each in used if each.strategy}
        others = []
        for each in self.candidates:
            if each not in used and (not each.strategy or each.strategy not in seen):
                others.append(each)
                seen.add(each.strategy)
        rejected = len(self.candidates) - len(used) - len(others) + self.more
        text = f"M={self.rows}: {explained([*used, *others])}"
        return f"{text}; {rejected} other schedules" if rejected else text

    def as_manifest(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_manifest(cls, data: Mapping[str, Any]) -> Ranking:
        candidates = tuple(Prediction(**each) for each in data["candidates"])
        return cls(data["rows"], candidates, data.get("chosen", ""), data.get("more", 0))


def explained(ranked: Sequence[Prediction]) -> str:
    """One sentence that says what each candidate costs and why."""
    text = "; ".join(each.text for each in ranked[:NAMED])
    rest = len(ranked) - NAMED
    return f"{text}; {rest} slower ones" if rest > 0 else text


def time_text(seconds: float) -> str:
    """Three figures at most: `0.42 us`, `31 us`, `1.7 ms`."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1 or unit == "us":
            value = seconds * factor
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    raise AssertionError("unreachable")
