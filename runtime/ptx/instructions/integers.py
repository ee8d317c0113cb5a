"""Integer arithmetic (PTX ISA, "Integer Arithmetic Instructions")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..decode import Decoder, Lanewise, Operation, instruction
from ..types import TYPES, ScalarType
from . import floats
from .pairs import by_halves

_WIDER = {8: 16, 16: 32, 32: 64}


def wider(type: ScalarType) -> ScalarType:
    """The type of twice the bits."""
    return TYPES[f"{type.kind}{_WIDER[type.bits]}"]


def _lanewise(i: Decoder, function: Callable, type: ScalarType, count: int) -> Operation:
    """`count` sources of one type, and a result of it."""
    i.arity(count + 1)
    if type.lanes == 2:
        function = by_halves(function, type)
    return Lanewise(function, i.result(0, type), *(i.source(k + 1, type) for k in range(count)))


@instruction("add", "sub")
def add_sub(i: Decoder) -> Operation:
    if floats.is_float(i):
        return floats.add_sub(i)
    if "cc" in i.rest():
        from .extended import add_sub_carry

        return add_sub_carry(i)
    saturate = i.flag("sat")
    type = i.type()
    if saturate:
        if type.name != "s32":
            raise i.error("only .s32 saturates")
        return _lanewise(i, _saturated(np.add if i.opcode == "add" else np.subtract), type, 2)
    return _lanewise(i, np.add if i.opcode == "add" else np.subtract, type, 2)


def _saturated(function: Callable) -> Callable:
    """A 32-bit result clamped to its range."""

    def saturated(*sources: np.ndarray) -> np.ndarray:
        exact = function(*(source.astype(np.int64) for source in sources))
        return np.clip(exact, -(1 << 31), (1 << 31) - 1)

    return saturated


@instruction("mul")
def mul(i: Decoder) -> Operation:
    if floats.is_float(i):
        return floats.mul(i)
    part = i.need("lo", "hi", "wide")
    type = i.type()
    if part == "wide":
        result = wider(type)
        dtype = result.dtype
        i.arity(3)
        return Lanewise(
            lambda a, b: np.multiply(a, b, dtype=dtype),
            i.result(0, result),
            i.source(1, type),
            i.source(2, type),
        )
    return _lanewise(i, np.multiply if part == "lo" else high_product(type), type, 2)


def high_product(type: ScalarType) -> Callable:
    """The upper half of the exact product."""
    if type.bits < 64:
        dtype, bits = wider(type).dtype, type.bits
        return lambda a, b: np.multiply(a, b, dtype=dtype) >> dtype.type(bits)
    return _high_product_signed if type.kind == "s" else _high_product_unsigned


def _high_product_unsigned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """64 x 64 -> upper 64 bits, by halves."""
    low, shift = np.uint64(0xFFFF_FFFF), np.uint64(32)
    a0, a1, b0, b1 = a & low, a >> shift, b & low, b >> shift
    middle = a1 * b0 + (a0 * b0 >> shift)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> shift) + (other >> shift)


def _high_product_signed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product = _high_product_unsigned(a.astype(np.uint64), b.astype(np.uint64)).astype(np.int64)
    return product - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)


@instruction("mad")
def mad(i: Decoder) -> Operation:
    if floats.is_float(i):
        return floats.fma(i)
    if "cc" in i.rest():
        from .extended import mad_carry

        return mad_carry(i)
    part = i.need("lo", "hi", "wide")
    saturate = i.flag("sat")
    type = i.type()
    i.arity(4)
    if saturate and (part != "hi" or type.name != "s32"):
        raise i.error("only .hi.s32 saturates")
    if part == "wide":
        result = wider(type)
        dtype = result.dtype
        return Lanewise(
            lambda a, b, c: np.multiply(a, b, dtype=dtype) + c,
            i.result(0, result),
            i.source(1, type),
            i.source(2, type),
            i.source(3, result),
        )
    product = np.multiply if part == "lo" else high_product(type)
    if saturate:
        sum_of = _saturated(np.add)
        return _lanewise(i, lambda a, b, c: sum_of(product(a, b), c), type, 3)
    dtype = type.dtype
    return _lanewise(i, lambda a, b, c: product(a, b).astype(dtype, copy=False) + c, type, 3)


@instruction("mul24", "mad24")
def mul24(i: Decoder) -> Operation:
    """Products of the low 24 bits: the low 32 or the high 32 of 48 bits."""
    part = i.need("lo", "hi")
    type = i.type()
    shift = np.int64(0 if part == "lo" else 16)

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (_low_24(a) * _low_24(b) >> shift).astype(type.dtype)

    if i.opcode == "mul24":
        return _lanewise(i, product, type, 2)
    return _lanewise(i, lambda a, b, c: product(a, b) + c, type, 3)


def _low_24(a: np.ndarray) -> np.ndarray:
    wide = a.astype(np.int64) << np.int64(40)
    return (
        wide >> np.int64(40)
        if a.dtype.kind == "i"
        else (wide.astype(np.uint64) >> np.uint64(40)).astype(np.int64)
    )


@instruction("div")
def div(i: Decoder) -> Operation:
    if floats.is_float(i):
        return floats.div(i)
    return _lanewise(i, quotient, i.type(), 2)


@instruction("rem")
def rem(i: Decoder) -> Operation:
    return _lanewise(i, remainder, i.type(), 2)


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards zero; all ones where the divisor is zero, as hardware gives."""
    ones = b.dtype.type(-1 if b.dtype.kind == "i" else np.iinfo(b.dtype).max)
    if b.dtype.kind == "u":
        return np.where(b == 0, ones, a // np.where(b == 0, b.dtype.type(1), b))
    divisor = np.where(b == 0, b.dtype.type(1), b)
    floored = a // divisor
    truncated = floored + ((floored < 0) & (floored * divisor != a))
    return np.where(b == 0, ones, truncated)


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """With the sign of the dividend; the dividend where the divisor is zero."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, a, np.fmod(a, divisor))


@instruction("abs")
def absolute(i: Decoder) -> Operation:
    return floats.sign_bits(i) if floats.is_float(i) else _lanewise(i, np.abs, i.type(), 1)


@instruction("neg")
def negate(i: Decoder) -> Operation:
    return floats.sign_bits(i) if floats.is_float(i) else _lanewise(i, np.negative, i.type(), 1)


@instruction("min", "max")
def min_max(i: Decoder) -> Operation:
    if floats.is_float(i):
        return floats.min_max(i)
    relu = i.flag("relu")
    function = np.minimum if i.opcode == "min" else np.maximum
    type = i.type()
    if relu and type.name != "s32":
        raise i.error("only .s32 has .relu")
    if relu:
        return _lanewise(i, lambda a, b: np.maximum(function(a, b), 0), type, 2)
    return _lanewise(i, function, type, 2)


@instruction("sad")
def sad(i: Decoder) -> Operation:
    """c + |a - b|."""
    type = i.type()
    return _lanewise(i, lambda a, b, c: c + np.where(a < b, b - a, a - b), type, 3)


@instruction("dp4a", "dp2a")
def dot_product(i: Decoder) -> Operation:
    """Four products of bytes, or two of half words (a) and bytes (b), added to c."""
    half = i.choose("lo", "hi") if i.opcode == "dp2a" else None
    if i.opcode == "dp2a" and half is None:
        raise i.error(".lo or .hi is missing")
    a_type, b_type = i.type(), i.type()
    signed = "s" in (a_type.kind, b_type.kind)
    bits_of_a = 8 if i.opcode == "dp4a" else 16
    first_of_b = 16 if half == "hi" else 0
    count = 32 // bits_of_a

    def dot(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        total = c.astype(np.int64)
        for k in range(count):
            x = _part(a, k * bits_of_a, bits_of_a, a_type.kind == "s")
            total = total + x * _part(b, first_of_b + 8 * k, 8, b_type.kind == "s")
        return total.astype(np.uint32)

    i.arity(4)
    u32, c_type = TYPES["u32"], TYPES["s32" if signed else "u32"]
    return Lanewise(dot, i.result(0, u32), i.source(1, u32), i.source(2, u32), i.source(3, c_type))


def _part(word: np.ndarray, start: int, bits: int, signed: bool) -> np.ndarray:
    """A field of a 32-bit word as a number."""
    up = np.int64(64 - start - bits)
    shifted = word.astype(np.int64) << up
    if signed:
        return shifted >> np.int64(64 - bits)
    return (shifted.view(np.uint64) >> np.uint64(64 - bits)).view(np.int64)
