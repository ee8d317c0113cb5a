"""What a convolution of images in bf16 is to the kernels that compute it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from .bf16 import bf16_bits
from .conv_spec import ConvSpec

PAIR = 2  # channels of a pixel in 32 bits, the first one below
SLACK = 64  # pairs behind all planes, which kernels may read


@dataclass(frozen=True)
class Bf16ConvSpec(ConvSpec):
    """Images and weights are rounded to bf16, products exact, sums f32.

    Planes are of pairs of channels, i32; a group's last pair may have a zero. The zeros around an
    image, too, are those of an f32 convolution (docs/numerics.md, "Products in bf16").
    """

    @property
    def depthwise(self) -> bool:
        return False

    @property
    def winograd(self) -> bool:
        return False

    @property
    def few_channels(self) -> bool:
        return False

    @property
    def may_take_patches(self) -> bool:
        return False

    @property
    def pairs(self) -> int:
        """Of a group."""
        return -(-self.channels // PAIR)

    @property
    def name(self) -> str:
        kind, rest = "direct_conv_", super().name
        return f"{kind}bf16_{rest.removeprefix(kind)}"

    @property
    def packed_size(self) -> int:
        """Pairs of weights."""
        return self.blocks * self.block * self.pairs * prod(self.window)

    def pack_weight(self, weight: np.ndarray) -> NDArray[np.int32]:  # type: ignore[override]
        """[N, C, window] as the kernel reads it, i32 [blocks * pairs * taps * block]."""
        split = weight.reshape(self.groups, self.outputs, self.channels, -1)
        missing = -self.outputs % self.block, self.pairs * PAIR - self.channels
        bits = bf16_bits(split.astype(np.float32))
        padded = np.pad(bits, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
        blocks = padded.reshape(self.blocks, self.block, self.pairs, PAIR, -1)
        return np.ascontiguousarray(blocks.transpose(0, 2, 4, 1, 3)).view(np.int32).reshape(-1)
