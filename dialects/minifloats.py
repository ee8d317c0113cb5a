"""Floats of 4 to 8 bits: OCP Microscaling Formats (MX) 1.0 and OCP 8-bit floating point (OFP8) 1.0.

A code is a sign, `exponent_bits` and `mantissa_bits`, as in IEEE 754 with subnormals; E4M3 has no
infinity and one NaN, the formats of 4 and 6 bits have neither. Needs numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Minifloat:
    """One such type; `largest` is its largest finite value."""

    exponent_bits: int
    mantissa_bits: int
    largest: float

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def unit(self) -> float:
        """The smallest subnormal: all values are multiples of it."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    @cached_property
    def magnitudes(self) -> F32:
        """The finite values that are not negative, ascending: entry i is that of code i."""
        code = np.arange(1 << (self.bits - 1))
        exponent, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        hidden = np.where(exponent > 0, 1 << self.mantissa_bits, 0)
        values = np.ldexp((hidden + mantissa) * self.unit, np.maximum(exponent - 1, 0))
        return values[values <= self.largest].astype(np.float32)

    @cached_property
    def values(self) -> F32:
        """What each of the 2^bits codes stands for; NaN where it is no finite number."""
        half = np.full(1 << (self.bits - 1), np.nan, np.float32)
        half[: len(self.magnitudes)] = self.magnitudes
        return np.concatenate([half, -half])

    def nearest(self, x: F32) -> F32:
        """`x` rounded to the nearest value, ties to even, saturating at `largest`."""
        bounded = np.clip(x, -self.largest, self.largest)
        exponent = np.maximum(np.frexp(bounded)[1] - 1, 1 - self.bias)
        quantum = np.ldexp(np.float32(1), exponent - self.mantissa_bits)
        return np.rint(bounded / quantum) * quantum

    def codes_of(self, values: F32) -> NDArray[np.uint8]:
        """The codes of values that `nearest` gave; zero has no sign."""
        magnitude = np.searchsorted(self.magnitudes, np.abs(values)).astype(np.uint8)
        sign = np.uint8(1 << (self.bits - 1))
        return np.where(values < 0, magnitude | sign, magnitude).astype(np.uint8)


E2M1 = Minifloat(2, 1, 6.0)
E2M3 = Minifloat(2, 3, 7.5)
E3M2 = Minifloat(3, 2, 28.0)
E4M3 = Minifloat(4, 3, 448.0)
E5M2 = Minifloat(5, 2, 57344.0)
