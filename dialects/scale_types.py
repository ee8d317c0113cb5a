"""How scales of weights are stored: f16, a power of two (E8M0), or E4M3 times an f32 of the tensor.

Scales are numbers everywhere in numpy; `ScaleType.store` gives the bits that kernels read, and
refuses numbers that have none. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from abqc.dialects.minifloats import E4M3
from numpy.typing import NDArray

ScaleName = Literal["f16", "e8m0", "e4m3"]
# As in a packed weight: imported scales may be f32.
StoredScale = Literal["f16", "f32", "e8m0", "e4m3"]
SCALE_BYTES: dict[StoredScale, int] = {"f16": 2, "f32": 4, "e8m0": 1, "e4m3": 1}

F16 = np.finfo(np.float16)
E8M0_BIAS = 127
E8M0_NAN = 255


def round_scale(scale: np.ndarray, *, zero_becomes: float = 0.0) -> NDArray[np.float16]:
    """Scales as f16: the nearest, and upwards below the normal range so that nothing clips.

    A scale of 0 (a group of zeros) becomes `zero_becomes`. Raises ValueError above f16's range.
    """
    with np.errstate(over="ignore"):
        rounded = scale.astype(np.float16)
    if np.isinf(rounded).any():
        raise ValueError(f"a weight needs the scale {scale.max():.3g}, above the range of f16")
    up = (scale < F16.smallest_normal) & (rounded.astype(np.float32) < scale)
    rounded = np.where(up, np.nextafter(rounded, np.float16(np.inf)), rounded)
    return np.where(scale == 0, np.float16(zero_becomes), rounded)


@dataclass(frozen=True)
class ScaleType:
    """One way to store scales. `factors` are the multiples of the default scale that a search
    tries; None: those of the number format."""

    name: ScaleName
    dtype: np.dtype  # of scales as numbers
    factors: Sequence[float] | None

    def by_reach(self, reach: np.ndarray, largest: float, tensor_scale: float) -> np.ndarray:
        """The specification's scales of groups of which `reach` [...] is the largest magnitude;
        `largest` is that of the number format."""
        raise NotImplementedError

    def nearest(self, scale: np.ndarray, tensor_scale: float) -> np.ndarray:
        """Positive scales rounded to this type; those of groups of zeros (0) become 1 unit."""
        raise NotImplementedError

    def store(self, scale: np.ndarray, tensor_scale: float) -> np.ndarray:
        """The scales as kernels read them. ValueError for one that this type does not have."""
        raise NotImplementedError


class _F16(ScaleType):
    def by_reach(self, reach: np.ndarray, largest: float, tensor_scale: float) -> np.ndarray:
        return round_scale(reach / np.float32(largest), zero_becomes=1)

    def nearest(self, scale: np.ndarray, tensor_scale: float) -> np.ndarray:
        return round_scale(np.minimum(scale, F16.max), zero_becomes=1)

    def store(self, scale: np.ndarray, tensor_scale: float) -> np.ndarray:
        return scale.astype(np.float16)


class _E8M0(ScaleType):
    """OCP MX 1.0, 5.4.1 and 6.3: 2^(floor(log2(largest magnitude)) - that of the format)."""

    def by_reach(self, reach: np.ndarray, largest: float, tensor_scale: float) -> np.ndarray:
        exponent = np.frexp(reach)[1] - np.frexp(largest)[1]
        return self._power(np.where(reach > 0, exponent, 0))

    def nearest(self, scale: np.ndarray, tensor_scale: float) -> np.ndarray:
        positive = np.where(scale > 0, scale, 1)
        return self._power(np.rint(np.log2(positive)).astype(np.int32))

    def _power(self, exponent: np.ndarray) -> np.ndarray:
        bounded = np.clip(exponent, -E8M0_BIAS, E8M0_NAN - 1 - E8M0_BIAS)
        return np.ldexp(np.float32(1), bounded)

    def store(self, scale: np.ndarray, tensor_scale: float) -> np.ndarray:
        mantissa, exponent = np.frexp(scale.astype(np.float32))
        if not (mantissa == 0.5).all():
            raise ValueError("a scale of type e8m0 is a power of two")
        return (exponent - 1 + E8M0_BIAS).astype(np.uint8)


class _E4M3(ScaleType):
    """NVIDIA's NVFP4: E4M3 (never negative) times an f32 of the whole tensor, rounded once."""

    def by_reach(self, reach: np.ndarray, largest: float, tensor_scale: float) -> np.ndarray:
        return self.nearest(reach / np.float32(largest), tensor_scale)

    def nearest(self, scale: np.ndarray, tensor_scale: float) -> np.ndarray:
        steps = E4M3.nearest((scale / np.float32(tensor_scale)).astype(np.float32))
        steps = np.where(scale > 0, np.maximum(steps, np.float32(E4M3.unit)), np.float32(1))
        return steps * np.float32(tensor_scale)

    def store(self, scale: np.ndarray, tensor_scale: float) -> np.ndarray:
        steps = E4M3.nearest((scale / np.float32(tensor_scale)).astype(np.float32))
        if not np.array_equal(steps * np.float32(tensor_scale), scale):
            raise ValueError("a scale of type e4m3 is an E4M3 number times the tensor's scale")
        return E4M3.codes_of(steps)


SCALE_TYPES: dict[ScaleName, ScaleType] = {
    "f16": _F16("f16", np.dtype(np.float16), None),
    "e8m0": _E8M0("e8m0", np.dtype(np.float32), (1.0, 2.0, 0.5, 0.25)),
    "e4m3": _E4M3("e4m3", np.dtype(np.float32), None),
}


def scale_label(stored: StoredScale) -> str:
    """How names of kernels spell it."""
    return {"f16": "s16", "f32": "s32"}.get(stored, stored)


def stored_scales(scale: np.ndarray, stored: StoredScale, tensor_scale: float) -> np.ndarray:
    """Scales as a packed weight has them. ValueError for one without such bits."""
    if stored == "f32":
        return scale.astype(np.float32)
    return SCALE_TYPES[stored].store(scale, tensor_scale)


def tensor_scale_of(name: ScaleName, reach: float, largest: float) -> float:
    """The f32 that all scales of a tensor are multiplied with: for e4m3, what makes the scale of
    the largest magnitude `reach` the largest E4M3 number; 1 for others."""
    if name != "e4m3" or reach == 0:
        return 1.0
    scale = np.float32(reach) / np.float32(largest * E4M3.largest)
    return float(max(scale, np.finfo(np.float32).smallest_normal))
