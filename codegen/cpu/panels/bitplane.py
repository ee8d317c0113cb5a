"""Strategy `bitplane`: codes as planes of bits, products by AND and population count.

    sum of u * v = sum over planes i, j of 2^(i + j) * popcount(u_i & v_j)

for unsigned codes u of activations and v of weights; offsets and zero points are settled by sums,
as in the other strategies. The cost grows with the product of the widths. Exact for every width up
to 8 bits, every group size (padded to 64) and ragged M, N and K.

Weights of a panel: for each 64 elements of K, for each plane, 16 words of 64 bits, one a channel.
Activations of a row: for each 64 elements of K, one word for each plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.codes.bit_parts import StoredValue
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import NumberFormat, Scheme

from ..packing.quantize_row import LANES, RowCodes, RowScale
from ..schedule import CpuSchedule, KernelSchedule, RowRange
from .bitplane_schedules import HALF, HALVES, Tiles
from .layout import PANEL, RowLayout, WeightLayout
from .matmul import PanelBody, PanelKernel, split
from .strategy import PanelRows, PanelStrategy, activation_of

WORD = 64  # elements of K in one word


def activation_planes(format: NumberFormat) -> tuple[int, ...]:
    """The bits of the unsigned code u = q + shift that vary; binary codes are 0 and 2."""
    return (1,) if format.kind == "binary" else tuple(range(format.bits))


@dataclass(frozen=True)
class PlaneRows(PanelRows):
    """A code is a bit in each plane."""

    planes: tuple[int, ...]

    def write_segment(
        self,
        b: Builder,
        codes: RowCodes,
        row: RowScale,
        q: Value,
        target: Value,
        begin: Value,
        terms: Value,
    ) -> Value:
        start = [b.const(0, vec(LANES, "i32"))]
        full = terms - terms % WORD
        step = 8 * len(self.planes)

        def word(i: Value, total: Value, last: bool) -> Value:
            parts = []
            for lane in range(0, WORD, LANES):
                mask = b.mask(LANES, terms - (i + lane)) if last else None
                parts.append(codes.vector(begin + (i + lane), row, mask))
                total = total + parts[-1]
            joined = b.trunc(b.join(*parts), "i8")
            for number, plane in enumerate(self.planes):
                bits = (joined & (1 << plane)) != 0
                bits = b.extract(b.bitcast(bits, vec(1, "i64")), 0)
                b.store_as(bits, q, target + (i // WORD * step + 8 * number))
            return total

        with b.loop(0, full, WORD, carry=start) as loop:
            loop.carry(word(loop.i, loop.args[0], last=False))
        total = loop.results[0]
        if not self.layout.reduction.divides(WORD):
            with b.loop(full, terms, WORD, carry=[total]) as loop:
                loop.carry(word(loop.i, loop.args[0], last=True))
            total = loop.results[0]
        return b.reduce(total, "add")


class BitplaneStrategy(PanelStrategy):
    """See the module."""

    name = "bitplane"

    def unsupported(self, spec: MatmulSpec) -> str | None:
        if spec.weight is not None and spec.weight.format.in_digits:
            return f"strategy 'bitplane' stores planes, not digits as {spec.weight} asks for"
        if spec.weight is not None and spec.weight.format.indexed:
            return f"strategy 'bitplane' multiplies bits of integers, which {spec.weight} has not"
        return super().unsupported(spec)

    def unit(self, weight: Scheme) -> int:
        return WORD

    def code_bits(self, activation: NumberFormat) -> int:
        return len(activation_planes(activation))

    def stored_value(self, format: NumberFormat) -> StoredValue:
        return StoredValue.unsigned(format)

    def pack_codes(self, layout: WeightLayout, values: np.ndarray) -> np.ndarray:
        planes = np.arange(layout.value.bits, dtype=np.uint8)
        bits = (values[..., None] >> planes) & 1  # [panels, 16, padded K, planes]
        words = bits.reshape(len(values), PANEL, -1, WORD, len(planes)).transpose(0, 2, 4, 1, 3)
        return np.packbits(words, axis=-1, bitorder="little")

    def rows(self, layout: RowLayout, activation: NumberFormat) -> PanelRows:
        return PlaneRows(layout, activation_planes(activation))

    def schedules(self, spec: MatmulSpec, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
        planes = activation_planes(activation_of(spec).format)
        weight = self.weight_layout(spec)
        tiles = Tiles(weight, len(diagonals(planes, weight)), isa)
        return tiles.schedules(spec.n, rows)

    def kernel(
        self,
        spec: MatmulSpec,
        weight: WeightLayout,
        row: RowLayout,
        schedule: KernelSchedule,
        accumulators: bool,
    ) -> PanelKernel:
        planes = activation_planes(activation_of(spec).format)
        return BitplaneKernel(weight, row, schedule, accumulators, planes)


def diagonals(planes: Sequence[int], weight: WeightLayout) -> range:
    """All i + j of an activation's bit i and a weight's bit j."""
    return range(planes[0], planes[-1] + weight.value.bits)


@dataclass(frozen=True)
class BitplaneKernel(PanelKernel):
    """`planes` are the bits of activation codes, in the order of a row's words."""

    planes: tuple[int, ...]

    @property
    def diagonals(self) -> range:
        return diagonals(self.planes, self.weight)

    def body(self, isa: Isa) -> type[PanelBody]:
        return BitplaneBody


class BitplaneBody(PanelBody):
    """See the module."""

    kernel: BitplaneKernel

    def products(
        self, q_at: Sequence[Value], w_at: Sequence[Value], segment: Value, terms: Value
    ) -> list[list[Value]]:
        """sum of u * v over a segment, [row][panel]."""
        b = self.b
        codes_at = segment * self.row.segment_bytes + self.row.codes_offset
        q_at = [at + codes_at for at in q_at]
        w_at = [at + self.weight.codes_at(segment) for at in w_at]
        diagonals = len(self.kernel.diagonals)
        tiles = self.product_rows * self.tile.panels * HALVES
        carry = [b.const(0, vec(HALF, "i64"))] * (tiles * diagonals)
        with b.loop(0, (terms + (WORD - 1)) // WORD, carry=carry) as loop:
            acc = split(loop.args, diagonals)
            self._word(
                acc,
                [at + loop.i * (8 * len(self.kernel.planes)) for at in q_at],
                [at + loop.i * self.weight.unit_bytes for at in w_at],
            )
            loop.carry(*(x for counts in acc for x in counts))
        halves = [self._weigh(counts) for counts in split(loop.results, diagonals)]
        panels = [b.join(*pair) for pair in split(halves, HALVES)]
        rows = split(panels, self.tile.panels)
        if not self.weight.has_sums:  # of which the lowest plane counted as one of activations
            rows[-1] = [total >> self.kernel.planes[0] for total in rows[-1]]
        return rows

    def _word(self, acc: list[list[Value]], q_at: Sequence[Value], w_at: Sequence[Value]) -> None:
        """Add the counts of 64 elements to acc [(row, panel, half)][diagonal]."""
        b, planes = self.b, self.kernel.planes
        for c in range(self.tile.panels):
            for bit in range(self.weight.value.bits):
                for half in range(HALVES):
                    at = w_at[c] + (bit * PANEL + half * HALF) * 8
                    w = b.load_as(self.w, at, vec(HALF, "i64"))
                    self.prefetch_next(at)
                    for r in range(self.tile.rows):
                        counts = acc[(r * self.tile.panels + c) * HALVES + half]
                        for number, plane in enumerate(planes):
                            word = b.load_as(self.q, q_at[r] + 8 * number, "i64")
                            diagonal = plane + bit - planes[0]
                            both = b.splat(word, HALF) & w
                            counts[diagonal] = counts[diagonal] + b.popcount(both)
                    if not self.weight.has_sums:
                        counts = acc[(self.tile.rows * self.tile.panels + c) * HALVES + half]
                        counts[bit] = counts[bit] + b.popcount(w)

    def _weigh(self, counts: Sequence[Value]) -> Value:
        """sum of counts * 2^diagonal, vector<8xi32>."""
        total = None
        for count, diagonal in zip(counts, self.kernel.diagonals, strict=True):
            weighed = self.b.trunc(count, "i32") << diagonal
            total = weighed if total is None else total + weighed
        assert total is not None
        return total
