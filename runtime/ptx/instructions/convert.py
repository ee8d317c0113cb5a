"""`cvt`: between integers and floats of all widths (PTX ISA, "cvt")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import arithmetic
from ..arithmetic import canonical, flushed, pair
from ..decode import Decoder, Lanewise, Operation, instruction
from ..types import TYPES, ScalarType
from . import halves

_INTEGER_ROUNDINGS: dict[str, Callable] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


@instruction("cvt")
def convert(i: Decoder) -> Operation:
    """`cvt.<rounding>.<flags>.<to>.<from>`."""
    if i.flag("pack"):
        return _pack(i)
    to_integer = i.choose(*_INTEGER_ROUNDINGS)
    mode = i.choose(*arithmetic.ROUNDINGS) or "rn"
    ftz, saturate, relu = i.flag("ftz"), i.flag("sat"), i.flag("relu")
    to, origin = i.type(), i.type()
    if to.lanes == 2:
        return _to_pair(i, to, origin, mode, relu)
    if relu and not (to.bits == 16 and to.is_float):
        raise i.error(".relu is for results of 16 bits")
    i.arity(2)
    function = _conversion(i, to, origin, to_integer, mode, ftz, saturate, relu)
    bits_of = TYPES[f"u{to.bits}"] if to.is_float and to.bits == 16 else to
    source_type = TYPES[f"u{origin.bits}"] if origin.is_float and origin.bits == 16 else origin
    return Lanewise(
        function,
        i.result(0, bits_of, relaxed=to.is_integer),
        i.source(1, source_type, relaxed=True),
    )


def _conversion(
    i: Decoder,
    to: ScalarType,
    origin: ScalarType,
    to_integer: str | None,
    mode: str,
    ftz: bool,
    saturate: bool,
    relu: bool,
) -> Callable:
    """A function of numpy arrays; 16-bit floats come and go as bits."""
    if origin.is_integer and to.is_integer:
        return _clamped(to, origin) if saturate else lambda a: a.astype(to.dtype)
    read = _reader(origin, ftz)
    if to.is_integer:
        if to_integer is None:
            raise i.error("a rounding to integers is missing")
        return _float_to_integer(to, _INTEGER_ROUNDINGS[to_integer], read)
    if to.bits == 64 and mode != "rn":
        raise i.error(f".{mode}.f64 is not supported")
    if origin.is_integer:
        return _finish(_integer_to_float(to, mode), to, saturate, False, mode=mode)
    if to_integer:
        rounding = _INTEGER_ROUNDINGS[to_integer]
        return _finish(lambda a: rounding(read(a)), to, saturate, ftz, relu)
    return _finish(read, to, saturate, ftz, relu, mode)


def _clamped(to: ScalarType, origin: ScalarType) -> Callable:
    """Integers out of the range of `to` become its nearest value."""
    low, high = np.iinfo(to.dtype).min, np.iinfo(to.dtype).max
    limits = np.iinfo(origin.dtype)
    return lambda a: np.clip(a, max(low, limits.min), min(high, limits.max)).astype(to.dtype)


def _reader(origin: ScalarType, ftz: bool) -> Callable:
    """The source as doubles, exactly."""
    if origin.is_float and origin.bits == 16:
        return lambda a: halves.decode(a, origin)
    return lambda a: flushed(a, ftz).astype(np.float64)


def _float_to_integer(to: ScalarType, rounding: Callable, read: Callable) -> Callable:
    """Out of range becomes the nearest value, NaN becomes 0."""
    limits = np.iinfo(to.dtype)
    # The largest 64-bit integers are no doubles: what reaches 2^63 or 2^64 is put in by hand.
    low, beyond = float(limits.min), float(limits.max) + (0.0 if to.bits == 64 else 1.0)

    def converted(a: np.ndarray) -> np.ndarray:
        value = rounding(read(a))
        inside = (value >= low) & (value < beyond)
        result = np.where(inside, value, 0.0).astype(to.dtype)
        result = np.where(value >= beyond, to.dtype.type(limits.max), result)
        return np.where(value < low, to.dtype.type(limits.min), result)

    return converted


def _integer_to_float(to: ScalarType, mode: str) -> Callable:
    """As a double that rounds as the integer would: exact, or of 64 bits and rounded to odd."""

    def exact(a: np.ndarray) -> np.ndarray:
        if a.dtype.itemsize < 8:
            return a.astype(np.float64)
        if to.bits == 64 and mode == "rn":
            return a.astype(np.float64)
        low_bits = a.dtype.type(0x7FF)
        high = (a & ~low_bits) | np.where(a & low_bits, a.dtype.type(0x800), a.dtype.type(0))
        small = np.abs(a.astype(np.float64)) < 2.0**53
        return np.where(small, a.astype(np.float64), high.astype(np.float64))

    return exact


def _finish(
    function: Callable,
    to: ScalarType,
    saturate: bool,
    ftz: bool,
    relu: bool = False,
    mode: str = "rn",
) -> Callable:
    """Doubles rounded to the result's type."""

    def finished(a: np.ndarray) -> np.ndarray:
        value = function(a)
        if saturate:
            value = np.fmin(np.fmax(value, 0.0), 1.0)
        if relu:
            value = np.maximum(value, 0.0)
        if to.bits == 16:
            return halves.encode(value, to, mode=mode)
        if to.bits == 32:
            return flushed(canonical(arithmetic.rounded(value, mode)), ftz)
        return value

    return finished


def _to_pair(i: Decoder, to: ScalarType, origin: ScalarType, mode: str, relu: bool) -> Operation:
    """Two f32 to a packed pair: the first source becomes the upper half."""
    if origin.name != "f32":
        raise i.error("pairs are converted from .f32")
    i.arity(3)
    element = TYPES["bf16" if to.kind == "bf" else "f16"]
    one = _finish(lambda a: a.astype(np.float64), element, False, False, relu, mode)
    return Lanewise(
        lambda high, low: pair(one(low), one(high)),
        i.result(0, TYPES["u32"]),
        i.source(1, origin),
        i.source(2, origin),
    )


def _pack(i: Decoder) -> Operation:
    """`cvt.pack.sat`: two integers clamped and packed, below the low half of a third."""
    i.need("sat")
    to = i.rest().pop(0)
    origin = i.type()
    kind, bits = to[0], int(to[1:]) if to[1:].isdigit() else 0
    if bits not in (8, 16) or kind not in "us":
        raise i.error(f"cvt.pack to .{to} is not supported")
    if bits == 8 and i.flag("b32"):
        count = 4
    else:
        count = 3
    i.arity(count)
    u32 = TYPES["u32"]
    clamp = _clamped(TYPES[to], origin)
    mask, shift = np.uint32((1 << bits) - 1), np.uint32(bits)

    def packed(a: np.ndarray, b: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        low, high = (clamp(x).astype(np.uint32) & mask for x in (b, a))
        word = high << shift | low
        return rest[0] << np.uint32(2 * bits) | word if rest else word

    sources = [i.source(1, origin), i.source(2, origin)]
    if count == 4:
        sources.append(i.source(3, u32))
    return Lanewise(packed, i.result(0, u32), *sources)
