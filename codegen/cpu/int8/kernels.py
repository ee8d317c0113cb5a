"""Products of strategy `int8`: bytes unpacked in registers, then VPDPBUSD or its like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Value
from abqc.codegen.isa import Isa

from ..panels.layout import PANEL, VECTOR_BYTES
from ..panels.matmul import PanelBody, PanelKernel, Tile, split
from .dot import Dot
from .layout import QUAD, value_quads
from .units import load_unit, unit_quad

ONES = 0x01010101  # four activations of 1

Quads = Callable[[int, int], Value]  # (panel, quad) -> vector<16xi32> of its bytes


@dataclass(frozen=True)
class Int8Kernel(PanelKernel):
    """`a_highest` is the largest activation code u."""

    a_highest: int

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"dot"})

    def body(self, isa: Isa) -> type[PanelBody]:
        return Int8Body

    def tile(self, isa: Isa) -> Tile:
        """Accumulators, packed and unpacked weights and an activation must fit the registers.

        With 32 registers 4 x 4 accumulators leave room for a quad of 4 panels, packed and unpacked;
        larger tiles spill, and unpacking to memory first is slower (measured).
        """
        if isa.dot_u8i8 and isa.registers >= 32:
            # A single row takes its weights from several panels at once: several streams fetch
            # better than one (measured).
            return Tile(1, 4, chains=2) if self.block[0] == 1 else Tile(4, 4)
        if self.block[0] == 1:
            return Tile(1, 2)
        per_panel = PANEL // isa.lanes(32)
        operands = 1 if isa.dot_u8i8 else 2  # or even and odd halves of a quad
        free = isa.registers - operands * (per_panel + 1) - 2
        return Tile(max(1, min(4, free // per_panel)), 1)


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
            quads = self.quads(w_at, segment, loop.i)
            self._unit(acc, [at + loop.i * unit for at in q_at], quads)
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

    def _unit(self, acc: list[list[Value]], q_at: Sequence[Value], quads: Quads) -> None:
        """Add the products of one unit to `acc`, [chain, row, panel][register]."""
        b, dot, tile = self.b, self.dot, self.tile
        for quad in range(value_quads(self.weight.value)):
            weights = [dot.weights(quads(c, quad)) for c in range(tile.panels)]
            first = (quad % tile.chains) * self.product_rows * tile.panels
            codes = [b.load_as(self.q, at + quad * QUAD, "i32") for at in q_at]
            if not self.weight.has_sums:
                codes.append(b.const(ONES, "i32"))
            for r, four in enumerate(codes):
                a = dot.activations(four)
                for c in range(tile.panels):
                    x = first + r * tile.panels + c
                    acc[x] = dot.accumulate(acc[x], a, weights[c])
