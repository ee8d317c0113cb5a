"""Floating-point arithmetic that is exact to the bit, with the roundings of PTX.

f32 operations are done in double precision where that helps. A double result is a correct basis for
rounding to f32 if it was itself *rounded to odd* (the last bit is set when anything was cut off):
S. Boldo and G. Melquiond, "Emulation of a FMA and Correctly Rounded Sums" (2008).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from functools import cache

import numpy as np

from .types import ScalarType

ROUNDINGS = ("rn", "rz", "rm", "rp")
_TINY = np.float32(np.finfo(np.float32).tiny)
# Bits of a double that an f32 does not have, shifted up: alone the first of them is half a step.
_LOW_BITS, _HALF = np.uint64(35), np.uint64(1 << 63)
# f32 without the sign, shifted up: what the least normal number, and infinity above it, look like.
_ONE, _LEAST_NORMAL, _FINITE = np.uint32(1), np.uint32(1 << 24), np.uint32(0xFE00_0000)
_CANONICAL_NAN = np.uint32(0x7FFF_FFFF).view(np.float32)


def flushed(a: np.ndarray, ftz: bool) -> np.ndarray:
    """f32 subnormals as zeros of the same sign, if asked."""
    if not ftz or a.dtype != np.float32:
        return a
    return np.where(np.abs(a) < _TINY, np.copysign(np.float32(0), a), a)


def canonical(a: np.ndarray) -> np.ndarray:
    """NaN results have one form on hardware, 0x7FFFFFFF (f32)."""
    nan = np.isnan(a)
    return np.where(nan, _CANONICAL_NAN, a) if nan.any() else a


# ---- fma


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """f32 a * b + c, rounded once, to nearest even.

    The product is exact as a double. The sum rounds twice only if the double lies half way between
    two f32, or the result is subnormal: such lanes, which are few, are done again.
    """
    total = np.asarray(np.multiply(a, b, dtype=np.float64))
    total = np.add(total, c, out=total) if total.ndim else np.asarray(total + c)
    result = total.astype(np.float32)
    half_way = (total.view(np.uint64) << _LOW_BITS) == _HALF
    # Zeros, subnormals and NaN: the exponent is 0, or beyond that of infinity.
    odd_ones = (result.view(np.uint32) << _ONE) - _LEAST_NORMAL > _FINITE
    if half_way.any() or odd_ones.any():
        a, b, c, result = np.broadcast_arrays(a, b, c, result)
        result = np.array(result)
        again = np.nonzero(half_way | odd_ones)
        exact = odd_sum(np.multiply(a[again], b[again], dtype=np.float64), c[again])
        result[again] = canonical(exact.astype(np.float32))
    return result


def odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in double precision, rounded to odd."""
    total = a + b
    shadow = total - a
    error = (a - (total - shadow)) + (b - shadow)
    bits = np.asarray(total).view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & ((bits & 1) == 0)
    # Away from zero where the error has the sign of the sum, else towards it.
    step = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + step, bits).view(np.float64)


def rounded(exact: np.ndarray, mode: str) -> np.ndarray:
    """A double that is exact, or rounded to odd, as f32."""
    nearest = exact.astype(np.float32)
    if mode == "rn":
        return nearest
    up, down = np.float32(np.inf), np.float32(-np.inf)
    wide = nearest.astype(np.float64)
    above, below = wide > exact, wide < exact
    if mode == "rz":
        above, below = above & (exact > 0), below & (exact < 0)
    if mode in ("rm", "rz"):
        nearest = np.where(above, np.nextafter(nearest, down), nearest)
    if mode in ("rp", "rz"):
        nearest = np.where(below, np.nextafter(nearest, up), nearest)
    return nearest


def rounded_fma(mode: str) -> Callable:
    """f32 fma in a rounding mode."""
    if mode == "rn":
        return fma

    def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        product = np.multiply(a, b, dtype=np.float64)
        exact = odd_sum(product, np.asarray(c, np.float64))
        return canonical(_signed_zero(rounded(exact, mode), product, c, exact, mode))

    return fused


def rounded_sum(mode: str) -> Callable:
    """f32 a + b in a rounding mode."""
    if mode == "rn":
        return lambda a, b: canonical(a + b)

    def summed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        exact = odd_sum(np.asarray(a, np.float64), np.asarray(b, np.float64))
        return canonical(_signed_zero(rounded(exact, mode), a, b, exact, mode))

    return summed


def _signed_zero(
    result: np.ndarray, a: np.ndarray, b: np.ndarray, exact: np.ndarray, mode: str
) -> np.ndarray:
    """An exact sum of zero that comes from opposite signs is -0 when rounding down."""
    if mode != "rm":
        return result
    opposite = (exact == 0) & (np.signbit(a) != np.signbit(b))
    return np.where(opposite, np.float32(-0.0), result)


def rounded_product(mode: str) -> Callable:
    """f32 a * b in a rounding mode."""
    if mode == "rn":
        return lambda a, b: canonical(a * b)
    return lambda a, b: canonical(rounded(np.multiply(a, b, dtype=np.float64), mode))


def rounded_quotient(mode: str) -> Callable:
    """f32 a / b in a rounding mode."""
    if mode == "rn":
        return lambda a, b: canonical(a / b)

    def divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a.astype(np.float64), b.astype(np.float64)
        quotient = a / b
        # quotient * b - a: the product of 53 and 24 bits needs both parts.
        high, low = _exact_product(quotient, b)
        remainder = (a - high) - low
        return canonical(rounded(_to_odd(quotient, remainder * np.sign(b)), mode))

    return divided


def rounded_root(mode: str) -> Callable:
    """f32 square root in a rounding mode."""
    if mode == "rn":
        return lambda a: canonical(np.sqrt(a))

    def root(a: np.ndarray) -> np.ndarray:
        wide = a.astype(np.float64)
        result = np.sqrt(wide)
        high, low = _exact_product(result, result)
        return canonical(rounded(_to_odd(result, (wide - high) - low), mode))

    return root


def _to_odd(value: np.ndarray, remainder: np.ndarray) -> np.ndarray:
    """A double near an exact value, and by which sign it is too small: rounded to odd."""
    bits = np.asarray(value).view(np.int64)
    inexact = (remainder != 0) & np.isfinite(value) & np.isfinite(remainder) & ((bits & 1) == 0)
    step = np.where((remainder > 0) == (value > 0), 1, -1)
    return np.where(inexact, bits + step, bits).view(np.float64)


def _exact_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a * b as a sum of two doubles (Dekker; Veltkamp's splitting)."""
    product = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _halves(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = a * 134217729.0
    high = scaled - (scaled - a)
    return high, a - high


@cache
def fma_f64() -> Callable:
    """f64 a * b + c, rounded once, by the C library, one lane after the other."""
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    library.fma.restype = ctypes.c_double
    library.fma.argtypes = [ctypes.c_double] * 3
    each = np.frompyfunc(library.fma, 3, 1)
    return lambda a, b, c: np.asarray(each(a, b, c)).astype(np.float64)


# ---- half precision


def as_float(a: np.ndarray, type: ScalarType) -> np.ndarray:
    """16-bit floats as f32, which holds them exactly; others as they are."""
    if type.kind == "bf":
        return (a.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return a.astype(np.float32) if type.bits == 16 else a


def to_bfloat(exact: np.ndarray, mode: str = "rn") -> np.ndarray:
    """Doubles or f32 to the bits of bfloat16, rounded once; NaN is 0x7FFF."""
    wide = np.asarray(exact, np.float64)
    single = wide.astype(np.float32)
    # Rounded to odd at 24 bits, then at 8: once in effect.
    back = single.astype(np.float64)
    remainder = wide - back
    bits = single.view(np.int32)
    inexact = (remainder != 0) & np.isfinite(single) & ((bits & 1) == 0)
    step = np.where((remainder > 0) == (wide > 0), 1, -1).astype(np.int32)
    bits = np.where(inexact, bits + step, bits).view(np.uint32)
    low = bits & np.uint32(0xFFFF)
    high = bits >> np.uint32(16)
    if mode == "rn":
        up = (low > 0x8000) | ((low == 0x8000) & (high & np.uint32(1) == 1))
        high = high + up
    return np.where(np.isnan(wide), np.uint32(0x7FFF), high).astype(np.uint16)


def to_half(exact: np.ndarray, mode: str = "rn") -> np.ndarray:
    """Doubles or f32 to f16, rounded once; NaN is 0x7FFF."""
    result = np.asarray(exact).astype(np.float16)
    if mode == "rz":
        beyond = np.abs(result.astype(np.float64)) > np.abs(exact)
        result = np.where(beyond, np.nextafter(result, np.float16(0)), result)
    elif mode == "rm":
        result = np.where(result > exact, np.nextafter(result, np.float16(-np.inf)), result)
    elif mode == "rp":
        result = np.where(result < exact, np.nextafter(result, np.float16(np.inf)), result)
    return np.where(np.isnan(result), np.uint16(0x7FFF).view(np.float16), result)


def pair_halves(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A 32-bit word's lower and upper 16 bits."""
    return a.astype(np.uint16), (a >> np.uint32(16)).astype(np.uint16)


def pair(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)
