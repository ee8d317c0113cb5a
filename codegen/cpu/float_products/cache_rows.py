"""Rows of quantized caches, decoded in registers (`dialects/cache_formats.py`).

16 codes of N bits are 2 N bytes, in any place of a row: two shuffles bring the bytes of each code
to its lane, a shift and a mask leave the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value, vec
from abqc.dialects.cache_formats import UNIT, CacheFormat
from abqc.dialects.mlir import ir
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
        codes = self.codes(b, data, base, column)
        return self._scaled(b, codes, data, base, column, UNIT)

    def codes(self, b: Builder, data: Value, base: Value, column: Value | int) -> Value:
        """16 codes from `column`, a multiple of 16, of the row at byte `base`, as f32."""
        size = 2 * self.format.bits
        stored = b.load(data, base + b.index(column) // UNIT * size, size)
        return b.to_float(self._codes(b, stored))

    def codes_of_bytes(self, b: Builder, data: Value, base: Value, column: Value) -> list[Value]:
        """The first codes of the 16 bytes with `column`, the second ones, and so on, as f32."""
        bits, found = self.format.bits, []
        stored = b.load(data, base + column // UNIT * (2 * bits), UNIT)
        words = b.zext(stored, "i32")
        for at in range(0, 8, bits):
            code = words >> at if at else words
            code = code & ((1 << bits) - 1) if at + bits < 8 else code
            found.append(b.to_float(self._signed(code)))
        return found

    def load_one(self, b: Builder, data: Value, base: Value, column: Value) -> Value:
        """One element, as f32."""
        bit = column * self.format.bits
        # The byte behind the last code is one of the scales.
        pair = b.zext(b.load_as(data, base + bit // 8, "i16"), "i32")
        code = pair >> b.from_index(bit % 8, "i32") & ((1 << self.format.bits) - 1)
        return self._scaled(b, b.to_float(self._signed(code)), data, base, column, 0)

    @property
    def unit_words(self) -> int:
        """Of 32 bits that hold 16 codes, the last one in part where their width is odd."""
        return (self.format.bits + 1) // 2

    def codes_of_words(self, b: Builder, words: Sequence[Value]) -> list[Value]:
        """16 codes, f32, of each lane of `unit_words` words (i32): one result for each."""
        bits, found = self.format.bits, []
        for first in range(0, UNIT * bits, bits):
            word, below = words[first // 32], first % 32
            above = 32 - below - bits
            if above < 0:
                both = word >> below | words[first // 32 + 1] << 32 - below
                code = self._signed(both & ((1 << bits) - 1))
            elif self.format.is_blocks:
                code = (word << above if above else word).sar(32 - bits)
            else:
                code = word >> below if below else word
                code = code & ((1 << bits) - 1) if above else code
            found.append(b.to_float(code))
        return found

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
        self, b: Builder, steps: Value, data: Value, base: Value, column: Value, lanes: int
    ) -> Value:
        """The values of codes, f32, of one group."""
        group = column // self.format.group_size(self.columns)

        def spread(value: Value) -> Value:
            return b.splat(value, lanes) if lanes else value

        scale, low = self.scale(b, self.load_scale(b, data, base, group))
        values = steps * spread(scale)
        return values if low is None else values + spread(low)

    def load_scale(self, b: Builder, data: Value, base: Value, group: Value | int) -> Value:
        """The bytes of a group's scale as i32, of the row at byte `base`."""
        format = self.format
        at = base + format.code_bytes(self.columns)
        if format.n_groups(self.columns) > 1:
            at = at + b.index(group) * format.scale_bytes()
        return b.zext(b.load(data, at), "i32") if format.is_blocks else b.load_as(data, at, "i32")

    def scale(self, b: Builder, stored: Value) -> tuple[Value, Value | None]:
        """Scale and low of the bytes of scales, which are i32, or a vector of them."""
        if self.format.is_blocks:
            return _power(b, stored), None
        half = vec(stored.lanes, "f16") if _is_vector(stored) else "f16"
        scale, low = (b.bitcast(b.trunc(x, "i16"), half) for x in (stored, stored >> 16))
        return b.extend(scale), b.extend(low)


def _power(b: Builder, stored: Value) -> Value:
    """2^(byte - 127); NaN for 255."""
    bits = b.select(stored == 0, b.const(ZERO_POWER, stored.type), stored << 23)
    bits = b.select(stored == E8M0_NAN, b.const(NAN, stored.type), bits)
    return b.bitcast(bits, vec(stored.lanes, "f32") if _is_vector(stored) else "f32")


def _is_vector(value: Value) -> bool:
    return isinstance(value.type, ir.VectorType)
