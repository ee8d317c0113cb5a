"""Strategy `dequantize`: float activations in 16 bits, weights of 1 to 8 bits made exact floats in
registers, `mma.sync` f16 or bf16 with f32 sums; scales are applied to the sums of groups."""

from __future__ import annotations

from abqc.codegen.strategy import Kernel, MatmulSpec

from ..arch import GpuArch
from ..atoms import mma_step
from ..packing.layout import CentredRows, FloatElement
from ..packing.pack import scaled_pack_kernel
from ..tiles.strategy import TileStrategy

BLOCK_ELEMENT: FloatElement = "bf16"  # has the range of powers of two, and 8 bits


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
        if spec.integer_products:
            return "strategy 'dequantize' takes quantized activations only where weights are floats"
        if spec.blocks:
            return self._blocks_unsupported(spec, arch)
        if spec.half != self.activation:
            return f"strategy 'dequantize' in {self.activation} is for a16:{self.activation}"
        if mma_step(arch, self.activation) is None:
            return f"strategy 'dequantize' needs a {self.activation} mma.sync, not in {arch.name}"
        return None

    def _blocks_unsupported(self, spec: MatmulSpec, arch: GpuArch) -> str | None:
        """As `unsupported`, of activations that are rounded in blocks: exact in bf16."""
        if self.activation != BLOCK_ELEMENT:
            return f"strategy 'dequantize' takes blocks of activations in {BLOCK_ELEMENT}"
        if mma_step(arch, BLOCK_ELEMENT) is None:
            return f"blocks of activations need a {BLOCK_ELEMENT} mma.sync, not in {arch.name}"
        grouped = CentredRows.of(spec).grouped
        if grouped.groups > 1 and grouped.padded_group != grouped.group_size:
            return (
                "strategy 'dequantize' takes blocks of activations where groups of weights are "
                f"multiples of {grouped.unit}"
            )
        return None

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        return scaled_pack_kernel(spec, CentredRows.of(spec, self.element))
