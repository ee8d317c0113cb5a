"""Rows of keys and values as they are stored, a chunk of columns at a time.

    f32            4 columns, 16 bytes
    f16, bf16      8 columns, 16 bytes; 4 where the columns are no multiple of 8
    caches         4 columns of 8 bits, 8 of 4, 16 of 2: a word; 4 of other widths
                   (`dialects/cache_formats.py`)

`load` fetches and `decode` makes f32 of it, so that many loads can be under way before the first
is needed. Rows of floats start at multiples of a chunk's bytes where their columns are multiples of
a chunk, those of caches at multiples of 4 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Value, type_of, vec
from abqc.dialects.cache_formats import CacheFormat
from abqc.dialects.formats import FLOAT_BYTES, Float
from abqc.dialects.mlir import ir
from abqc.dialects.scale_types import E8M0_NAN

from ..builder import GpuBuilder

Stored = Float | CacheFormat

ZERO_POWER = 1 << 22  # the bits of 2^-127
NAN = 0x7FC00000
HALF_BYTES = 2


def label(stored: Stored, columns: int) -> str:
    """Part of the names of kernels that read rows of `columns` elements so."""
    return stored.label(columns) if isinstance(stored, CacheFormat) else stored


def unit_bytes(stored: Stored) -> int:
    """Bytes of what strides count: elements, or bytes of caches."""
    if isinstance(stored, CacheFormat):
        return 1
    return FLOAT_BYTES[stored]


@dataclass(frozen=True)
class StoredRows:
    """Rows of `columns` elements."""

    stored: Stored
    columns: int

    @property
    def width(self) -> int:
        """Columns of a chunk, a multiple of 4."""
        if isinstance(self.stored, CacheFormat):
            return 32 // self.stored.bits if self._in_a_word else 4
        return 8 if self.stored != "f32" and self.columns % 8 == 0 else 4

    @property
    def chunks(self) -> int:
        return -(-self.columns // self.width)

    @property
    def registers(self) -> int:
        """About as many for a chunk that is loaded."""
        if isinstance(self.stored, CacheFormat):
            scale = 0 if self.stored.n_groups(self.columns) == 1 else 1
            return (1 if self._in_a_word else 2) + scale
        return self.width * unit_bytes(self.stored) // 4

    @property
    def _in_a_word(self) -> bool:
        return isinstance(self.stored, CacheFormat) and 32 % (4 * self.stored.bits) == 0

    @property
    def _whole(self) -> bool:
        """Whether no chunk has columns past the end."""
        return self.columns % self.width == 0

    def load(self, b: GpuBuilder, row: Value, column: Value) -> list[Value]:
        """What `decode` takes, of the chunk from `column` (i32, a multiple of `width`) on of the
        row at pointer `row`; of the last chunk where the column is past the end."""
        at = b.min(column, (self.chunks - 1) * self.width)
        if isinstance(self.stored, CacheFormat):
            return _cache_words(b, self.stored, row, at, self.columns)
        size = unit_bytes(self.stored)
        if self._whole:
            return [b.load(row, vec(self.width * size // 4, "i32"), at * size)]
        last = self.columns - 1
        element = f"i{8 * size}"
        return [b.load(row, element, b.min(at + i, last) * size) for i in range(self.width)]

    def loaded_types(self) -> list[ir.Type]:
        """Of what `load` gives."""
        if isinstance(self.stored, CacheFormat):
            scale = "i8" if self.stored.is_blocks else "i32"
            return [type_of(t) for t in ["i32"] * (1 if self._in_a_word else 2) + [scale]]
        size = unit_bytes(self.stored)
        if self._whole:
            return [vec(self.width * size // 4, "i32")]
        return [type_of(f"i{8 * size}")] * self.width

    def decode(self, b: GpuBuilder, loaded: Sequence[Value], column: Value) -> list[Value]:
        """The chunk's elements in f32; 0 past the row's end."""
        if isinstance(self.stored, CacheFormat):
            values = _cache_values(b, self.stored, loaded, column, self)
        elif self._whole:
            words = b.lanes_of(loaded[0])
            values = [v for word in words for v in _floats(b, self.stored, word)]
        elif self.stored == "f32":
            values = [b.bitcast(bits, "f32") for bits in loaded]
        else:
            values = [_half(b, self.stored, b.zext(bits, "i32")) for bits in loaded]
        if self._whole:
            inside = column < self.columns
            return [b.select(inside, value, 0.0) for value in values]
        return [b.select(column + i < self.columns, v, 0.0) for i, v in enumerate(values)]

    def load4(self, b: GpuBuilder, row: Value, column: Value) -> list[Value]:
        """Elements column .. column + 4 of a row in f32, 0 past its end; `column` is a multiple of
        4."""
        if self.width == 4:
            return self.decode(b, self.load(b, row, column), column)
        four = _Fours(self.stored, self.columns)
        return four.decode(b, four.load(b, row, column), column)


class _Fours(StoredRows):
    """The same in chunks of 4 columns, whatever the format."""

    @property
    def width(self) -> int:
        return 4


def _floats(b: GpuBuilder, stored: Float, word: Value) -> list[Value]:
    """The elements of a word."""
    if stored == "f32":
        return [b.bitcast(word, "f32")]
    if stored == "bf16":
        return [b.bitcast(word << 16, "f32"), b.bitcast(word & 0xFFFF0000, "f32")]
    return [_half(b, stored, word & 0xFFFF), _half(b, stored, word >> 16)]


def _half(b: GpuBuilder, stored: Float, bits: Value) -> Value:
    """16 bits, in the low half of a word."""
    if stored == "bf16":
        return b.bitcast(bits << 16, "f32")
    return b.extend(b.bitcast(b.trunc(bits, "i16"), "f16"))


# Caches


def _cache_words(
    b: GpuBuilder, format: CacheFormat, row: Value, column: Value, columns: int
) -> list[Value]:
    """The words with the codes from `column` on, then those with their group's scale."""
    bits = format.bits
    word = column * bits >> 5
    words = [b.load(row, "i32", word * 4)]
    if 32 % (4 * bits):
        following = b.min(word + 1, format.row_bytes(columns) // 4 - 1)
        words.append(b.load(row, "i32", following * 4))
    scales = b.at(row, format.code_bytes(columns))
    if format.n_groups(columns) > 1:
        group = column // format.group_size(columns)
        scales = b.at(scales, group * format.scale_bytes())
    if format.is_blocks:
        return [*words, b.load(scales, "i8")]
    if format.code_bytes(columns) % 4 == 0:
        return [*words, b.load(scales, "i32")]
    low, high = (b.zext(b.load(scales, "i16", offset), "i32") for offset in (0, HALF_BYTES))
    return [*words, low | high << 16]


def _cache_values(
    b: GpuBuilder,
    format: CacheFormat,
    loaded: Sequence[Value],
    column: Value,
    rows: StoredRows,
) -> list[Value]:
    word, *rest = loaded
    if format.is_blocks:
        scale, low = _power(b, b.zext(rest[-1], "i32")), None
    else:
        scale, low = _floats(b, "f16", rest[-1])
    if 32 % (4 * format.bits) == 0:
        word = word >> (column * format.bits & 31) if rows.width * format.bits < 32 else word
        return _byte_values(b, format, word, rows.width, scale, low)
    shift = b.zext(column * format.bits & 31, "i64")
    both = b.zext(word, "i64") | b.zext(rest[0], "i64") << 32
    codes = b.trunc(both >> shift, "i32")
    each = [codes >> format.bits * i & ((1 << format.bits) - 1) for i in range(4)]
    if format.is_blocks:
        sign = 1 << (format.bits - 1)
        return [b.to_float((code ^ sign) - sign) * scale for code in each]
    assert low is not None
    return [b.to_float(code) * scale + low for code in each]


def _byte_values(
    b: GpuBuilder,
    format: CacheFormat,
    word: Value,
    count: int,
    scale: Value,
    low: Value | None,
) -> list[Value]:
    """`count` codes of 2, 4 or 8 bits, from the lowest bits of a word on, two or three instructions
    each.

    A byte becomes a float when it is put into the mantissa of 2^7, or of 2^15 where it has 8 bits.
    A multiply-add takes that number off again: its addend, low - 2^7 scale (2^15 scale), is exact
    where low is 0 or at least 2^-6 (2^2) scales, and else off by 2^-17 (2^-9) of a scale at most.
    """
    bits = format.bits
    if format.is_blocks:  # two's complement: the sign is made to count up
        word = word ^ sum(1 << (bits * i + bits - 1) for i in range(32 // bits))
    per_byte = 8 // bits
    mask = sum(((1 << bits) - 1) << (8 * i) for i in range(4))
    parts = [word] if bits == 8 else [word >> (bits * i) & mask for i in range(per_byte)]
    base, place = (32768.0, 1) if bits == 8 else (128.0, 2)
    zero = b.to_bits(b.const(base, "f32"))
    start = b.fma(scale, b.const(-base, "f32"), low) if low is not None else None
    values = []
    for i in range(count):
        byte = i // per_byte
        # Bytes 0 to 3 are the word's, 4 to 7 those of the number, of which one is replaced.
        selector = sum(4 + j << (4 * j) for j in range(4) if j != place) | byte << (4 * place)
        placed = b.bitcast(b.permute_bytes(parts[i % per_byte], zero, selector), "f32")
        if start is None:  # their sums may not overflow
            values.append((placed - (base + (1 << (bits - 1)))) * scale)
        else:
            values.append(b.fma(placed, scale, start))
    return values


def _power(b: GpuBuilder, stored: Value) -> Value:
    """2^(byte - 127); NaN for 255."""
    bits = b.select(stored == 0, b.const(ZERO_POWER, "i32"), stored << 23)
    bits = b.select(stored == E8M0_NAN, b.const(NAN, "i32"), bits)
    return b.bitcast(bits, "f32")
