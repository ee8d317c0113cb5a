"""How much is learned from, and how fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LearnSettings:
    """`elements` is what the largest input has of them, at most, in the samples that are learned
    from (tokens of a language model), which are spread over the data. Rates are those of Adam
    (Kingma and Ba 2015), and fall to nothing along half a cosine.
    """

    elements: int = 8192
    epochs: int = 6
    range_rate: float = 0.02
    balance_rate: float = 0.03
    correction_rate: float = 0.003
