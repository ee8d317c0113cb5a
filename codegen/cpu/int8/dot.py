"""Exact dot products of u8 by i8 in fours, on every ISA: acc[16] += sum of a[4] * w[16][4].

AVX512 has VPDPBUSD. The others multiply in 16 bits: VPMADDUBSW, which saturates, where the operands
cannot reach its limit, else VPMADDWD on even and odd bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value, vec

from ..panels.layout import PANEL

I16_MAX = 32767


@dataclass(frozen=True)
class Dot:
    """Emits the products for activations up to `a_highest` and weights of magnitude `w_highest`."""

    b: Builder
    a_highest: int
    w_highest: int
    w_signed: bool

    @property
    def _lanes(self) -> int:
        return min(PANEL, self.b.isa.lanes(32))

    @property
    def _madd_bytes(self) -> bool:
        reaches = 2 * self.a_highest * self.w_highest > I16_MAX
        return self.b.isa.madd_u8i8 is not None and not reaches

    def activations(self, quad: Value) -> tuple[Value, ...]:
        """Operands made of 4 activation bytes (i32)."""
        b = self.b
        if b.isa.dot_u8i8 or self._madd_bytes:
            return (self._bytes(b.splat(quad, self._lanes)),)
        even = quad & 0x00FF00FF
        odd = (quad >> 8) & 0x00FF00FF
        return tuple(self._words(b.splat(part, self._lanes)) for part in (even, odd))

    def weights(self, quad: Value) -> list[tuple[Value, ...]]:
        """Operands made of the 64 bytes of a quad (vector<16xi32>), by register."""
        return [self._weight_operands(register) for register in self.split(quad)]

    def pixels(self, quads: Value) -> tuple[Value, ...]:
        """Operands made of a register of activations, each lane 4 bytes of a pixel of its own."""
        if self.b.isa.dot_u8i8 or self._madd_bytes:
            return (self._bytes(quads),)
        words = self._words(quads)
        return (words & 0x00FF, words >> 8)

    def weight(self, quad: Value) -> tuple[Value, ...]:
        """Operands made of 4 weight bytes (i32) for all lanes."""
        return self._weight_operands(self.b.splat(quad, self._lanes))

    def _weight_operands(self, register: Value) -> tuple[Value, ...]:
        if self.b.isa.dot_u8i8 or self._madd_bytes:
            return (self._bytes(register),)
        words = self._words(register)
        if self.w_signed:
            return ((words << 8).sar(8), words.sar(8))
        return (words & 0x00FF, words >> 8)

    def zero(self) -> list[Value]:
        """Accumulators of 16 channels, by register."""
        return [self.b.const(0, vec(self._lanes, "i32")) for _ in range(0, PANEL, self._lanes)]

    def accumulate(
        self, acc: list[Value], a: tuple[Value, ...], w: list[tuple[Value, ...]]
    ) -> list[Value]:
        return [self.add_products(acc[i], a, w[i]) for i in range(len(acc))]

    def add(self, parts: Sequence[list[Value]]) -> list[Value]:
        """The sum of several accumulators."""
        total = parts[0]
        for part in parts[1:]:
            total = [x + y for x, y in zip(total, part, strict=True)]
        return total

    def split(self, acc: Value) -> list[Value]:
        """A vector<16xi32> as accumulators."""
        if self._lanes == PANEL:
            return [acc]
        return [self.b.slice(acc, i, self._lanes) for i in range(0, PANEL, self._lanes)]

    def join(self, acc: list[Value]) -> Value:
        """Accumulators as one vector<16xi32>."""
        return self.b.join(*acc)

    def add_products(self, acc: Value, a: tuple[Value, ...], w: tuple[Value, ...]) -> Value:
        """One register of accumulators, with the products of operands added."""
        b = self.b
        if b.isa.dot_u8i8:
            return b.intrinsic(b.isa.dot_u8i8, acc.type, acc, a[0], w[0])
        if b.isa.madd_u8i8 and self._madd_bytes:
            pairs = b.intrinsic(b.isa.madd_u8i8, vec(2 * self._lanes, "i16"), a[0], w[0])
            ones = b.const(1, pairs.type)
            return acc + b.intrinsic(b.isa.madd_i16, acc.type, pairs, ones)
        for x, y in zip(a, w, strict=True):
            acc = acc + b.intrinsic(b.isa.madd_i16, acc.type, x, y)
        return acc

    def _bytes(self, value: Value) -> Value:
        return self.b.bitcast(value, vec(4 * value.lanes, "i8"))

    def _words(self, value: Value) -> Value:
        return self.b.bitcast(value, vec(2 * value.lanes, "i16"))
