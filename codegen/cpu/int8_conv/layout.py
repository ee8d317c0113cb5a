"""The bytes that convolutions of codes work on: weights in panels, images as planes of quads.

A *block* are four input channels; a *quad* is a block at one tap of the window, four consecutive
terms of K. K runs over blocks, taps and the channels of a block, the last block filled up to four.

Weights. A panel of 16 output channels is one contiguous piece of the blob:

    codes    by unit, as strategy `int8` packs them (`int8/layout.py`)
    scales   [groups][16]    f16, f32, e8m0 or e4m3
    zeros    [16]            u8, asymmetric formats only
    tensor   f32             what e4m3 scales are multiplied with

Images. A sample is

    scale f32, zero i32, and from byte HEADER on [blocks][phases][rows][pitch] quads

of codes u = q + shift, which are unsigned, as is the zero point with the shift. Around the image,
and in channels that fill up a block, there is the zero point: whatever weight meets it adds
nothing. A phase holds every s-th row and column, where s are the strides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.codegen.align import align
from abqc.codegen.codes.bit_parts import StoredValue
from abqc.codegen.codes.stored_values import tensor_scale_bytes
from abqc.dialects.code_conv_spec import QUAD, CodeConvSpec
from abqc.dialects.formats import QuantizedTensor
from abqc.dialects.scale_types import SCALE_BYTES, StoredScale, stored_scales

from ..int8.layout import QUAD_CODES, pack_codes, stored_value, value_quads
from ..panels.layout import PANEL, VECTOR_BYTES, WeightLayout
from ..panels.reduction import Reduction

SCALE_AT, ZERO_AT = 0, 4  # in the header


@dataclass(frozen=True)
class ConvWeights:
    """Where the parts of a panel are, in bytes from its begin."""

    value: StoredValue
    symmetric: bool
    scale: StoredScale
    channels: int
    taps: int
    group_size: int  # of K as ONNX stores it, channels before taps

    @staticmethod
    def of(spec: CodeConvSpec) -> ConvWeights:
        return ConvWeights(
            stored_value(spec.weight.format),
            spec.weight.symmetric,
            spec.product.scale,
            spec.channels,
            spec.taps,
            min(spec.weight.group_size or spec.k, spec.k),
        )

    @property
    def k(self) -> int:
        return self.channels * self.taps

    @property
    def blocks(self) -> int:
        return -(-self.channels // QUAD)

    @property
    def quads(self) -> int:
        return self.blocks * self.taps

    @property
    def padded_quads(self) -> int:
        """In whole units."""
        return align(self.quads, value_quads(self.value))

    @property
    def groups(self) -> int:
        return -(-self.k // self.group_size)

    @property
    def cuts_blocks(self) -> bool:
        """Whether groups begin inside of blocks, whose weights then count for both."""
        return self.groups > 1 and self.group_size % (QUAD * self.taps) != 0

    @property
    def bytes_as_stored(self) -> bool:
        """Whether codes are bytes that products take as they are."""
        return self.value.bits == 8 and self.value.indexed is None

    @property
    def in_groups(self) -> int:
        """Quads of all groups, those of blocks that are cut in each."""
        if not self.cuts_blocks:
            return self.quads
        block = QUAD * self.taps
        total = 0
        for begin in range(0, self.k, self.group_size):
            end = min(begin + self.group_size, self.k)
            total += -(-end // block) - begin // block
        return total * self.taps

    @property
    def scales_offset(self) -> int:
        return self._codes.unit_bytes * (self.padded_quads // value_quads(self.value))

    @property
    def scale_bytes(self) -> int:
        """Of one group."""
        return PANEL * SCALE_BYTES[self.scale]

    @property
    def zeros_offset(self) -> int:
        return self.scales_offset + self.groups * self.scale_bytes

    @property
    def tensor_scale_offset(self) -> int:
        return self.zeros_offset + (0 if self.symmetric else PANEL)

    @property
    def panel_bytes(self) -> int:
        return align(self.tensor_scale_offset + tensor_scale_bytes(self.scale), VECTOR_BYTES)

    @property
    def unit_bytes(self) -> int:
        return self._codes.unit_bytes

    @property
    def _codes(self) -> WeightLayout:
        """What strategy `int8` packs: one group of all quads."""
        k = QUAD * self.padded_quads
        unit = QUAD * value_quads(self.value)
        return WeightLayout(self.value, self.symmetric, self.scale, Reduction(k, k, unit))

    def pack(self, weight: QuantizedTensor) -> np.ndarray:
        """All panels, one after another: uint8 of panels * panel_bytes."""
        n = len(weight.codes)
        panels = -(-n // PANEL)
        values = np.zeros((panels * PANEL, self.blocks * QUAD, self.taps), np.uint8)
        values[:n, : self.channels] = self.value.encode(weight.codes).reshape(n, -1, self.taps)
        quads = values.reshape(len(values), self.blocks, QUAD, self.taps).transpose(0, 1, 3, 2)
        padded = np.zeros((len(values), QUAD * self.padded_quads), np.uint8)
        padded[:, : QUAD * self.quads] = quads.reshape(len(values), -1)

        def by_panel(array: np.ndarray) -> np.ndarray:
            """What each channel has, [N, ...], as bytes of [panels, ..., 16]."""
            whole = np.zeros((len(values), array.shape[1]), array.dtype)
            whole[:n] = array
            turned = whole.reshape(panels, PANEL, -1).transpose(0, 2, 1)
            return np.ascontiguousarray(turned).reshape(panels, -1).view(np.uint8)

        pieces = [
            pack_codes(self._codes, padded.reshape(panels, PANEL, -1)),
            by_panel(stored_scales(weight.scale, self.scale, weight.tensor_scale)),
        ]
        if weight.zero is not None:
            pieces.append(by_panel(weight.zero))
        if tensor_scale_bytes(self.scale):
            whole = np.full((panels, 1), weight.tensor_scale, np.float32)
            pieces.append(whole.view(np.uint8))
        joined = np.concatenate(pieces, axis=1)
        blob = np.zeros((panels, self.panel_bytes), np.uint8)
        blob[:, : joined.shape[1]] = joined
        return blob.reshape(-1)


def scratch_bytes(layout: ConvWeights) -> int:
    """Of a panel's weights as bytes, on the stack."""
    decoded = 0 if layout.bytes_as_stored else layout.padded_quads
    cut = layout.in_groups if layout.cuts_blocks else 0
    return (decoded + cut) * QUAD_CODES
