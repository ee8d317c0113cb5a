"""What a matmul is to the strategies that compute it."""

from __future__ import annotations

from dataclasses import dataclass

from .formats import FLOAT_BYTES, Float, Half, Scheme
from .scale_types import StoredScale, scale_label


@dataclass(frozen=True)
class MatmulSpec:
    """One matmul: `y[M, n] = x[M, k] * w[n, k]^T`; M is known at run time only.

    `weight` and `activation` are None where that side stays float. `hadamard_block` rotates
    activations in blocks of that many columns before they are quantized; 0: no rotation.
    `scale_bits` is 16, or 32 for imported weights whose scales f16 cannot hold. `half` is what
    kernels of 16 bits round float activations to; on CPUs there are none of f16, and f32 stays.
    `weight_float` is the type that the model has a weight in that stays float. Activations that are
    `stored_codes` come as bytes of codes, not as floats; with `accumulators` y is int32: exact
    sums, without scales and bias.
    """

    n: int
    k: int
    weight: Scheme | None
    activation: Scheme | None
    hadamard_block: int = 0
    scale_bits: int = 16
    half: Half = "f16"
    weight_float: Float = "f32"
    stored_codes: bool = False
    accumulators: bool = False

    @property
    def trellis(self) -> bool:
        """Whether the weight is a trellis code, which has strategies of its own."""
        return self.weight is not None and self.weight.format.kind == "trellis"

    @property
    def in_bf16(self) -> bool:
        """Whether activations, and weights that stay float, are rounded to bf16."""
        return self.activation is None and self.half == "bf16"

    @property
    def blocks(self) -> bool:
        """Whether blocks of a row of activations have scales of their own."""
        return self.activation is not None and self.activation.group_size is not None

    @property
    def integer_products(self) -> bool:
        """Whether sums of products are integers, each row of activations having one scale."""
        if self.weight is None or self.activation is None or self.blocks:
            return False
        return self.weight.format.has_integers

    @property
    def scale(self) -> StoredScale:
        """How the weight's scales are stored."""
        if self.scale_bits == 32:
            return "f32"
        return self.weight.scale if self.weight else "f16"

    @property
    def scale_name(self) -> str:
        """The same, in names of kernels."""
        return scale_label(self.scale)

    @property
    def weight_text(self) -> str:
        """The format of the weight, for people: that of its codes, or the type of its floats."""
        return self.weight.text if self.weight else self._float_type

    @property
    def weight_bits(self) -> int:
        """Bits of one element of the weight, scales not counted."""
        return self.weight.bits if self.weight else 8 * FLOAT_BYTES[self._float_type]

    @property
    def _float_type(self) -> Float:
        """How a weight that stays float is stored."""
        return "bf16" if self.in_bf16 else self.weight_float
