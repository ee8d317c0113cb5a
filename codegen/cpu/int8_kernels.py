"""Products of strategy `int8`: bytes unpacked in registers, then VPDPBUSD or its like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..builder import Value, vec
from ..isa import Isa
from .dot import Dot
from .int8_layout import QUAD, BitPart, bit_parts, unit_quads
from .panel_layout import PANEL
from .panel_matmul import PanelBody, PanelKernel, Tile, split

PREFETCH_BYTES = 4096  # how far a single row's kernel fetches ahead in the weights


@dataclass(frozen=True)
class Int8Kernel(PanelKernel):
    """`rows` is the largest number of rows in a register tile."""

    rows: int
    a_highest: int

    def body(self, isa: Isa) -> type[PanelBody]:
        return Int8Body

    def tile(self, isa: Isa) -> Tile:
        """Accumulators, a quad of weights and an activation must fit the registers."""
        if self.rows == 1:
            return Tile(1, 1, chains=4, prefetch=True)
        per_panel = PANEL // isa.lanes(32)
        panels = 4 if per_panel == 1 else 1
        operands = 2 if isa.dot_u8i8 is None else 1  # even and odd halves
        free = isa.registers - operands * (panels * per_panel + 1) - 2
        return Tile(max(1, min(self.rows, free // (panels * per_panel))), panels)


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
        q_at = [
            at + (segment * self.reduction.segment_pitch + self.row.codes_offset) for at in q_at
        ]
        w_at = [at + segment * self.weight.segment_bytes for at in w_at]
        units = (terms + (unit - 1)) // unit
        registers = len(dot.zero())
        tile = self.tile.rows * self.tile.panels
        carry = [x for _ in range(self.tile.chains * tile) for x in dot.zero()]
        with b.loop(0, units, carry=carry) as loop:
            acc = split(loop.args, registers)
            self._unit(
                acc,
                [at + loop.i * unit for at in q_at],
                [at + loop.i * self.weight.unit_bytes for at in w_at],
            )
            loop.carry(*(x for registers in acc for x in registers))
        acc = split(loop.results, registers)
        sums = []
        for t in range(tile):
            chains = acc[t::tile]
            total = chains[0]
            for chain in chains[1:]:
                total = [x + y for x, y in zip(total, chain, strict=True)]
            sums.append(dot.join(total))
        return split(sums, self.tile.panels)

    def _unit(self, acc: list[list[Value]], q_at: Sequence[Value], w_at: Sequence[Value]) -> None:
        """Add the products of one unit to `acc`, [chain * tile + row * panels + panel]."""
        b, dot, tile = self.b, self.dot, self.tile
        vectors = [self._load_unit(at) for at in w_at]
        for quad in range(unit_quads(self.weight.value.bits)):
            weights = [dot.weights(self._unpack(vectors[c], quad)) for c in range(tile.panels)]
            first = (quad % tile.chains) * tile.rows * tile.panels
            for r in range(tile.rows):
                a = dot.activations(b.load_as(self.q, q_at[r] + quad * QUAD, "i32"))
                for c in range(tile.panels):
                    x = first + r * tile.panels + c
                    acc[x] = dot.accumulate(acc[x], a, weights[c])

    def _load_unit(self, at: Value) -> dict[BitPart, list[Value]]:
        """The vectors of a unit, by part."""
        b, offset = self.b, 0
        vectors: dict[BitPart, list[Value]] = {}
        for part in bit_parts(self.weight.value.bits):
            count = unit_quads(self.weight.value.bits) // part.quads
            vectors[part] = []
            for _ in range(count):
                if self.tile.prefetch:
                    b.prefetch(self.w, at + (offset + PREFETCH_BYTES))
                vectors[part].append(b.load_as(self.w, at + offset, vec(PANEL, "i32")))
                offset += PANEL * QUAD
        return vectors

    def _unpack(self, vectors: dict[BitPart, list[Value]], quad: int) -> Value:
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
