"""Some of the rows that products read, and the bounds of all: what cannot be found from moments."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

ROWS = 256  # at least, of as many as there are; at most twice as many


@dataclass
class RowSample:
    """Every `step`-th row of all batches, with what it counts for, and each column's bounds.

    `low` and `high` [K] are of all rows; infinite without any. The step doubles when there are more
    than 2 ROWS, so that memory is bounded, and which rows are kept does not depend on batches.
    """

    k: int
    low: F32 = field(init=False)
    high: F32 = field(init=False)
    seen: int = 0
    step: int = 1
    _rows: list[F32] = field(default_factory=list)
    _weights: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.low = np.full(self.k, np.inf, np.float32)
        self.high = np.full(self.k, -np.inf, np.float32)

    def add(self, rows: F32, weights: F32 | None = None) -> None:
        """Take in rows [R, K]; `weights` [R] are what they count for, 1 without."""
        if not len(rows):
            return
        np.minimum(self.low, rows.min(axis=0), out=self.low)
        np.maximum(self.high, rows.max(axis=0), out=self.high)
        for at in range(-self.seen % self.step, len(rows), self.step):
            self._rows.append(rows[at].copy())
            self._weights.append(1.0 if weights is None else float(weights[at]))
        self.seen += len(rows)
        self._thin_out()

    def merge(self, other: RowSample) -> None:
        """Take in what another sample has of other rows."""
        np.minimum(self.low, other.low, out=self.low)
        np.maximum(self.high, other.high, out=self.high)
        step = max(self.step, other.step)
        mine, others = (slice(None, None, step // each.step) for each in (self, other))
        self._rows = self._rows[mine] + other._rows[others]
        self._weights = self._weights[mine] + other._weights[others]
        self.seen, self.step = self.seen + other.seen, step
        self._thin_out()

    def _thin_out(self) -> None:
        while len(self._rows) > 2 * ROWS:
            self._rows, self._weights = self._rows[::2], self._weights[::2]
            self.step *= 2

    @property
    def rows(self) -> F32:
        """[R, K]."""
        return np.array(self._rows, np.float32).reshape(-1, self.k)

    @property
    def weights(self) -> F32:
        """[R]."""
        return np.array(self._weights, np.float32)
