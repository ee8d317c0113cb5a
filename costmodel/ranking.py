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

    @property
    def text(self) -> str:
        return f"{self.candidate}: {time_text(self.seconds)} {self.bound}"


@dataclass(frozen=True)
class Ranking:
    """The candidates for `rows` rows (M), cheapest first."""

    rows: int
    candidates: tuple[Prediction, ...]

    @property
    def text(self) -> str:
        return f"M={self.rows}: {explained(self.candidates)}"

    def as_manifest(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_manifest(cls, data: Mapping[str, Any]) -> Ranking:
        return cls(data["rows"], tuple(Prediction(**each) for each in data["candidates"]))


def explained(ranked: Sequence[Prediction]) -> str:
    """One sentence that says what each candidate costs and why; `ranked`: cheapest first."""
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
