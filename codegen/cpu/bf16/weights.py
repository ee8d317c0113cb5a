"""Weights of floats as kernels in bf16 read them: panels of 16 channels, pairs along K.

    [ceil(N / 16)][steps of 32 k][16 pairs][16 channels][2]    bf16, filled up with zeros

16 pairs are a tile register of B, one is the operand of VDPBF16PS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.codegen.align import align
from abqc.codegen.builder import Builder, Value, vec
from abqc.dialects.bf16 import bf16_bits

from ..float_products.schedules import PREFETCH_BYTES
from ..float_products.tile import PANEL
from .dot import PAIR
from .rows import STEP, VALUE_BYTES

PAIR_BYTES = PANEL * PAIR * VALUE_BYTES


def pack_bf16(weight: np.ndarray) -> np.ndarray:
    """[N, K] of floats as panels, bytes."""
    n, k = weight.shape
    panels = Bf16Panels(align(k, STEP))
    count = -(-n // PANEL)
    padded = np.zeros((count * PANEL, panels.padded_k), np.uint16)
    for first in range(0, n, PANEL):  # little memory beside the weight
        piece = weight[first : first + PANEL]
        padded[first : first + len(piece), :k] = bf16_bits(piece.astype(np.float32))
    pairs = padded.reshape(count, PANEL, panels.padded_k // PAIR, PAIR).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(pairs).reshape(-1).view(np.uint8)


@dataclass(frozen=True)
class Bf16Panels:
    """The packed weight; K is a multiple of 32."""

    padded_k: int

    @property
    def panel_bytes(self) -> int:
        return self.padded_k // PAIR * PAIR_BYTES

    def pairs(self, b: Builder, w: Value, panel: Value, at: Value | int) -> Value:
        """Pair `at` of a panel's channels, vector<16xi32>."""
        return b.load_as(w, self.byte(panel, at), vec(PANEL, "i32"))

    def prefetch(self, b: Builder, w: Value, panel: Value, at: Value, steps: int) -> None:
        """What a loop that is at pair `at` needs soon."""
        if steps:
            b.prefetch(w, self.byte(panel, at) + steps * PREFETCH_BYTES)

    def byte(self, panel: Value, at: Value | int) -> Value:
        """Where pair `at` of a panel is."""
        return panel * self.panel_bytes + at * PAIR_BYTES
