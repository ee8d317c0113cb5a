"""What a network looks at of rows of numbers: their logarithms, and where they lie between values
that it was trained with: numbers of kernels take few values each, and code changes from one to the
next. One number is a name: all that counts is which of those that were learned it is; another one
is taken for the last before it (a target for the one that it follows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .trees import F64

F32 = NDArray[np.float32]
CLIP = 3.0  # standard deviations: what lies far outside of training is not followed


@dataclass(frozen=True)
class NumberInputs:
    """Logarithms are taken less `mean`, times `scale` (0: of no use), and clipped. Of number
    `feature` of a row there is, for neighbouring values `low` and `high`, the part of the way
    between them that it has gone, less `share`, the mean of training. `names` are those of the
    number at place `named`, counted from the end."""

    mean: F32
    scale: F32
    feature: NDArray[np.uint8]
    low: F32
    high: F32
    share: F32
    named: int
    names: F64

    @classmethod
    def of(cls, rows: F64, most: int, named: int) -> Self:
        """For rows like these, with at most `most` steps of a number: between its values, or parts
        of the rows of like size."""
        logarithms = _logarithms(rows)
        mean, spread = logarithms.mean(axis=0), logarithms.std(axis=0)
        scale = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0)
        known = [_values(column, most) for column in rows.T]
        known[named] = known[named][:0]
        feature = np.repeat(np.arange(len(known)), [max(0, len(each) - 1) for each in known])
        low, high = (np.concatenate([v[part] for v in known]) for part in (np.s_[:-1], np.s_[1:]))
        share = _steps(rows[:, feature], low, high).mean(axis=0)
        return cls(
            mean.astype(np.float32),
            scale.astype(np.float32),
            feature.astype(np.uint8),
            low.astype(np.float32),
            high.astype(np.float32),
            share.astype(np.float32),
            named,
            np.unique(rows[:, named]),
        )

    @property
    def count(self) -> int:
        return len(self.mean) + len(self.feature) + len(self.names)

    def __call__(self, rows: F64) -> F32:
        logarithms = np.clip((_logarithms(rows) - self.mean) * self.scale, -CLIP, CLIP)
        steps = _steps(rows[:, self.feature], self.low, self.high) - self.share
        place = np.searchsorted(self.names, rows[:, self.named], side="right") - 1
        which = np.arange(len(self.names)) == np.maximum(place, 0)[:, None]
        return np.concatenate([logarithms, steps, which], axis=1).astype(np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "scales": np.stack([self.mean, self.scale]),
            "feature": self.feature,
            "steps": np.stack([self.low, self.high, self.share]),
            "named": np.array(self.named),
            "names": self.names,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str) -> Self:
        """Of what `arrays` made, under names with a prefix. Raises KeyError or ValueError."""
        mean, scale = arrays[f"{prefix}scales"]
        low, high, share = arrays[f"{prefix}steps"]
        feature, names = arrays[f"{prefix}feature"], arrays[f"{prefix}names"]
        return cls(mean, scale, feature, low, high, share, int(arrays[f"{prefix}named"]), names)


def _logarithms(rows: F64) -> F64:
    found: F64 = np.sign(rows) * np.log2(1 + np.abs(rows))
    return found


def _values(column: F64, most: int) -> F64:
    values = np.unique(column)
    if len(values) <= most + 1:
        return values
    return np.unique(np.quantile(column, np.linspace(0, 1, most + 1)))


def _steps(numbers: F64, low: NDArray[Any], high: NDArray[Any]) -> F64:
    found: F64 = np.clip((numbers - low) / (high - low), 0, 1)
    return found
