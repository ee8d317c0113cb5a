"""Strategy `trellis`: trellis codes and quantized activations, exact.

The 16 channels of a panel are decoded to the stack, for all of K, as the bytes that strategy `int8`
multiplies; up to 48 rows share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...dialects.formats import QuantizedTensor, Scheme
from ..builder import Value, vec
from ..isa import Isa
from ..strategy import MatmulSpec
from .int8 import ROW_VARIANTS, Int8Strategy
from .int8_kernels import Int8Body, Int8Kernel
from .int8_layout import QUAD, BitPart, unit_quads
from .panel_layout import PANEL, RowLayout, WeightLayout
from .panel_matmul import PanelBody, PanelKernel, Tile
from .panel_strategy import COLUMNS, MAX_ROTATED_K, activation_of
from .trellis_decode import Decoder, table_on_stack
from .trellis_layout import BYTE_BITS, StreamPlace, TrellisLayout

MAX_K = 1 << 16  # a megabyte of decoded bytes on the stack


@dataclass(frozen=True)
class TrellisKernel(Int8Kernel):
    def body(self, isa: Isa) -> type[PanelBody]:
        return TrellisBody

    def tile(self, isa: Isa) -> Tile:
        """One panel; several chains or rows hide the latency of products."""
        if self.block[0] == 1:
            return Tile(1, 1, chains=4 if isa.dot_u8i8 else 1)
        return Tile(8, 1) if isa.dot_u8i8 else super().tile(isa)


class TrellisBody(Int8Body):
    """Heads are in the blob, codes in `decoded`."""

    weight: TrellisLayout

    def emit(self, i: Value) -> None:
        b, layout = self.b, self.weight
        assert isinstance(layout, TrellisLayout)
        self.decoded = b.alloca(layout.decoded_bytes, "i8")
        table = table_on_stack(b)
        block_rows, block_columns = self.kernel.block
        across = (self.n + (block_columns - 1)) // block_columns
        first_row = i // across * block_rows
        self.last_row = b.min(first_row + block_rows, self.m)
        first = i % across * (block_columns // PANEL)
        all_panels = (self.n + (PANEL - 1)) // PANEL
        last = b.min(first + block_columns // PANEL, all_panels)
        with b.loop(first, last) as panels:
            place = StreamPlace.of(b, layout, panels.i, self.n)
            self._decode(Decoder(b, layout, self.w, place, table))
            with b.loop(first_row, self.last_row, self.tile.rows) as rows:
                self._tile(rows.i, panels.i, [panels.i * layout.panel_bytes])

    def _decode(self, decoder: Decoder) -> None:
        """All columns; what stands behind a segment's end meets activations of 0."""
        b, reduction = self.b, self.reduction

        def segment(segment: Value, begin: Value, terms: Value) -> None:
            target = segment * self.weight.segment_bytes
            with b.loop(0, terms, QUAD) as loop:
                values = decoder.quad(begin + loop.i)
                b.store_as(values, self.decoded, target + loop.i * PANEL)

        reduction.emit_segments(b, segment)

    def products(
        self, q_at: Sequence[Value], w_at: Sequence[Value], segment: Value, terms: Value
    ) -> list[list[Value]]:
        return super().products(q_at, [self.b.index(0)], segment, terms)

    def _load_unit(self, at: Value) -> dict[BitPart, list[Value]]:
        quads = range(unit_quads(BYTE_BITS))
        load = [
            self.b.load_as(self.decoded, at + quad * QUAD * PANEL, vec(PANEL, "i32"))
            for quad in quads
        ]
        return {BitPart(BYTE_BITS, 0): load}


class TrellisStrategy(Int8Strategy):
    """See the module."""

    name = "trellis"

    def unsupported(self, spec: MatmulSpec) -> str | None:
        if not spec.trellis:
            return "strategy 'trellis' takes trellis codes only"
        if spec.activation is None:
            return "strategy 'trellis' needs quantized activations"
        if spec.hadamard_block and spec.k > MAX_ROTATED_K:
            return f"rotating rows of more than {MAX_ROTATED_K} elements needs too much stack"
        if spec.k > MAX_K:
            return f"decoding more than {MAX_K} columns needs too much stack"
        return None

    def unit(self, weight: Scheme) -> int:
        return QUAD * unit_quads(BYTE_BITS)

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, QuantizedTensor), "trellis codes are quantized"
        return TrellisLayout.of(spec).pack(weight)

    def weight_layout(self, spec: MatmulSpec) -> TrellisLayout:
        return TrellisLayout.of(spec)

    def kernels(
        self, spec: MatmulSpec, weight: WeightLayout, row: RowLayout, accumulators: bool
    ) -> Sequence[tuple[int | None, PanelKernel]]:
        format = activation_of(spec).format
        highest = format.qmax - format.qmin
        return [
            (last, TrellisKernel(weight, row, (rows, COLUMNS), accumulators, highest))
            for last, rows in ROW_VARIANTS
        ]
