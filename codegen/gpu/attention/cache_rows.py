"""Rows of quantized caches, four elements at a time (`dialects/cache_formats.py`).

Four codes from a column that is a multiple of 4 are at most 32 bits of two words of a row.
"""

from __future__ import annotations

from abqc.codegen.builder import Value
from abqc.dialects.cache_formats import CacheFormat
from abqc.dialects.scale_types import E8M0_NAN

from ..builder import GpuBuilder

ZERO_POWER = 1 << 22  # the bits of 2^-127
NAN = 0x7FC00000


def load4_decoded(
    b: GpuBuilder, format: CacheFormat, pointer: Value, column: Value, columns: int
) -> list[Value]:
    """Elements column .. column + 4 of the row of `columns` at `pointer`; 0 past its end.

    `column` (i32) is a multiple of 4, `pointer` one of 4 bytes.
    """
    at = b.min(column, (columns - 1) // 4 * 4)
    values = _scaled(b, format, _codes(b, format, pointer, at, columns), pointer, at, columns)
    if columns % 4 == 0:
        inside = column < columns
        return [b.select(inside, value, 0.0) for value in values]
    return [b.select(column + i < columns, value, 0.0) for i, value in enumerate(values)]


def _codes(
    b: GpuBuilder, format: CacheFormat, pointer: Value, column: Value, columns: int
) -> list[Value]:
    bits = format.bits
    bit = column * bits
    word, shift = bit >> 5, bit & 31
    codes = b.load(pointer, "i32", word * 4)
    if 32 % (4 * bits) == 0:
        codes = codes >> shift
    else:
        following = b.min(word + 1, format.row_bytes(columns) // 4 - 1)
        high = b.zext(b.load(pointer, "i32", following * 4), "i64") << 32
        codes = b.trunc((b.zext(codes, "i64") | high) >> b.zext(shift, "i64"), "i32")
    each = [codes >> bits * i & ((1 << bits) - 1) for i in range(4)]
    if format.is_blocks:
        sign = 1 << (bits - 1)
        each = [(code ^ sign) - sign for code in each]
    return each


def _scaled(
    b: GpuBuilder,
    format: CacheFormat,
    codes: list[Value],
    pointer: Value,
    column: Value,
    columns: int,
) -> list[Value]:
    """The values of four codes of one group."""
    group = column // format.group_size(columns)
    scales = b.at(b.at(pointer, format.code_bytes(columns)), group * format.scale_bytes())
    steps = [b.to_float(code) for code in codes]
    if format.is_blocks:
        power = _power(b, b.zext(b.load(scales, "i8"), "i32"))
        return [step * power for step in steps]
    scale, low = (b.extend(b.load(scales, "f16", 2 * i)) for i in range(2))
    return [step * scale + low for step in steps]


def _power(b: GpuBuilder, stored: Value) -> Value:
    """2^(byte - 127); NaN for 255."""
    bits = b.select(stored == 0, b.const(ZERO_POWER, "i32"), stored << 23)
    bits = b.select(stored == E8M0_NAN, b.const(NAN, "i32"), bits)
    return b.bitcast(bits, "f32")
