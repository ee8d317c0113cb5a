"""What the analytic models of CPUs and GPUs share: asking, ordering, explaining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol

from .interface import F

EXPLAINED = 4  # candidates that an explanation names


class Estimate(Protocol):
    """An analytic prediction. `terms` are seconds by resource, in an order that is always the same:
    what a learned residual may look at."""

    @property
    def seconds(self) -> float: ...

    @property
    def bound(self) -> str:
        """The resource that decides, such as `DRAM-bound`."""
        ...

    @property
    def terms(self) -> Mapping[str, float]: ...


class Roofline(Generic[F]):
    """Everything of a cost model but `estimate`, which a subclass adds."""

    def estimate(self, features: F) -> Estimate:
        """The analytic prediction and its parts. Raises CompileError for what is not described."""
        raise NotImplementedError

    @property
    def status(self) -> str:
        return "analytic only"

    def predict(self, features: F) -> float:
        return self.estimate(features).seconds

    def rank(self, candidates: Sequence[F]) -> list[F]:
        return sorted(candidates, key=self.predict)

    def explain(self, candidates: Sequence[F]) -> str:
        ranked = self.rank(candidates)
        text = "; ".join(self._explain_one(f) for f in ranked[:EXPLAINED])
        rest = len(ranked) - EXPLAINED
        return f"{text}; {rest} slower ones" if rest > 0 else text

    def _explain_one(self, features: F) -> str:
        estimate = self.estimate(features)
        return f"{label(features)}: {time_text(self.predict(features))} {estimate.bound}"


def label(features: F) -> str:
    """A candidate's name: its strategy, and its schedule where it has one."""
    schedule = getattr(features, "schedule", "")
    return f"{features.strategy} {schedule}".strip()


def time_text(seconds: float) -> str:
    """Three figures at most: `0.42 us`, `31 us`, `1.7 ms`."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1 or unit == "us":
            value = seconds * factor
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    raise AssertionError("unreachable")
