"""Static activations: one scale for all values that a product reads, fixed by calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from abqc.dialects import hadamard
from abqc.dialects.schemes import Scheme
from numpy.typing import NDArray

F32 = NDArray[np.float32]

SAMPLED = 1 << 16  # values of a batch that errors are estimated from
SHRINK = np.linspace(1.0, 0.2, 41)  # parts of the range that are tried
PERCENTILES = (99.999, 99.99, 99.95, 99.9, 99.5, 99.0)  # Quamba, arXiv 2410.13229: 99.999


@dataclass(frozen=True)
class Static:
    """A format with one scale for all values, and how that is chosen: `Range.choose`."""

    scheme: Scheme
    method: str = ""


@dataclass
class Range:
    """What a product reads, over all batches: bounds, with 0 among them, and a sample."""

    block: int  # of the Hadamard transform in front of the quantization; 0: none
    low: float = 0.0
    high: float = 0.0
    sample: list[F32] = field(default_factory=list)

    def add(self, rows: F32) -> None:
        """Take in rows [R, K]."""
        if self.block:
            rows = hadamard.transform(rows, self.block).astype(np.float32, copy=False)
        if not rows.size:
            return
        self.low = min(self.low, float(rows.min()))
        self.high = max(self.high, float(rows.max()))
        # An odd step, so that the sample is of all columns.
        step = max(1, rows.size // SAMPLED) | 1
        self.sample.append(rows.reshape(-1)[::step].copy())

    def merge(self, other: Range) -> None:
        """Take in what another has, behind one's own."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.sample += other.sample

    def choose(self, static: Static) -> tuple[float, float]:
        """The scale and zero point that lose least of the sample.

        The method says among which: parts of the range (by default), the range from one percentile
        to another (`percentile`), or the whole range alone (`minmax`).
        """
        scheme = static.scheme
        values = np.concatenate(self.sample) if self.sample else np.zeros(1, np.float32)
        best: tuple[float, np.float32, np.int32] | None = None
        for low, high in self._candidates(values, static.method):
            scale, zero = _scale(scheme, low, high)
            codes = np.clip(np.rint(values / scale) + zero, scheme.format.qmin, scheme.format.qmax)
            error = float(np.square((codes - zero) * scale - values).sum(dtype=np.float64))
            if best is None or error < best[0]:
                best = error, scale, zero
        assert best is not None
        return float(best[1]), float(best[2])

    def _candidates(self, values: F32, method: str) -> Iterator[tuple[float, float]]:
        if method == "percentile":
            for percent in PERCENTILES:
                low, high = np.percentile(values, [100 - percent, percent])
                yield min(float(low), 0.0), max(float(high), 0.0)
            return
        for part in SHRINK[:1] if method == "minmax" else SHRINK:
            yield self.low * part, self.high * part


def _scale(scheme: Scheme, low: float, high: float) -> tuple[np.float32, np.int32]:
    top = scheme.format.qmax
    if scheme.symmetric:
        return np.float32(max(high, -low) / top or 1.0), np.int32(0)
    scale = np.float32((high - low) / top or 1.0)
    return scale, np.int32(np.clip(np.rint(-low / scale), 0, top))
