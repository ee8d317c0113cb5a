"""Products of strategy `int8`: bytes unpacked in registers, then VPDPBUSD or its like.

They are unpacked where they are multiplied, for each tile of rows anew; or, as the schedule may
say, to the stack, once for all rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Value, vec
from abqc.codegen.isa import Isa

from ..panels.layout import PANEL, VECTOR_BYTES
from ..panels.matmul import PanelBody, PanelKernel, split
from .dot import Dot
from .layout import QUAD, value_quads
from .units import load_unit, unit_quad

ONES = 0x01010101  # four activations of 1

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


class Int8Body(PanelBody):
    """See the module."""

    kernel: Int8Kernel

    @property
    def dot(self) -> Dot:
        value = self.weight.value
        return Dot(self.b, self.kernel.a_highest, value.highest, value.signed)

    def products(
        self, q_at: Sequence[Value], w_at: Sequence[Value], segment: Value, terms: Value
    ) -> list[list[Value]]:
        """sum of u * v over a segment, [row][panel]."""
        b, dot, unit = self.b, self.dot, self.reduction.unit
        codes_at = segment * self.row.segment_bytes + self.row.codes_offset
        q_at = [at + codes_at for at in q_at]
        registers = len(dot.zero())
        tile = self.product_rows * self.tile.panels
        carry = [x for _ in range(self.tile.chains * tile) for x in dot.zero()]
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
        offset = segment * self.weight.segment_bytes + unit * self.weight.unit_bytes
        b, value = self.b, self.weight.value
        units = [load_unit(b, self.w, at + offset, value) for at in w_at]
        for at in w_at:
            for line in range(0, self.weight.unit_bytes, VECTOR_BYTES):
                self.prefetch_next(at + (offset + line))
        return lambda panel, quad: unit_quad(b, units[panel], quad, value)

    def operands(self, w_at: Sequence[Value], segment: Value, unit: Value) -> Operands:
        """Those of products, of a unit of a segment."""
        quads, dot = self.quads(w_at, segment, unit), self.dot
        return lambda panel, quad: dot.weights(quads(panel, quad))

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
                if not self.weight.has_sums:
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
    """Unpacks the panels of a tile to the stack, all of K: quad by quad, panel beside panel."""

    def emit(self, i: Value) -> None:
        b = self.b
        size = self.reduction.padded_k * PANEL * self.tile.panels * self.dot.how.operands
        self.decoded = b.alloca(size, "i8")
        first_row, first_panel, last_panel, all_panels = self.block(i)
        with b.loop(first_panel, last_panel, self.tile.panels) as panels:
            w_at = self.panels_at(panels.i, all_panels)
            self._decode(w_at)
            with b.loop(first_row, self.last_row, self.tile.rows) as rows:
                self._tile(rows.i, panels.i, w_at)

    def _decode(self, w_at: Sequence[Value]) -> None:
        b, unit = self.b, self.reduction.unit

        def segment(segment: Value, begin: Value, terms: Value) -> None:
            with b.loop(0, (terms + (unit - 1)) // unit) as loop:
                operands = super(DecodedBody, self).operands(w_at, segment, loop.i)
                for quad in range(unit // QUAD):
                    for panel in range(self.tile.panels):
                        at = self._decoded_at(segment, loop.i, quad, panel)
                        self.dot.store_weights(operands(panel, quad), self.decoded, at)

        self.reduction.emit_segments(b, segment)

    def operands(self, w_at: Sequence[Value], segment: Value, unit: Value) -> Operands:
        dot = self.dot

        def load(panel: int, quad: int) -> list[tuple[Value, ...]]:
            at = self._decoded_at(segment, unit, quad, panel)
            return dot.load_weights(self.decoded, at)

        return load

    def _decoded_at(self, segment: Value, unit: Value, quad: int, panel: int) -> Value:
        reduction, panels = self.reduction, self.tile.panels
        begin = (segment * reduction.segment_pitch + unit * reduction.unit) * (PANEL * panels)
        return (begin + (quad * panels + panel) * VECTOR_BYTES) * self.dot.how.operands
