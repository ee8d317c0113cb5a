"""Static activations: one scale for all values that a product reads, fixed by calibration."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from abqc.dialects import hadamard
from abqc.dialects.schemes import Scheme
from numpy.typing import NDArray

F32 = NDArray[np.float32]

SAMPLED = 1 << 16  # values of a batch that errors are estimated from
SHRINK = np.linspace(1.0, 0.2, 41)  # parts of the range that are tried


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

    def choose(self, scheme: Scheme) -> tuple[np.float32, np.int32]:
        """The scale and zero point of the part of the range that loses least of the sample."""
        values = np.concatenate(self.sample) if self.sample else np.zeros(1, np.float32)
        best: tuple[float, np.float32, np.int32] | None = None
        for part in SHRINK:
            scale, zero = _scale(scheme, self.low * part, self.high * part)
            codes = np.clip(np.rint(values / scale) + zero, scheme.format.qmin, scheme.format.qmax)
            error = float(np.square((codes - zero) * scale - values).sum(dtype=np.float64))
            if best is None or error < best[0]:
                best = error, scale, zero
        assert best is not None
        return best[1:]


def _scale(scheme: Scheme, low: float, high: float) -> tuple[np.float32, np.int32]:
    top = scheme.format.qmax
    if scheme.symmetric:
        return np.float32(max(high, -low) / top or 1.0), np.int32(0)
    scale = np.float32((high - low) / top or 1.0)
    return scale, np.int32(np.clip(np.rint(-low / scale), 0, top))
