"""What a convolution of codes is to the kernels that compute it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .formats import Scheme
from .matmul_spec import MatmulSpec

# Planes of codes (codegen/cpu/int8_conv/layout.py), in bytes.
QUAD = 4  # channels of a pixel that lie side by side
HEADER = 64  # before the planes of a sample
SLACK = 1024  # behind all samples: vectors of the last outputs reach there


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
