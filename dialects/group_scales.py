"""Scales and zero points of weight groups: by range, by mean, or by least squared error.

Used by `formats.quantize_weight`, which feeds it a few rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from abqc.dialects.number_formats import F32, Codes, NumberFormat
from abqc.dialects.scale_types import SCALE_TYPES, round_scale, tensor_scale_of
from numpy.typing import NDArray

if TYPE_CHECKING:
    from abqc.dialects.formats import Scheme
    from abqc.dialects.scale_types import ScaleType

SHRINK_STEPS = 24  # scales tried by a search, from the default one down to `format.shrink` of it
REFINEMENTS = 2  # least-squares updates of the best of them


def _weights(importance: np.ndarray, k: int, missing: int) -> F32:
    """The importance of `k` columns and of `missing` more, which have none; the largest is 1."""
    if importance.shape != (k,):
        raise ValueError(f"the importance of {k} columns has shape {importance.shape}")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError("the importance of a column is not negative, NaN or infinite")
    largest = importance.max()
    weights = importance / largest if largest > 0 else importance
    return np.pad(weights.astype(np.float32), (0, missing))


@dataclass(frozen=True)
class Choice:
    """Scales [R, G] of the scheme's `scale_dtype`, and zero points, uint8 [R, G] or None for
    symmetric formats. `tensor_scale` is what e4m3 scales are multiples of (`QuantizedTensor`)."""

    scale: np.ndarray
    zero: NDArray[np.uint8] | None
    tensor_scale: float = 1.0


@dataclass(frozen=True)
class _Fit:
    """A choice, each group's squared error, and the scale that fits its codes best."""

    choice: Choice
    error: F32
    least_squares: F32

    def better(self, other: _Fit) -> _Fit:
        """The better of two, group by group; this one where they are equally good."""
        wins = other.error < self.error
        mine, others = self.choice, other.choice
        zero = None
        if mine.zero is not None and others.zero is not None:
            zero = np.where(wins, others.zero, mine.zero)
        return _Fit(
            Choice(np.where(wins, others.scale, mine.scale), zero, mine.tensor_scale),
            np.where(wins, other.error, self.error),
            np.where(wins, other.least_squares, self.least_squares),
        )


@dataclass(frozen=True)
class WeightGroups:
    """Some rows of a weight, x [R, G, group size]; a short last group is filled up with zeros.

    The filling widens no range and adds no error. `count` [G] holds the true sizes, for means;
    `low` <= 0 <= `high` [R, G] bound each group. `importance` [G, group size] weighs the squared
    errors that a search minimises; None weighs all alike.
    """

    format: NumberFormat
    scale_type: ScaleType
    x: F32
    count: F32
    low: F32
    high: F32
    importance: F32 | None
    tensor_scale: float

    @staticmethod
    def split(
        rows: F32,
        scheme: Scheme,
        importance: np.ndarray | None = None,
        tensor_scale: float | None = None,
    ) -> WeightGroups:
        """Cut `rows` [R, K], and the `importance` [K] of their columns, into groups.

        `tensor_scale` None: of these rows, which are then all of the weight. Raises ValueError for
        NaN and infinity, and for an importance that is negative.
        """
        r, k = rows.shape
        bounds = scheme.group_bounds(k)
        size = bounds[0][1]
        missing = len(bounds) * size - k
        if missing:
            rows = np.pad(rows, ((0, 0), (0, missing)))
        x = rows.reshape(r, len(bounds), size)
        count = np.array([end - begin for begin, end in bounds], np.float32)
        low, high = x.min(axis=2), x.max(axis=2)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError("the weight holds NaN or infinity")
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        weights = None if importance is None else _weights(importance, k, missing).reshape(-1, size)
        if tensor_scale is None:
            reach = float(np.maximum(high, -low).max())
            tensor_scale = tensor_scale_of(scheme.scale, reach, scheme.format.largest)
        type_ = SCALE_TYPES[scheme.scale]
        return WeightGroups(scheme.format, type_, x, count, low, high, weights, tensor_scale)

    def choose(self, search: bool) -> Choice:
        """Scales and zero points by the format's own rule, or by a search."""
        if self.format.default_scale == "mean":  # for signs, the mean is the least-squares scale
            return Choice(round_scale(self._mean()), None)
        if search or self.format.default_scale == "search":
            return self._search()
        return self._by_range(1.0)

    def encode(self, choice: Choice) -> Codes:
        """Codes [R, G, group size]."""
        return self.format.codes_of(self._steps(choice))

    def _mean(self) -> F32:
        """mean |x| of each group, [R, G], weighted by the importance where a group has any."""
        magnitude = np.abs(self.x)
        mean = magnitude.sum(axis=2) / self.count
        if self.importance is None:
            return mean
        total = self.importance.sum(axis=1)
        weighted = np.einsum("rgk,gk->rg", magnitude, self.importance)
        return np.divide(weighted, total, out=mean, where=total > 0)

    def _by_range(self, factor: float) -> Choice:
        """The scales that just cover `factor` times each group's range."""
        if self.format.symmetric:
            reach = np.maximum(self.high, -self.low) * np.float32(factor)
            scale = self.scale_type.by_reach(reach, self.format.largest, self.tensor_scale)
            return Choice(scale, None, self.tensor_scale)
        # Halves, because high - low may overflow.
        step = (self.high / 2 - self.low / 2) / np.float32(self.format.qmax / 2)
        scale = round_scale(step * np.float32(factor), zero_becomes=1)
        zero = np.rint(self.low * np.float32(-factor) / scale.astype(np.float32))
        return Choice(scale, np.clip(zero, 0, self.format.qmax).astype(np.uint8))

    def _search(self) -> Choice:
        best = self._fit(self._by_range(1.0))
        shrunken = np.geomspace(1.0, self.format.shrink, SHRINK_STEPS).tolist()
        for factor in (self.scale_type.factors or shrunken)[1:]:
            best = best.better(self._fit(self._by_range(factor)))
        for _ in range(REFINEMENTS):
            scale = self.scale_type.nearest(best.least_squares, self.tensor_scale)
            best = best.better(self._fit(Choice(scale, best.choice.zero, self.tensor_scale)))
        return best.choice

    def _fit(self, choice: Choice) -> _Fit:
        scale = choice.scale.astype(np.float32)
        q = self._steps(choice)
        if choice.zero is not None:
            q -= choice.zero[:, :, None]
        xq, qq = self._dot(self.x, q), self._dot(q, q)
        least_squares = np.divide(xq, qq, out=scale.copy(), where=(xq > 0) & (qq > 0))
        q *= scale[:, :, None]
        q -= self.x
        return _Fit(choice, self._dot(q, q), least_squares)

    def _dot(self, a: F32, b: F32) -> F32:
        """sum of a * b over each group, [R, G], weighted by the importance."""
        if self.importance is None:
            return np.einsum("rgk,rgk->rg", a, b)
        return np.einsum("rgk,rgk,gk->rg", a, b, self.importance)

    def _steps(self, choice: Choice) -> F32:
        """Codes as floats."""
        scale = choice.scale.astype(np.float32)[:, :, None]
        zero = None if choice.zero is None else choice.zero[:, :, None]
        return self.format.encode_steps(self.x, scale, zero)
