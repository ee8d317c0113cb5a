"""How trellis codes (`dialects/trellis.py`) lie in memory: as they are, for kernels on CPUs.

    heads    for each 16 output channels: what `panels/layout.py` has behind the codes, their scales
    streams  by trellis panel and column: the bits of a column's symbols, 64-byte aligned
    16 bytes that kernels may read beyond the last stream

A column of a panel of `rows` channels takes rows * k / 8 bytes, a multiple of 2 k.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from abqc.codegen.align import align
from abqc.codegen.builder import Builder, Value
from abqc.codegen.codes.bit_parts import StoredValue
from abqc.codegen.codes.dense_units import unit_quads
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import trellis
from abqc.dialects.formats import QuantizedTensor
from abqc.dialects.trellis import PANEL_ROWS, ROW_MULTIPLE, Panels

from ..int8.layout import QUAD
from ..panels.layout import PANEL, VECTOR_BYTES, Index, WeightLayout
from ..panels.reduction import Reduction

READ_BEYOND = 16
HEAD_ALIGNMENT = 32
BYTE_BITS = 8  # of a decoded value

assert PANEL == ROW_MULTIPLE


@dataclass(frozen=True)
class TrellisLayout(WeightLayout):
    """Codes decode to panels of bytes as strategy `int8` has them; only heads are stored so."""

    rate: int

    @staticmethod
    def of(spec: MatmulSpec) -> TrellisLayout:
        assert spec.weight is not None and spec.trellis
        reduction = Reduction.of(spec.k, spec.weight, QUAD * unit_quads(BYTE_BITS))
        value = StoredValue(BYTE_BITS, 1, 0, True)
        return TrellisLayout(value, True, spec.scale, reduction, spec.weight.bits)

    @cached_property
    def block_groups(self) -> int:
        """None: the codes are not in panels."""
        return 0

    def scales_at(self, group: Index) -> Index:
        return group * self.scale_bytes

    @property
    def has_sums(self) -> bool:
        """Never: kernels add up what they decode."""
        return False

    @property
    def panel_bytes(self) -> int:
        """Of a head."""
        return align(self.scales_at(self.reduction.n_groups), HEAD_ALIGNMENT)

    @property
    def decoded_bytes(self) -> int:
        """Of the decoded panel of 16 channels."""
        return self.reduction.padded_k * PANEL

    @property
    def row_group_bytes(self) -> int:
        """Of 16 rows of a column."""
        return 2 * self.rate

    def pack(self, weight: QuantizedTensor) -> np.ndarray:
        """The blob, uint8."""
        heads = self._heads(weight)
        symbols = weight.symbols
        assert symbols is not None, "a trellis code has symbols"
        streams = [
            trellis.pack_symbols(np.ascontiguousarray(symbols[begin:end].T), self.rate).reshape(-1)
            for begin, end in Panels(len(weight.codes)).bounds()
        ]
        gap = np.zeros(align(heads.size, VECTOR_BYTES) - heads.size, np.uint8)
        return np.concatenate([heads, gap, *streams, np.zeros(READ_BEYOND, np.uint8)])

    def _heads(self, weight: QuantizedTensor) -> np.ndarray:
        """The scales, by 16 channels and group."""
        count = -(-len(weight.codes) // PANEL)
        scales = np.zeros((count * PANEL, weight.scale.shape[1]), np.float16)
        scales[: len(weight.scale)] = weight.scale
        by_panel = scales.reshape(count, PANEL, -1).transpose(0, 2, 1)
        flat = np.ascontiguousarray(by_panel).reshape(count, -1).view(np.uint8)
        heads = np.zeros((count, self.panel_bytes), np.uint8)
        heads[:, : flat.shape[1]] = flat
        return heads.reshape(-1)


@dataclass(frozen=True)
class StreamPlace:
    """Where the symbols of 16 channels are: column c has those at `first + c * pitch`, and the
    symbols behind them, around the panel's end, at `following + c * pitch`."""

    first: Value
    following: Value
    pitch: Value

    @staticmethod
    def of(b: Builder, layout: TrellisLayout, panel: Value, n: Value) -> StreamPlace:
        """Of the 16 channels from 16 `panel` on, of `n`: `trellis.Panels` at run time."""
        per_group = layout.row_group_bytes
        groups = (n + (PANEL - 1)) // PANEL
        count = (n + (PANEL_ROWS - 1)) // PANEL_ROWS
        whole = ((n + (count - 1)) // count + (PANEL - 1)) // PANEL  # groups of a panel
        trellis_panel, group = panel // whole, panel % whole
        here = b.min(groups - trellis_panel * whole, whole)
        heads = (groups * layout.panel_bytes + (VECTOR_BYTES - 1)) // VECTOR_BYTES * VECTOR_BYTES
        begin = heads + trellis_panel * whole * (per_group * layout.reduction.k)
        after = group + 1
        following = b.select(after < here, after, b.index(0))
        return StreamPlace(
            begin + group * per_group, begin + following * per_group, here * per_group
        )
