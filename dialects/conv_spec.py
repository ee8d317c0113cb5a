"""What a convolution of images is to the kernels that compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

MANY_DEPTHWISE_TAPS = 64
BLOCKS = (8, 6, 4)  # of more than two channels


@dataclass(frozen=True)
class ConvSpec:
    """A convolution of images: `channels` [C] and `outputs` [N] of one group, and its window."""

    groups: int
    outputs: int
    channels: int
    window: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]

    @property
    def phases(self) -> int:
        return prod(self.strides)

    @property
    def depthwise(self) -> bool:
        """Whether a channel is all that is read for one, by a window that a kernel can spell out
        for some rows of outputs at a time."""
        return self.outputs == self.channels == 1 and prod(self.window) <= MANY_DEPTHWISE_TAPS

    @property
    def block(self) -> int:
        """Output channels of a register tile, the same for all instruction sets: with 8 of them
        accumulators fit 32 registers. Fewer where less is filled up so: the cost of a block is
        that of its channels, and about half a channel's for reading the image."""
        if self.outputs <= 2:
            return self.outputs
        return min(BLOCKS, key=lambda block: -(-self.outputs // block) * (block + 0.5))

    @property
    def blocks(self) -> int:
        """Of all groups."""
        return self.groups * -(-self.outputs // self.block)

    @property
    def name(self) -> str:
        """Of the kernel: what else there is are arguments."""

        def text(pair: Sequence[int]) -> str:
            return "x".join(map(str, pair))

        steps = f"s{text(self.strides)}_d{text(self.dilations)}"
        kind = "depthwise" if self.depthwise else f"n{self.block}"
        return f"direct_conv_{kind}_w{text(self.window)}_{steps}"

    @property
    def packed_size(self) -> int:
        return self.blocks * self.block * self.channels * prod(self.window)

    def pack_weight(self, weight: np.ndarray) -> NDArray[np.float32]:
        """[N, C, window] as kernels read it, f32 [blocks * C * taps * block]."""
        missing = -self.outputs % self.block
        split = weight.reshape(self.groups, self.outputs, self.channels, -1).astype(np.float32)
        padded = np.pad(split, ((0, 0), (0, missing), (0, 0), (0, 0)))
        blocks = padded.reshape(self.blocks, self.block, self.channels, -1)
        return np.ascontiguousarray(blocks.transpose(0, 2, 3, 1)).reshape(-1)
