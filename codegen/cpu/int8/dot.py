"""Exact dot products of u8 by i8 in fours, on every ISA: acc[16] += sum of a[4] * w[16][4].

AVX512 has VPDPBUSD. The others multiply in 16 bits: VPMADDUBSW, which saturates, where the operands
cannot reach its limit, else VPMADDWD on even and odd bytes. Small pairs of VPMADDUBSW are added up
in 16 bits, as many as cannot overflow, before they are widened.

Accumulators are hidden from LLVM after each quad (`opaque`): it would add the products of several
quads up first, to shorten the chain of sums, and run out of the 16 registers of AVX2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.isa import Isa

from ..panels.layout import PANEL

I16_MAX = 32767

Kind = Literal["dot", "bytes", "words"]


@dataclass(frozen=True)
class Products:
    """How an ISA multiplies u up to `a_highest` by weights of magnitude `w_highest`: by a dot
    product, as bytes in pairs, or as words. `depth` is how many quads are added up in 16 bits."""

    kind: Kind
    depth: int = 1

    @staticmethod
    def of(isa: Isa, a_highest: int, w_highest: int) -> Products:
        if isa.dot_u8i8:
            return Products("dot")
        pair = 2 * a_highest * w_highest
        if isa.madd_u8i8 is None or pair > I16_MAX:
            return Products("words")
        return Products("bytes", I16_MAX // max(1, pair))

    @property
    def operands(self) -> int:
        """Registers that a register of bytes becomes."""
        return 2 if self.kind == "words" else 1


@dataclass(frozen=True)
class Dot:
    """Emits the products for activations up to `a_highest` and weights of magnitude `w_highest`."""

    b: Builder
    a_highest: int
    w_highest: int
    w_signed: bool

    @cached_property
    def how(self) -> Products:
        return Products.of(self.b.isa, self.a_highest, self.w_highest)

    @property
    def _lanes(self) -> int:
        return min(PANEL, self.b.isa.lanes(32))

    @property
    def _register_bytes(self) -> int:
        return 4 * self._lanes

    def activations(self, quad: Value) -> tuple[Value, ...]:
        """Operands made of 4 activation bytes (i32)."""
        return self.pixels(self.b.splat(quad, self._lanes))

    def weights(self, quad: Value) -> list[tuple[Value, ...]]:
        """Operands made of the 64 bytes of a quad (vector<16xi32>), by register."""
        return [self._weight_operands(register) for register in self.split(quad)]

    def pixels(self, quads: Value) -> tuple[Value, ...]:
        """Operands made of a register of activations, each lane 4 bytes of a pixel of its own."""
        if self.how.kind != "words":
            return (self._bytes(quads),)
        words = self._words(quads)
        return (words & 0x00FF, words >> 8)

    def weight(self, quad: Value) -> tuple[Value, ...]:
        """Operands made of 4 weight bytes (i32) for all lanes."""
        return self._weight_operands(self.b.splat(quad, self._lanes))

    def _weight_operands(self, register: Value) -> tuple[Value, ...]:
        if self.how.kind != "words":
            return (self._bytes(register),)
        words = self._words(register)
        if self.w_signed:
            return ((words << 8).sar(8), words.sar(8))
        return (words & 0x00FF, words >> 8)

    def store_weights(self, operands: list[tuple[Value, ...]], target: Value, at: Value) -> None:
        """Store operands of a quad from byte `at` on, `how.operands` times 64 bytes."""
        for i, part in enumerate(part for register in operands for part in register):
            self.b.store_as(part, target, at + i * self._register_bytes)

    def load_weights(self, source: Value, at: Value) -> list[tuple[Value, ...]]:
        """What was stored."""
        b, parts, size = self.b, self.how.operands, self._register_bytes
        kind = vec(2 * self._lanes, "i16") if parts == 2 else vec(4 * self._lanes, "i8")
        return [
            tuple(b.load_as(source, at + (i * parts + p) * size, kind) for p in range(parts))
            for i in range(PANEL // self._lanes)
        ]

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
        if self.how.kind == "bytes":
            return self._widen(acc, self._pairs(a, w))
        for x, y in zip(a, w, strict=True):
            acc = acc + b.intrinsic(b.isa.madd_i16, acc.type, x, y)
        return b.opaque(acc)

    def accumulate_pairs(
        self, pairs: list[Value], a: tuple[Value, ...], w: list[tuple[Value, ...]]
    ) -> list[Value]:
        """Sums in 16 bits (none yet: empty) with products added, by register; of kind "bytes", at
        most `how.depth` times before they are widened."""
        products = [self._pairs(a, operands) for operands in w]
        if not pairs:
            return products
        return [total + product for total, product in zip(pairs, products, strict=True)]

    def widen(self, acc: list[Value], pairs: list[Value]) -> list[Value]:
        """Accumulators with sums of 16 bits added."""
        return [self._widen(x, some) for x, some in zip(acc, pairs, strict=True)]

    def _pairs(self, a: tuple[Value, ...], w: tuple[Value, ...]) -> Value:
        madd = self.b.isa.madd_u8i8
        assert madd is not None
        return self.b.intrinsic(madd, vec(2 * self._lanes, "i16"), a[0], w[0])

    def _widen(self, acc: Value, pairs: Value) -> Value:
        b = self.b
        wide = b.intrinsic(b.isa.madd_i16, acc.type, pairs, b.const(1, pairs.type))
        return b.opaque(acc + wide)

    def _bytes(self, value: Value) -> Value:
        return self.b.bitcast(value, vec(4 * value.lanes, "i8"))

    def _words(self, value: Value) -> Value:
        return self.b.bitcast(value, vec(2 * value.lanes, "i16"))
