"""What kernels make of the stored bits of minifloats and of scales, on CPUs and GPUs.

All is exact; `Value`s may be scalars or vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.dialects.minifloats import E4M3, Minifloat
from abqc.dialects.mlir import ir
from abqc.dialects.number_formats import NumberFormat
from abqc.dialects.scale_types import StoredScale

from ..builder import Emitter, Value, vec

F32_MANTISSA, F32_BIAS = 23, 127
_EVERY_BYTE = 0x01010101
_SMALLEST_POWER = 0x00400000  # 2^-127, a subnormal


def integer_bytes(codes: Value, type_: Minifloat) -> Value:
    """Four signed bytes, each a value of E2Mx over its unit, of codes in the low bits of bytes.

    `codes` are i32, one or a vector. With m bits of mantissa, values grow by 1 up to 2^(m+1), by 2
    up to 2^(m+2) and by 4 from there on: what exceeds these bounds is added once more and twice.
    """
    assert type_.exponent_bits == 2, "others do not fit bytes"
    m, sign_bit = type_.mantissa_bits, type_.bits - 1
    sign = (codes >> sign_bit) & _EVERY_BYTE
    magnitude = codes & (((1 << sign_bit) - 1) * _EVERY_BYTE)
    upper = (codes >> (m + 1)) & _EVERY_BYTE
    top = upper & (codes >> m)
    once = magnitude & (upper * ((2 << m) - 1))
    twice = magnitude & (top * ((1 << m) - 1))
    total = magnitude + once + twice + twice
    # 128 - total, and 128 more: -total modulo 256, without a carry into the next byte.
    return ((total ^ (sign * 0x7F)) + sign) ^ (sign << 7)


def minifloat_value(b: Emitter, code: Value, type_: Minifloat) -> Value:
    """The f32 values of codes (i32, upper bits zero) of any minifloat.

    Subnormals get the exponent of the smallest normal numbers and the 1 that these have before the
    point, which is then subtracted: f32's own subnormals, slow on many CPUs, do not occur.
    """
    sign_bit, m = type_.bits - 1, type_.mantissa_bits
    magnitude = code & ((1 << sign_bit) - 1)
    subnormal = magnitude < (1 << m)
    raised = b.select(subnormal, magnitude + (1 << m), magnitude)
    shift = F32_MANTISSA - m
    bits = (raised << shift) + ((F32_BIAS - type_.bias) << F32_MANTISSA)
    value = as_float(b, bits)
    hidden = b.const(2.0 ** (1 - type_.bias), value.type)
    value = value - b.select(subnormal, hidden, 0.0)
    return as_float(b, as_bits(b, value) | ((code & (1 << sign_bit)) << (31 - sign_bit)))


def indexed_value(b: Emitter, code: Value, format: NumberFormat) -> Value:
    """The f32 value, in units of the scale, of a code (i32) of an indexed format."""
    if format.minifloat is not None:
        return minifloat_value(b, code, format.minifloat)
    assert format.table is not None
    return look_up(b, code, format.table)


def look_up(b: Emitter, code: Value, table: Sequence[float]) -> Value:
    """`table[code]`, f32, of a table of a power of two of floats: by selects."""
    type_ = vec(code.lanes, "f32") if _is_vector(code) else "f32"
    level, bit = [b.const(value, type_) for value in table], 1
    while len(level) > 1:
        odd = (code & bit) != 0
        level = [b.select(odd, y, x) for x, y in zip(level[::2], level[1::2], strict=True)]
        bit *= 2
    return level[0]


def power_of_two(b: Emitter, stored: Value) -> Value:
    """The f32 values of E8M0 scales (i32, zero-extended)."""
    return as_float(b, b.max(stored << F32_MANTISSA, _SMALLEST_POWER))


def e4m3_scale(b: Emitter, stored: Value, tensor_scale: Value) -> Value:
    """The f32 values of E4M3 scales (i32, zero-extended) times that of the tensor."""
    bits = as_float(b, stored << (F32_MANTISSA - E4M3.mantissa_bits))
    return bits * 2.0 ** (F32_BIAS - E4M3.bias) * tensor_scale


def as_float(b: Emitter, bits: Value) -> Value:
    return b.bitcast(bits, vec(bits.lanes, "f32") if _is_vector(bits) else "f32")


def as_bits(b: Emitter, value: Value) -> Value:
    return b.bitcast(value, vec(value.lanes, "i32") if _is_vector(value) else "i32")


def _is_vector(value: Value) -> bool:
    return isinstance(value.type, ir.VectorType)


def tensor_scale_bytes(stored: StoredScale) -> int:
    """Of the tensor's scale, where scales have one."""
    return 4 if stored == "e4m3" else 0
