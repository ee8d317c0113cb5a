"""Integers in the order of the elements of a tensor, for kernels that sort or select.

Of floats -0 and 0 are equal, and NaN is larger than any number.
"""

from __future__ import annotations

from abqc.codegen.builder import Value, bits_of, type_of
from abqc.dialects.mlir import ir

from ..builder import GpuBuilder

ELEMENTS = ("f16", "bf16", "f32", "f64", "i8", "i16", "i32", "i64")  # integers are signed


def key_type(element: str) -> str:
    """Of a key in registers; it needs as many bits as the element."""
    return "i64" if bits_of(type_of(element)) == 64 else "i32"


def order_key(b: GpuBuilder, value: Value, element: str, *, descending: bool) -> Value:
    """A signed integer: smaller ones come first."""
    bits, wide = bits_of(type_of(element)), key_type(element)
    if isinstance(value.type, ir.FloatType):
        magnitude = (1 << (bits - 1)) - 1
        key = b.sext(b.to_bits(value), wide)
        key = key ^ (key.sar(bits_of(key.type) - 1) & magnitude)
        number = b.extend(value) if bits == 16 else value
        key = b.select(number == 0.0, b.const(0, wide), key)
        key = b.select(number != number, b.const(magnitude, wide), key)
    else:
        key = b.sext(value, wide)
    return key ^ -1 if descending else key
