"""What rounding did to a weight: its signal-to-noise ratio, and histograms before and after.

Recorded in the manifest when a weight is packed, so that `abqc eval` can show where a recipe costs
most without decoding any layout. Needs numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

BINS = 49  # odd: 0 lies in the middle of one
SAMPLED = 1 << 16  # weights a histogram counts at most, evenly spread


@dataclass(frozen=True)
class WeightNoise:
    """`snr_db` is 10 log10(sum w^2 / sum (w - w')^2) of weights w stored as w'; None: no noise.

    `before` and `after` count w and w' in BINS equal bins of -`limit` .. `limit`, which is the
    largest magnitude of either among those that are counted.
    """

    snr_db: float | None
    limit: float
    before: tuple[int, ...]
    after: tuple[int, ...]

    def as_manifest(self) -> dict[str, Any]:
        histogram = {"limit": self.limit, "before": self.before, "after": self.after}
        snr = None if self.snr_db is None else round(self.snr_db, 2)
        return {"snr_db": snr, "histogram": histogram}


def weight_noise(weight: F32, stored: F32) -> WeightNoise:
    """The noise of `stored` [N, K], decoded, against the weight [N, K] that was encoded."""
    if weight.shape != stored.shape:
        raise ValueError(f"a weight of shape {weight.shape} is not stored as {stored.shape}")
    step = max(1, weight.size // SAMPLED)
    before, after = weight.ravel()[::step], stored.ravel()[::step]
    limit = float(max(np.abs(before).max(), np.abs(after).max()))
    return WeightNoise(
        signal_to_noise(weight, stored), limit, _counts(before, limit), _counts(after, limit)
    )


def signal_to_noise(exact: F32, actual: F32) -> float | None:
    """10 log10(sum exact^2 / sum (exact - actual)^2) in decibels; None where they are equal.

    -inf is no number in JSON: a signal of zeros with noise is as bad as one that is all noise, 0.
    """
    signal = _energy(exact)
    noise = _energy(exact - actual)
    if noise == 0:
        return None
    return 10 * log10(signal / noise) if signal > 0 else 0.0


def _energy(x: F32) -> float:
    return float(np.einsum("i,i->", x.ravel(), x.ravel(), dtype=np.float64))


def _counts(values: F32, limit: float) -> tuple[int, ...]:
    bound = limit or 1.0
    return tuple(np.histogram(values, bins=BINS, range=(-bound, bound))[0].tolist())
