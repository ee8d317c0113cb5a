"""What a cost model is asked and what it answers; passes import this file alone.

The interface is that of TVM's cost models (`load`, `save`, `fit`, `predict`) plus `rank`, which is
what passes use. An operation is described by plain numbers, so that a model can be trained,
stored and evaluated without the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self


@dataclass(frozen=True)
class MatmulFeatures:
    """One `m x k` by `k x n` matmul done by one strategy.

    `weight_bits` and `activation_bits` are the bits of one code; 32 where the operand is float.
    `weight_bytes` is the packed weight as stored, scales included. `groups` is the number of
    groups along K that have a scale of their own. `working_set` is the number of bytes that pass
    between two runs of this operation (all weights of the model): it decides from which level of
    the memory the weights come; 0 means that nothing else runs in between.
    """

    strategy: str
    m: int
    n: int
    k: int
    weight_bits: int
    activation_bits: int
    weight_bytes: int
    groups: int = 1
    isa: str = "avx512"
    threads: int = 1
    working_set: int = 0


@dataclass(frozen=True)
class Sample:
    """A measured cost, in seconds."""

    features: MatmulFeatures
    seconds: float


class CostModel(Protocol):
    """Predicts seconds. Lower is better; only the order matters to a choice."""

    def predict(self, features: MatmulFeatures) -> float:
        """Seconds of one run."""

    def rank(self, candidates: Sequence[MatmulFeatures]) -> list[MatmulFeatures]:
        """The candidates, cheapest first; equal ones keep their order."""

    def explain(self, candidates: Sequence[MatmulFeatures]) -> str:
        """One sentence that says what each candidate costs and why, cheapest first."""

    def fit(self, samples: Sequence[Sample]) -> None:
        """Adjust the model to measurements of this machine."""

    def save(self, path: Path) -> None:
        """Write the model as one JSON file."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises ArtifactError for a file that is not of this model."""
