"""Moments of what a product reads: all that error feedback needs to know of the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from abqc.dialects import hadamard
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SUM_PRECISION = 1e-6  # of sums of a batch, relative


@dataclass
class Moments:
    """Sums over rows x [K] that a product reads.

    `total` is the sum of the rows of the quantized model so far, `own` that of x^T x with them.
    With f, the rows that the product should have read, `lack` is the sum of f - x and `drift` that
    of (f - x)^T x. `rows` counts them, and `weight` is the sum of what each counts for. Sums of one
    batch are taken in f32, and added up in f64.
    """

    k: int
    rows: int = 0
    weight: float = 0.0
    total: F64 = field(init=False)
    own: F64 = field(init=False)
    lack: F64 = field(init=False)
    drift: F64 | None = None

    def __post_init__(self) -> None:
        self.total, self.lack = np.zeros(self.k), np.zeros(self.k)
        self.own = np.zeros((self.k, self.k))

    def add(self, x: F32, wanted: F32 | None = None, weights: F32 | None = None) -> None:
        """Add rows [R, K], and what they should have been where they differ.

        `weights` [R] are what the rows count for; 1 without.
        """
        self.rows += len(x)
        self.weight += len(x) if weights is None else float(weights.sum(dtype=np.float64))
        weighed = _weighed(x, weights)
        self.total += weighed.sum(axis=0, dtype=np.float64)
        halves = _weighed(x, None if weights is None else np.sqrt(weights))
        self.own += halves.T @ halves  # half the work of two different matrices
        if wanted is not None:
            if self.drift is None:
                self.drift = np.zeros((self.k, self.k))
            missing = wanted - x
            self.lack += _weighed(missing, weights).sum(axis=0, dtype=np.float64)
            self.drift += missing.T @ weighed

    def merge(self, other: Moments) -> None:
        """Add the sums over other rows."""
        self.rows += other.rows
        self.weight += other.weight
        self.total += other.total
        self.own += other.own
        self.lack += other.lack
        if self.drift is None:
            self.drift = other.drift
        elif other.drift is not None:
            self.drift += other.drift

    @staticmethod
    def bytes_of(k: int) -> int:
        return 2 * 8 * k * k

    def mean(self) -> F64:
        """Of the rows [K]; zeros without rows."""
        return self.total / (self.weight or 1.0)

    def centred(self) -> Moments:
        """Of the rows less their mean: what is left to encode where a bias makes good for it."""
        result = Moments(self.k, self.rows, self.weight)
        mean = self.mean()
        result.own = self.own - np.outer(self.total, mean)
        # Where the mean is nearly all there is, the difference is the rounding of sums in f32.
        result.own += np.diag(SUM_PRECISION * np.diagonal(self.own))
        if self.drift is not None:
            result.drift = self.drift - np.outer(self.lack, mean)
        return result

    def balanced(self, factors: F32) -> Moments:
        """Of the rows divided by `factors` [K]."""
        inverse = 1 / factors.astype(np.float64)
        result = Moments(self.k, self.rows, self.weight)
        result.total, result.lack = self.total * inverse, self.lack * inverse
        both = np.outer(inverse, inverse)
        result.own = self.own * both
        result.drift = None if self.drift is None else self.drift * both
        return result

    def rotated(self, block: int) -> Moments:
        """Of the rows x H^T, for `hadamard.transform` with blocks of `block`."""
        result = Moments(self.k, self.rows, self.weight)
        result.total = hadamard.transform(self.total[None], block)[0]
        result.lack = hadamard.transform(self.lack[None], block)[0]
        result.own = _both_sides(self.own, block)
        result.drift = None if self.drift is None else _both_sides(self.drift, block)
        return result


@dataclass
class Excess:
    """By how much the float model's outputs exceed those that the float weight gives for x, e.

    `total` [N] is the sum of e over rows, `product` [N, K] that of e^T x, x and what rows count for
    as in `Moments`.
    """

    n: int
    k: int
    total: F64 = field(init=False)
    product: F64 = field(init=False)

    def __post_init__(self) -> None:
        self.total, self.product = np.zeros(self.n), np.zeros((self.n, self.k))

    def add(self, e: F32, x: F32, weights: F32 | None = None) -> None:
        weighed = _weighed(e, weights)
        self.total += weighed.sum(axis=0, dtype=np.float64)
        self.product += weighed.T @ x

    def merge(self, other: Excess) -> None:
        """Add the sums over other rows."""
        self.total += other.total
        self.product += other.product

    def centred(self, moments: Moments) -> Excess:
        """Of the rows x less their mean."""
        result = Excess(self.n, self.k)
        result.product = self.product - np.outer(self.total, moments.mean())
        return result

    def balanced(self, factors: F32) -> Excess:
        """Of the rows divided by `factors` [K]."""
        result = Excess(self.n, self.k)
        result.total, result.product = self.total, self.product / factors
        return result

    def rotated(self, block: int) -> Excess:
        result = Excess(self.n, self.k)
        result.total = self.total
        result.product = hadamard.transform(self.product, block)
        return result


def _weighed(rows: F32, weights: F32 | None) -> F32:
    return rows if weights is None else rows * weights[:, None]


def _both_sides(matrix: F64, block: int) -> F64:
    half: NDArray[Any] = hadamard.transform(matrix, block)
    return np.ascontiguousarray(hadamard.transform(np.ascontiguousarray(half.T), block).T)
