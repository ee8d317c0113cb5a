"""Second moments of what a product reads: all that error feedback needs to know of the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from abqc.dialects import hadamard
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass
class Moments:
    """Sums over rows x [K] that a product reads.

    `own` is the sum of x^T x with the rows of the quantized model so far, `drift` that of
    (f - x)^T x, where f are the same rows of the float model; `rows` counts them. Sums of one
    batch are taken in f32, and added up in f64.
    """

    k: int
    rows: int = 0
    own: F64 = field(init=False)
    drift: F64 | None = None

    def __post_init__(self) -> None:
        self.own = np.zeros((self.k, self.k))

    def add(self, x: F32, float_x: F32 | None = None) -> None:
        """Add rows [R, K], and those of the float model where they differ."""
        self.rows += len(x)
        self.own += x.T @ x
        if float_x is not None:
            if self.drift is None:
                self.drift = np.zeros((self.k, self.k))
            self.drift += (float_x - x).T @ x

    @staticmethod
    def bytes_of(k: int) -> int:
        return 2 * 8 * k * k

    def rotated(self, block: int) -> Moments:
        """Of the rows x H^T, for `hadamard.transform` with blocks of `block`."""
        result = Moments(self.k, self.rows)
        result.own = _both_sides(self.own, block)
        result.drift = None if self.drift is None else _both_sides(self.drift, block)
        return result


@dataclass
class Excess:
    """Sums over rows of e^T x [N, K]: x as in `Moments`, e by how much the float model's outputs
    exceed those that the float weight gives for x."""

    n: int
    k: int
    sum: F64 = field(init=False)

    def __post_init__(self) -> None:
        self.sum = np.zeros((self.n, self.k))

    def add(self, e: F32, x: F32) -> None:
        self.sum += e.T @ x

    def rotated(self, block: int) -> Excess:
        result = Excess(self.n, self.k)
        result.sum = hadamard.transform(self.sum, block)
        return result


def _both_sides(matrix: F64, block: int) -> F64:
    half: NDArray[Any] = hadamard.transform(matrix, block)
    return np.ascontiguousarray(hadamard.transform(np.ascontiguousarray(half.T), block).T)
