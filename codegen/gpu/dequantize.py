"""Strategy `dequantize`: float activations in 16 bits, weights of 1 to 8 bits made exact floats in
registers, `mma.sync` f16 or bf16 with f32 sums; scales are applied to the sums of groups."""

from __future__ import annotations

from ..strategy import Kernel, MatmulSpec
from .arch import GpuArch
from .atoms import mma_step
from .pack import scaled_pack_kernel
from .rows_layout import CentredRows, FloatElement
from .tile_strategy import TileStrategy


class DequantizeMatmul(TileStrategy):
    """The GpuStrategy for activations that stay float, rounded to `element` (MatmulSpec.half)."""

    name = "dequantize"

    def __init__(self, element: FloatElement = "f16") -> None:
        self.activation = self.element = element

    def unsupported(self, spec: MatmulSpec, arch: GpuArch) -> str | None:
        if spec.weight is None:
            return "strategy 'dequantize' takes quantized weights only"
        if spec.trellis:
            return "strategy 'dequantize' takes no trellis codes"
        if spec.activation is not None and spec.weight.format.has_integers:
            return "strategy 'dequantize' takes quantized activations only where weights are floats"
        if spec.half != self.activation:
            return f"strategy 'dequantize' in {self.activation} is for a16:{self.activation}"
        if mma_step(arch, self.activation) is None:
            return f"strategy 'dequantize' needs a {self.activation} mma.sync, not in {arch.name}"
        return None

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        return scaled_pack_kernel(spec, CentredRows.of(spec, self.element))
