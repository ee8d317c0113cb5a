"""What a convolution of codes is to the kernels that compute it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .conv_spec import PATCH_LANES, PATCH_LEAST_OUTPUTS, PATCH_OUTPUTS, Size
from .formats import Scheme
from .matmul_spec import MatmulSpec

# Planes of codes (codegen/cpu/int8_conv/layout.py), in bytes.
QUAD = 4  # channels of a pixel that lie side by side
HEADER = 64  # before the planes of a sample
SLACK = 1024  # behind all samples: vectors of the last outputs reach there

# Of kernels with vectors of output channels.
CHANNELS = 16  # of a vector; with more of them two are computed at once
PATCH_QUADS = 1 << 16  # of the patches of a grid index, vectors behind each quad included


@dataclass(frozen=True)
class CodeConvSpec:
    """A convolution of images in codes, in one group.

    `product` is the matmul of its patches: N output channels, K = input channels x window, as ONNX
    stores the weight. `padded`: there are zeros around the image.
    """

    product: MatmulSpec
    window: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    padded: bool = False

    @property
    def n(self) -> int:
        return self.product.n

    @property
    def k(self) -> int:
        return self.product.k

    @property
    def taps(self) -> int:
        return prod(self.window)

    @property
    def channels(self) -> int:
        return self.k // self.taps

    @property
    def kept(self) -> tuple[int, int]:
        """Phases of rows and columns that outputs read: one where the window has one."""
        rows, columns = (
            stride if size > 1 else 1
            for stride, size in zip(self.strides, self.window, strict=True)
        )
        return rows, columns

    @property
    def phases(self) -> int:
        """Planes that the strides cut an image into."""
        return prod(self.kept)

    @property
    def gap(self) -> int:
        """Columns of a plane between the outputs of two rows, at least."""
        return self.dilations[1] * (self.window[1] - 1) // self.strides[1]

    @property
    def block(self) -> int:
        """Output channels of a register tile, where registers are many."""
        return next((block for block in (1, 2, 4) if self.n <= block), 8)

    @property
    def patch_channels(self) -> int:
        """Output channels that a kernel with vectors of these computes at once."""
        return CHANNELS if self.n <= CHANNELS else 2 * CHANNELS

    @property
    def patch_outputs(self) -> int:
        """Outputs of a grid index with patches, at most."""
        quads = -(-self.channels // QUAD) * self.taps
        return min(PATCH_OUTPUTS, PATCH_QUADS // quads - PATCH_LANES)

    @property
    def may_take_patches(self) -> bool:
        """Whether there is a kernel with vectors of output channels (`patches_pay`): of weights
        with a scale for each channel and no zero points. Rows of flat outputs are one, which is
        long."""
        plain = self.groups == 1 and self.weight.symmetric and not self.flat
        return plain and self.n >= CHANNELS and self.patch_outputs >= PATCH_LEAST_OUTPUTS

    def patches_pay(self, height: Size, width: Size, pitch: Size) -> Size:
        """Whether that kernel is the faster one for outputs of a height and width and planes with a
        pitch: what vectors across the ends of rows compute, against outputs of all vectors of
        channels, which take a fifth longer with the copies of patches. Sizes are above 0; all are
        numbers, or of a class with their operators.

        Measured on one core of an AMD EPYC (Zen 4) with AVX-512, times of the other kernel, with
        windows of 3 x 3: 0.48 with 128 channels in and out of 3 x 2 pixels, 0.60 with 64 of 6 x 4,
        0.76 with 32 of 12 x 8, 0.97 with 128 of 7 x 7; not taken, 0.99 with 64 of 14 x 14, 1.17
        with 32 of 28 x 28, 1.19 with 16 of 56 x 56.
        """
        reach = (height - 1) * pitch + width
        direct = (reach + (PATCH_LANES - 1)) // PATCH_LANES * PATCH_LANES
        filled = -(-self.n // self.patch_channels) * self.patch_channels
        return direct * (self.n * 5) > height * width * (filled * 6)

    @property
    def weight(self) -> Scheme:
        assert self.product.weight is not None
        return self.product.weight

    @property
    def activation(self) -> Scheme:
        assert self.product.activation is not None
        return self.product.activation

    @property
    def flat(self) -> bool:
        """Whether outputs lie as inputs do: each reads the element at its own place."""
        return self.taps == prod(self.strides) == 1 and not self.padded

    @property
    def groups(self) -> int:
        """Of K, each with scales of its own."""
        return self.weight.n_groups(self.k)
