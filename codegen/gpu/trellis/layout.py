"""How trellis codes (`dialects/trellis.py`) lie in a GPU's memory.

    table    i8 [128]: the values that hashes of states are indices of
    scales   f16 [groups][padded n]
    streams  by trellis panel and column: the bits of a column's symbols

`padded n` and panels are those of `trellis.Panels`; a column of a panel of `rows` channels takes
rows * k / 8 bytes. Sums of codes, for zero points, are made while decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.codegen.builder import Value
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import trellis
from abqc.dialects.formats import QuantizedTensor
from abqc.dialects.trellis import PANEL_ROWS, ROW_MULTIPLE, TABLE_SIZE, Panels

from ..builder import GpuBuilder
from ..packing.layout import GroupedK

SCALE_BYTES = 2


@dataclass(frozen=True)
class TrellisLayout:
    """`n` is an argument: kernels are made for any."""

    rate: int
    grouped: GroupedK

    @staticmethod
    def of(spec: MatmulSpec) -> TrellisLayout:
        assert spec.weight is not None and spec.trellis
        return TrellisLayout(spec.weight.bits, GroupedK.of(spec.weight, spec.k))

    def pack(self, weight: QuantizedTensor) -> np.ndarray:
        """The blob, uint8."""
        symbols, panels = weight.symbols, Panels(len(weight.codes))
        assert symbols is not None, "a trellis code has symbols"
        scales = np.zeros((self.grouped.groups, panels.padded_n), np.float16)
        scales[:, : panels.n] = weight.scale.T
        streams = [
            trellis.pack_symbols(np.ascontiguousarray(symbols[begin:end].T), self.rate).reshape(-1)
            for begin, end in panels.bounds()
        ]
        head = [trellis.table().view(np.uint8), scales.reshape(-1).view(np.uint8)]
        return np.concatenate([*head, *streams])

    def nbytes(self, n: int) -> int:
        padded = Panels(n).padded_n
        scales = SCALE_BYTES * self.grouped.groups * padded
        return TABLE_SIZE + scales + padded * self.grouped.k * self.rate // 8


@dataclass(frozen=True)
class Channel:
    """The symbols of one output channel: the stream of column c begins at `stream` + c * `pitch`
    (bytes), the channel's window at bit `bit` of it, and goes on at its begin."""

    b: GpuBuilder
    layout: TrellisLayout
    stream: Value
    pitch: Value
    bit: Value
    scales: Value
    scale_pitch: Value

    @staticmethod
    def of(b: GpuBuilder, layout: TrellisLayout, w: Value, n: Value, channel: Value) -> Channel:
        """Of `channel` (i32, below `n`) of a weight at `w`: `trellis.Panels` at run time."""
        count = b.ceil_div(n, PANEL_ROWS)
        rows = b.ceil_div((n + (count - 1)) // count, ROW_MULTIPLE) * ROW_MULTIPLE
        padded = b.ceil_div(n, ROW_MULTIPLE) * ROW_MULTIPLE
        panel, row = channel // rows, channel % rows
        here = b.min(padded - panel * rows, rows)
        scales_bytes = b.wide(padded) * (SCALE_BYTES * layout.grouped.groups)
        streams = b.at(b.at(w, TABLE_SIZE), scales_bytes)
        bits_before = b.wide(panel * rows) * (layout.grouped.k * layout.rate)
        return Channel(
            b,
            layout,
            b.at(streams, bits_before // 8),
            here * layout.rate // 8,
            row * layout.rate,
            b.at(b.at(w, TABLE_SIZE), channel * SCALE_BYTES),
            padded * SCALE_BYTES,
        )

    def scale(self, group: Value) -> Value:
        """f32."""
        at = wide_product(self.b, group, self.scale_pitch)
        return self.b.extend(self.b.load(self.scales, "f16", at, cache="nc"))

    def index(self, column: Value) -> Value:
        """The index into the table for a column, i32."""
        b = self.b
        stream = b.at(self.stream, wide_product(b, column, self.pitch))
        window = b.const(0, "i32")
        for byte in range(3):
            at = self.bit // 8 + byte
            at = b.select(at < self.pitch, at, at - self.pitch)
            window = window | (b.zext(b.load(stream, "i8", at, cache="nc"), "i32") << (8 * byte))
        product = (window >> (self.bit % 8)) * (8 * trellis.MULTIPLIER)
        return (product >> 8) & (TABLE_SIZE - 1)


def wide_product(b: GpuBuilder, x: Value, y: Value) -> Value:
    """x * y of non-negative i32, as i64."""
    return b.wide(x) * b.wide(y)
