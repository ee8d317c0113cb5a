"""What a convolution of images is to the kernels that compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

MANY_DEPTHWISE_TAPS = 64
MANY_DEPTHWISE_STEPS = 32  # from a window's first row or column to its last
MANY_DEPTHWISE_STRIDES = 8
FEW_CHANNELS = 4  # from which all outputs are made
FEW_CHANNELS_STEPS = 16  # from a window's first row or column to its last
FEW_CHANNELS_STRIDES = 4
DEPTHWISE_CHANNELS = 16  # whose weights lie side by side
BLOCKS = (8, 6, 4)  # of more than two channels
FEW_PIXELS = 2  # behind the last whole vector, of windows of one tap; of 7 x 7 outputs one is

WINOGRAD_BLOCKS = (64, 48, 32, 16)
WINOGRAD_EDGE = 2  # outputs of a tile are 2 x 2,
LEAST_SHARE = 6  # tiles or outputs of a grid index: with four vectors of channels, full registers
WINOGRAD_PLACES = 16  # and inputs 4 x 4
WINOGRAD_MOST_CHANNELS = 512  # that are read; more would take more of the stack
PATCH_CHANNELS = 16  # of outputs, that a grid index with patches has at least
PATCH_OUTPUTS = 48  # of a grid index, at most
PATCH_FLOATS = 65536  # of its patches,
PATCH_LEAST_OUTPUTS = 12  # for so many of them at least
PATCH_COPY = 48  # of a vector of outputs and a term: as long as multiply-adds of so many floats
PATCH_LANES = 16  # of the vectors that small images do not fill
# The matrix G of F(2 x 2, 3 x 3): A. Lavin and S. Gray, 2016.
WINOGRAD_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


Size = Any  # an int or a value with the operators of one


@dataclass(frozen=True)
class ConvSpec:
    """A convolution of images: `channels` [C] and `outputs` [N] of one group, and its window."""

    groups: int
    outputs: int
    channels: int
    window: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int] = (0, 0)  # rows and columns of zeros, where it reads images
    weights_by_sample: bool = False  # each has its own; neither depthwise nor by Winograd

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns from a window's first to its last."""
        (height, width), (dy, dx) = self.window, self.dilations
        return (height - 1) * dy, (width - 1) * dx

    @property
    def phases(self) -> tuple[int, int]:
        """Of rows and of columns: how many of those that the strides cut an image into planes have.
        Without dilations, windows that are smaller than a stride read the first ones alone."""
        axes = zip(self.window, self.strides, self.dilations, strict=True)
        rows, columns = (min(w, stride) if step == 1 else stride for w, stride, step in axes)
        return rows, columns

    @property
    def depthwise(self) -> bool:
        """Whether a channel is all that is read for one, by a window that a kernel can spell out
        for some rows of outputs at a time."""
        near = max(self.reach) <= MANY_DEPTHWISE_STEPS
        near = near and max(self.strides) <= MANY_DEPTHWISE_STRIDES
        few = prod(self.window) <= MANY_DEPTHWISE_TAPS
        return self.outputs == self.channels == 1 and near and few

    @property
    def few_channels(self) -> bool:
        """Whether an index of the grid makes the planes that it reads itself, for all outputs: what
        a network begins with. Planes in memory take as long as a tenth of such a convolution; with
        strides of 1 images may be read as they are. Rows are what threads share: images of one row
        have planes."""
        few = self.groups == 1 and self.channels <= FEW_CHANNELS and not self.depthwise
        near = max(self.reach) <= FEW_CHANNELS_STEPS and max(self.strides) <= FEW_CHANNELS_STRIDES
        cut = self.phases == self.strides != (1, 1)
        return few and near and cut and self.window[0] > 1

    @property
    def reads_images(self) -> bool:
        """Whether the kernel puts zeros around images itself: it has no use for planes."""
        return self.depthwise or self.winograd or self.few_channels

    @property
    def winograd(self) -> bool:
        """Whether it is done by Winograd's F(2 x 2, 3 x 3), which takes 16 products for 36 and 16
        weights for 9, whatever the size of the image.

        It is, where products save what transforms cost: of a tile of 2 x 2 outputs, with C channels
        read, N written, and N' with those that fill the last block, they take as long as about
        N' C + 4 C + 7 N', the other kernel as long as 2.5 N C. Measured on one core of an AMD EPYC
        (Zen 4) with AVX-512, times as fast as the other kernel with its planes: 2.0 with 128 and
        256 channels in and out, 1.8 with 64, 1.6 with 512 at 7 x 7 outputs (weights come from
        memory), 1.5 with 32 and with 16, 1.2 with 12, 1.1 with 32 in and 18 out; not taken, 1.0
        with 12 in and 20 out, 0.9 with 8 out.
        """
        plain = self.strides == self.dilations == (1, 1) and self.groups == 1
        if not plain or self.window != (3, 3) or self.channels > WINOGRAD_MOST_CHANNELS:
            return False
        filled = -(-self.outputs // self.winograd_block) * self.winograd_block
        cost = self.channels * (filled + 4) + 7 * filled
        return 2 * cost <= 5 * self.outputs * self.channels

    @property
    def patch_outputs(self) -> int:
        """Outputs of a grid index with patches, at most."""
        return min(PATCH_OUTPUTS, PATCH_FLOATS // (self.channels * prod(self.window)))

    @property
    def may_take_patches(self) -> bool:
        """Whether there is a kernel with vectors of output channels (`patches_pay`)."""
        plain = self.groups == 1 and not self.weights_by_sample and not self.reads_images
        flat = self.window == self.strides == (1, 1)  # rows of outputs are one, which is long
        enough = self.block == BLOCKS[0] and self.outputs >= PATCH_CHANNELS
        return plain and not flat and enough and self.patch_outputs >= PATCH_LEAST_OUTPUTS

    def patches_pay(self, height: Size, width: Size, pitch: Size) -> Size:
        """Whether this kernel is the faster one for outputs of a height and width and planes with a
        pitch: what vectors across the ends of rows compute, against outputs of all vectors of
        channels and the copies of patches, a twentieth more. Sizes are above 0; all are numbers, or
        of a class with their operators.

        Measured on one core of an AMD EPYC (Zen 4) with AVX-512, times of the other kernel, with
        windows of 3 x 3 and strides of 2: 0.52 with 64 in and 128 out of 3 x 2 pixels, 0.95 with 32
        and 64 of 6 x 4, 0.82 with 256 and 512 of 7 x 7, 0.91 with 128 and 256 of 14 x 14; not
        taken, 1.02 with 16 and 32 of 12 x 8.
        """
        reach = (height - 1) * pitch + width
        beside = FEW_PIXELS if prod(self.window) == 1 else 0  # that take no vector
        vectors = (reach + (PATCH_LANES - 1 - beside)) // PATCH_LANES
        direct = vectors * (PATCH_LANES * self.blocks * self.block)
        filled = -(-self.outputs // PATCH_CHANNELS) * PATCH_CHANNELS
        copies = (width + (PATCH_LANES - 1)) // PATCH_LANES * PATCH_COPY
        return direct * 20 > height * (width * filled + copies) * 21

    @property
    def winograd_block(self) -> int:
        """Output channels of a block of Winograd's weights."""
        return min(WINOGRAD_BLOCKS, key=lambda block: -(-self.outputs // block) * block)

    @property
    def block(self) -> int:
        """Output channels of a register tile, the same for all instruction sets: with 8 of them
        accumulators fit 32 registers. Fewer where less is filled up so: the cost of a block is
        that of its channels, and about half a channel's for reading the image."""
        if self.winograd:
            return self.winograd_block
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

        if self.winograd:
            around = f"p{text(self.before)}"
            return f"direct_conv_winograd_n{self.outputs}_c{self.channels}_{around}"
        steps = f"s{text(self.strides)}_d{text(self.dilations)}"
        if self.depthwise:
            return f"direct_conv_depthwise_w{text(self.window)}_{steps}_p{text(self.before)}"
        form = f"direct_conv_n{self.block}_w{text(self.window)}_{steps}"
        if self.few_channels:
            return f"{form}_c{self.channels}_of{self.outputs}_p{text(self.before)}"
        return f"{form}_by_sample" if self.weights_by_sample else form

    @property
    def packed_size(self) -> int:
        """Of the weights, or of those of a sample."""
        if self.depthwise:
            return -(-self.groups // DEPTHWISE_CHANNELS) * DEPTHWISE_CHANNELS * prod(self.window)
        places = WINOGRAD_PLACES if self.winograd else prod(self.window)
        return self.blocks * self.block * self.channels * places

    def pack_weight(self, weight: np.ndarray) -> NDArray[np.float32]:
        """[N, C, window] as kernels read it, f32 [blocks * C * taps * block], by Winograd's
        algorithm [blocks * 16 * C * block]; channels for themselves [channels / 16 * taps * 16]."""
        if self.winograd:
            return self._pack_transformed(weight)
        if self.depthwise:
            return self._pack_channels(weight.reshape(self.groups, -1))
        missing = -self.outputs % self.block
        split = weight.reshape(self.groups, self.outputs, self.channels, -1).astype(np.float32)
        padded = np.pad(split, ((0, 0), (0, missing), (0, 0), (0, 0)))
        blocks = padded.reshape(self.blocks, self.block, self.channels, -1)
        return np.ascontiguousarray(blocks.transpose(0, 2, 3, 1)).reshape(-1)

    def _pack_channels(self, weight: np.ndarray) -> NDArray[np.float32]:
        filled = np.pad(weight, ((0, -self.groups % DEPTHWISE_CHANNELS), (0, 0)))
        split = filled.reshape(-1, DEPTHWISE_CHANNELS, weight.shape[1]).transpose(0, 2, 1)
        return np.ascontiguousarray(split, np.float32).reshape(-1)

    def _pack_transformed(self, weight: np.ndarray) -> NDArray[np.float32]:
        g = WINOGRAD_G
        transformed = np.zeros((self.blocks * self.block, self.channels, WINOGRAD_PLACES))
        places = g @ weight.astype(np.float64) @ g.T
        transformed[: self.outputs] = places.reshape(self.outputs, self.channels, -1)
        blocks = transformed.reshape(self.blocks, self.block, self.channels, -1)
        return np.ascontiguousarray(blocks.transpose(0, 3, 2, 1), np.float32).reshape(-1)
