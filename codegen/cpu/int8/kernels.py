"""Products of strategy `int8`: bytes unpacked in registers, then VPDPBUSD or its like.

They are unpacked where they are multiplied, for each tile of rows anew; or, as the schedule may
say, to the stack, once for all rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from abqc.codegen.builder import Value, vec
from abqc.codegen.isa import Isa

from ..panels.layout import PANEL, VECTOR_BYTES
from ..panels.matmul import PanelBody, PanelKernel, Segment, Tile, split
from .dot import Dot
from .layout import QUAD, value_quads
from .units import load_unit, unit_quad
from .words import fits_words, word_products

ONES = 0x01010101  # four activations of 1
DOT_ROWS = {False: 4, True: 6}  # of a tile by whether weights are decoded once
SUM_BYTES = 4 * PANEL  # of the sums of a panel's weights over a segment

Quads = Callable[[int, int], Value]  # (panel, quad) -> vector<16xi32> of its bytes
Operands = Callable[[int, int], list[tuple[Value, ...]]]  # likewise, by register


@dataclass(frozen=True)
class Int8Kernel(PanelKernel):
    """`a_highest` is the largest activation code u."""

    a_highest: int

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"dot"})

    def body(self, isa: Isa) -> type[PanelBody]:
        return DecodedBody if self.schedule.on(isa).decode_once else Int8Body

    def tile(self, isa: Isa) -> Tile:
        """The schedule's. With VPDPBUSD and 16 registers that is AVX2's, whose products need
        registers for their parts: here these hold more rows, as it takes ten accumulators to hide
        the latency (5 cycles, two begin in each)."""
        tile = super().tile(isa)
        if tile.rows == 1 or not isa.dot_u8i8 or isa.registers >= 32:
            return tile
        return replace(tile, rows=DOT_ROWS[self.schedule.on(isa).decode_once], panels=1)


class Int8Body(PanelBody):
    """See the module."""

    kernel: Int8Kernel

    @property
    def dot(self) -> Dot:
        value = self.weight.value
        return Dot(self.b, self.kernel.a_highest, value.highest, value.signed)

    def _products_of(self, at: Segment) -> list[list[Value]]:
        """Accumulators begin with what takes offsets and zero points out, where that is a product
        of words that are known before (`words.py`)."""
        weight = self.weight
        if not weight.has_sums or weight.value.mul != 1 or not fits_words(weight, self.row):
            return super()._products_of(at)
        start = self._corrections([self._stored_sums(w, at.number) for w in at.w_at], at)
        return self.products(at.q_at, at.w_at, at.number, at.terms, start)

    def products(
        self,
        q_at: Sequence[Value],
        w_at: Sequence[Value],
        segment: Value,
        terms: Value,
        start: list[list[Value]] | None = None,
    ) -> list[list[Value]]:
        """start + sum of u * v over a segment, [row][panel]."""
        b, dot, unit = self.b, self.dot, self.reduction.unit
        codes_at = segment * self.row.segment_bytes + self.row.codes_offset
        q_at = [at + codes_at for at in q_at]
        registers = len(dot.zero())
        tile = self.product_rows * self.tile.panels
        begin = [dot.zero()] * tile if start is None else [dot.split(x) for r in start for x in r]
        begin = begin + [dot.zero()] * ((self.tile.chains - 1) * tile)
        carry = [x for registers in begin for x in registers]
        with b.loop(0, (terms + (unit - 1)) // unit, carry=carry) as loop:
            acc = split(loop.args, registers)
            weights = self.operands(w_at, segment, loop.i)
            self._unit(acc, [at + loop.i * unit for at in q_at], weights)
            loop.carry(*(x for registers in acc for x in registers))
        chains = split(split(loop.results, registers), tile)
        sums = [dot.join(dot.add(parts)) for parts in zip(*chains, strict=True)]
        return split(sums, self.tile.panels)

    def quads(self, w_at: Sequence[Value], segment: Value, unit: Value) -> Quads:
        """The weights of a unit of a segment, for each panel."""
        weight = self.weight
        offset = weight.codes_at(segment) + unit * weight.unit_bytes
        b, value = self.b, weight.value
        units = [load_unit(b, self.w, at + offset, value) for at in w_at]
        for at in w_at:
            for line in range(0, self.weight.unit_bytes, VECTOR_BYTES):
                self.prefetch_next(at + (offset + line))
        return lambda panel, quad: unit_quad(b, units[panel], quad, value)

    def operands(self, w_at: Sequence[Value], segment: Value, unit: Value) -> Operands:
        """Those of products, of a unit of a segment."""
        quads, dot = self.quads(w_at, segment, unit), self.dot
        return lambda panel, quad: dot.weights(quads(panel, quad))

    def _centre_tile(
        self, products: list[list[Value]], sums: list[Value], at: Segment
    ) -> list[list[Value]]:
        """By products of words, where they fit (`words.py`)."""
        if not fits_words(self.weight, self.row):
            return super()._centre_tile(products, sums, at)
        corrections = self._corrections(
            sums or [self._stored_sums(w, at.number) for w in at.w_at], at
        )
        doubled = self.weight.value.mul == 2
        return [
            [(p + p if doubled else p) + x for p, x in zip(*row, strict=True)]
            for row in zip(products, corrections, strict=True)
        ]

    def _corrections(self, sums: list[Value], at: Segment) -> list[list[Value]]:
        """What takes offsets and zero points out of a tile's products, by words."""
        b, layout, value = self.b, self.weight, self.weight.value
        offset = not layout.symmetric or value.offset != 0
        weights = []
        for c, w in enumerate(at.w_at):
            words = sums[c] & 0xFFFF
            if layout.symmetric:
                words = words | (value.offset << 16)
            else:
                words = words | ((self._zeros(w, at.group) + value.offset) << 16)
            weights.append(words)
        rows = []
        for q in at.q_at:
            zero = b.load_as(self.q, q + self.row.zero_offset, "i32")
            words = zero * -value.mul & 0xFFFF
            if offset:
                row_sum = b.load_as(self.q, q + (at.number * 4 + self.row.sums_offset), "i32")
                words = words + ((b.from_index(at.terms, "i32") * zero) << 16) - (row_sum << 16)
            rows.append(words)
        return [[word_products(b, row, each) for each in weights] for row in rows]

    def _unit(self, acc: list[list[Value]], q_at: Sequence[Value], operands: Operands) -> None:
        """Add the products of one unit to `acc`, [chain, row, panel][register]."""
        b, dot, panels = self.b, self.dot, self.tile.panels
        quads, size = value_quads(self.weight.value), self.product_rows * panels
        depth = min(dot.how.depth, quads)
        for begin in range(0, quads, depth):
            first = begin // depth % self.tile.chains * size
            pairs: list[list[Value]] = [[] for _ in range(size)]
            for quad in range(begin, min(begin + depth, quads)):
                weights = [operands(c, quad) for c in range(panels)]
                codes = [b.load_as(self.q, at + quad * QUAD, "i32") for at in q_at]
                if self.product_rows > self.tile.rows:
                    codes.append(b.const(ONES, "i32"))
                for r, four in enumerate(codes):
                    a = dot.activations(four)
                    for c in range(panels):
                        x = r * panels + c
                        if depth > 1:
                            pairs[x] = dot.accumulate_pairs(pairs[x], a, weights[c])
                        else:
                            acc[first + x] = dot.accumulate(acc[first + x], a, weights[c])
            if depth > 1:
                for x, sums in enumerate(pairs):
                    acc[first + x] = dot.widen(acc[first + x], sums)


class DecodedBody(Int8Body):
    """Unpacks the panels of a tile to the stack, all of K: quad by quad, panel beside panel. Sums
    that are not stored are made on the way."""

    def emit(self, i: Value) -> None:
        b, panels = self.b, self.tile.panels
        size = self.reduction.padded_k * PANEL * panels * self.dot.how.operands
        self.decoded = b.alloca(size, "i8")
        if not self.weight.has_sums:
            self.sums = b.alloca(self.reduction.n_segments * panels * SUM_BYTES, "i8")
        first_row, first_panel, last_panel, all_panels = self.block(i)
        with b.loop(first_panel, last_panel, panels) as columns:
            w_at = self.panels_at(columns.i, all_panels)
            self._decode(w_at)
            with b.loop(first_row, self.last_row, self.tile.rows) as rows:
                self._tile(rows.i, columns.i, w_at)

    @property
    def product_rows(self) -> int:
        return self.tile.rows

    def products(
        self,
        q_at: Sequence[Value],
        w_at: Sequence[Value],
        segment: Value,
        terms: Value,
        start: list[list[Value]] | None = None,
    ) -> list[list[Value]]:
        products = super().products(q_at, w_at, segment, terms, start)
        if self.weight.has_sums:
            return products
        sums = [
            self.b.load_as(self.sums, self._sums_at(segment, panel), vec(PANEL, "i32"))
            for panel in range(self.tile.panels)
        ]
        return [*products, sums]

    def _decode(self, w_at: Sequence[Value]) -> None:
        b, dot, unit = self.b, self.dot, self.reduction.unit
        summed = 0 if self.weight.has_sums else self.tile.panels
        ones = dot.activations(b.const(ONES, "i32"))

        def segment(segment: Value, begin: Value, terms: Value) -> None:
            carry = [x for _ in range(summed) for x in dot.zero()]
            with b.loop(0, (terms + (unit - 1)) // unit, carry=carry) as loop:
                operands = super(DecodedBody, self).operands(w_at, segment, loop.i)
                sums = split(loop.args, len(dot.zero()))
                for quad in range(unit // QUAD):
                    for panel in range(self.tile.panels):
                        weights = operands(panel, quad)
                        at = self._decoded_at(segment, loop.i, quad, panel)
                        dot.store_weights(weights, self.decoded, at)
                        if summed:
                            sums[panel] = dot.accumulate(sums[panel], ones, weights)
                loop.carry(*(x for registers in sums for x in registers))
            for panel, registers in enumerate(split(loop.results, len(dot.zero()))):
                b.store_as(dot.join(registers), self.sums, self._sums_at(segment, panel))

        self.reduction.emit_segments(b, segment)

    def operands(self, w_at: Sequence[Value], segment: Value, unit: Value) -> Operands:
        dot = self.dot
        return lambda panel, quad: dot.load_weights(
            self.decoded, self._decoded_at(segment, unit, quad, panel)
        )

    def _decoded_at(self, segment: Value, unit: Value, quad: int, panel: int) -> Value:
        reduction, panels = self.reduction, self.tile.panels
        begin = (segment * reduction.segment_pitch + unit * reduction.unit) * (PANEL * panels)
        return (begin + (quad * panels + panel) * VECTOR_BYTES) * self.dot.how.operands

    def _sums_at(self, segment: Value, panel: int) -> Value:
        return (segment * self.tile.panels + panel) * SUM_BYTES
