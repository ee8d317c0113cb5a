"""Rows of quantized caches, decoded in registers (`dialects/cache_formats.py`).

16 codes of N bits are 2 N bytes, in any place of a row: two shuffles bring the bytes of each code
to its lane, a shift and a mask leave the code.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value
from abqc.dialects.cache_formats import UNIT, CacheFormat
from abqc.dialects.scale_types import E8M0_NAN

ZERO_POWER = 1 << 22  # the bits of 2^-127
NAN = 0x7FC00000


@dataclass(frozen=True)
class CacheRows:
    """Rows of `columns` elements in a buffer of bytes."""

    format: CacheFormat
    columns: int

    @property
    def name(self) -> str:
        """Part of the names of kernels."""
        return f"{self.format.label(self.columns)}_{self.columns}"

    @property
    def row_bytes(self) -> int:
        return self.format.row_bytes(self.columns)

    def load(self, b: Builder, data: Value, base: Value, column: Value) -> Value:
        """16 elements from `column`, a multiple of 16, of the row at byte `base`, as f32.

        What lies past the row's end are elements of its last 16, or any number.
        """
        last = (self.columns - 1) // UNIT * UNIT
        column = b.min(column, last)
        size = 2 * self.format.bits
        stored = b.load(data, base + column // UNIT * size, size)
        return self._scaled(b, self._codes(b, stored), data, base, column, UNIT)

    def load_one(self, b: Builder, data: Value, base: Value, column: Value) -> Value:
        """One element, as f32."""
        bit = column * self.format.bits
        # The byte behind the last code is one of the scales.
        pair = b.zext(b.load_as(data, base + bit // 8, "i16"), "i32")
        code = pair >> b.from_index(bit % 8, "i32") & ((1 << self.format.bits) - 1)
        return self._scaled(b, self._signed(code), data, base, column, 0)

    def _codes(self, b: Builder, stored: Value) -> Value:
        """The 16 codes in 2 N bytes, i32."""
        bits = self.format.bits
        first = [bits * lane // 8 for lane in range(UNIT)]
        words = b.zext(b.shuffle(stored, stored, first), "i32")
        if 8 % bits:
            second = [min(at + 1, 2 * bits - 1) for at in first]
            words = words | b.zext(b.shuffle(stored, stored, second), "i32") << 8
        if bits < 8:
            shifts = b.consts([bits * lane % 8 for lane in range(UNIT)], "i32")
            words = words >> shifts & ((1 << bits) - 1)
        return self._signed(words)

    def _signed(self, codes: Value) -> Value:
        if not self.format.is_blocks:
            return codes
        sign = 1 << (self.format.bits - 1)
        return (codes ^ sign) - sign

    def _scaled(
        self, b: Builder, codes: Value, data: Value, base: Value, column: Value, lanes: int
    ) -> Value:
        """The values of codes of one group."""
        format, steps = self.format, b.to_float(codes)
        at = base + format.code_bytes(self.columns)
        if format.n_groups(self.columns) > 1:
            at = at + column // format.group_size(self.columns) * format.scale_bytes()

        def spread(value: Value) -> Value:
            return b.splat(value, lanes) if lanes else value

        if format.is_blocks:
            return steps * spread(_power(b, b.zext(b.load(data, at), "i32")))
        scale, low = (b.extend(b.load_as(data, at + i, "f16")) for i in (0, 2))
        return steps * spread(scale) + spread(low)


def _power(b: Builder, stored: Value) -> Value:
    """2^(byte - 127); NaN for 255."""
    bits = b.select(stored == 0, b.const(ZERO_POWER, "i32"), stored << 23)
    bits = b.select(stored == E8M0_NAN, b.const(NAN, "i32"), bits)
    return b.bitcast(bits, "f32")
