"""Products of strategy `int8`: bytes unpacked in registers, then VPDPBUSD or its like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..builder import Value, vec
from ..isa import Isa
from .dot import Dot
from .int8_layout import QUAD, BitPart, bit_parts, unit_quads
from .panel_layout import PANEL
from .panel_matmul import PanelBody, PanelKernel, Tile, split


@dataclass(frozen=True)
class Int8Kernel(PanelKernel):
    """`rows` is the largest number of rows in a register tile."""

    rows: int
    a_highest: int

    def body(self, isa: Isa) -> type[PanelBody]:
        from .int8_staged import StagedBody, worth_staging

        return StagedBody if worth_staging(self) else Int8Body

    def tile(self, isa: Isa) -> Tile:
        """Accumulators, a quad of weights and an activation must fit the registers."""
        per_panel = PANEL // isa.lanes(32)
        if self.rows == 1:
            # Several panels are several streams of weights, which fetch better than one with
            # software prefetching (measured).
            return Tile(1, 4, chains=2) if per_panel == 1 else Tile(1, 2)
        panels = 4 if per_panel == 1 else 1
        operands = 2 if isa.dot_u8i8 is None else 1  # even and odd halves
        free = isa.registers - operands * (panels * per_panel + 1) - 2
        return Tile(max(1, min(self.rows, free // (panels * per_panel))), panels)


class Int8Body(PanelBody):
    """Unpacks weights in registers for each tile."""

    kernel: Int8Kernel

    @property
    def dot(self) -> Dot:
        value = self.weight.value
        return Dot(self.b, self.kernel.a_highest, value.highest, value.signed)

    def products(
        self, q_at: Sequence[Value], w_at: Sequence[Value], segment: Value, terms: Value
    ) -> list[list[Value]]:
        """sum of u * v over a segment, [row][panel]."""
        unit, dot = self.reduction.unit, self.dot
        codes_at = segment * self.row.segment_bytes + self.row.codes_offset
        q_at = [at + codes_at for at in q_at]
        w_at = [at + segment * self.weight.segment_bytes for at in w_at]
        tile = self.tile.rows * self.tile.panels
        start = [dot.zero() for _ in range(tile * self.tile.chains)]

        def quads(u: Value) -> list[list[Value]]:
            at = [at + u * self.weight.unit_bytes for at in w_at]
            return [self.unpack(self.w, x) for x in at]

        acc = self.multiply(start, (terms + (unit - 1)) // unit, q_at, quads)
        tiles = [acc[i : i + tile] for i in range(0, len(acc), tile)]
        sums = [dot.join(dot.add(chain)) for chain in zip(*tiles, strict=True)]
        return split(sums, self.tile.panels)

    def multiply(
        self,
        start: list[list[Value]],
        units: Value,
        q_at: Sequence[Value],
        quads: Callable[[Value], list[list[Value]]],
    ) -> list[list[Value]]:
        """`start` plus the products of so many units; registers [chain, row, panel][register].

        `quads(unit)` gives the unit's quads of bytes, [panel][quad]; `q_at` is where codes begin.
        """
        b, dot, tile = self.b, self.dot, self.tile
        registers = len(start[0])
        with b.loop(0, units, carry=[x for acc in start for x in acc]) as loop:
            acc = split(loop.args, registers)
            weights = quads(loop.i)
            for quad in range(unit_quads(self.weight.value.bits)):
                operands = [dot.weights(weights[c][quad]) for c in range(tile.panels)]
                first = (quad % tile.chains) * tile.rows * tile.panels
                for r in range(tile.rows):
                    at = q_at[r] + (loop.i * self.reduction.unit + quad * QUAD)
                    a = dot.activations(b.load_as(self.q, at, "i32"))
                    for c in range(tile.panels):
                        x = first + r * tile.panels + c
                        acc[x] = dot.accumulate(acc[x], a, operands[c])
            loop.carry(*(x for registers in acc for x in registers))
        return split(loop.results, registers)

    def unpack(self, source: Value, at: Value) -> list[Value]:
        """The quads of the unit at byte `at` as bytes, vector<16xi32> each."""
        vectors = self._load_unit(source, at)
        return [self._quad(vectors, quad) for quad in range(unit_quads(self.weight.value.bits))]

    def _load_unit(self, source: Value, at: Value) -> dict[BitPart, list[Value]]:
        """The vectors of a unit, by part."""
        b, offset = self.b, 0
        vectors: dict[BitPart, list[Value]] = {}
        for part in bit_parts(self.weight.value.bits):
            count = unit_quads(self.weight.value.bits) // part.quads
            vectors[part] = []
            for _ in range(count):
                vectors[part].append(b.load_as(source, at + offset, vec(PANEL, "i32")))
                offset += PANEL * QUAD
        return vectors

    def _quad(self, vectors: dict[BitPart, list[Value]], quad: int) -> Value:
        """The values of a quad as bytes, vector<16xi32>."""
        values = None
        for part, loaded in vectors.items():
            bits = _move_bits(loaded[quad // part.quads], part, quad % part.quads)
            values = bits if values is None else values | bits
        assert values is not None
        return values


def _move_bits(vector: Value, part: BitPart, slot: int) -> Value:
    """The bits of quad `slot` of a part's vector, moved to where they stand in the value."""
    if part.bits == 8:
        return vector
    distance = slot * part.bits - part.shift
    moved = vector >> distance if distance > 0 else vector << -distance if distance < 0 else vector
    return moved & (((1 << part.bits) - 1) << part.shift) * 0x01010101
