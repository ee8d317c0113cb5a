"""Strategy `bf16`: activations rounded to bf16 times weights of bf16, exact products, f32 sums.

It alone takes what a recipe has in bf16 (`none:bf16`, `a16:bf16`), and nothing else.
"""

from __future__ import annotations

import numpy as np
from abqc.codegen.strategy import Kernel, MatmulSpec, Variant
from abqc.dialects.formats import QuantizedTensor

from .codes import code_kernels, pack_code_weight
from .matmul import float_kernels
from .rows import Bf16Rows, bf16_pack_kernel
from .weights import pack_bf16


class Bf16Strategy:
    """The MatmulStrategy of the module."""

    name = "bf16"

    def unsupported(self, spec: MatmulSpec) -> str | None:
        if not spec.in_bf16:
            return "strategy 'bf16' is for recipes that ask for bf16"
        if spec.hadamard_block:
            return "strategy 'bf16' does not rotate activations"
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        if isinstance(weight, QuantizedTensor):
            return pack_code_weight(spec, weight)
        assert weight.shape == (spec.n, spec.k)
        return pack_bf16(weight)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return Bf16Rows.of(spec.k, spec.weight).row_bytes

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        return bf16_pack_kernel(Bf16Rows.of(spec.k, spec.weight))

    def matmul_kernels(self, spec: MatmulSpec) -> tuple[Variant, ...]:
        rows = Bf16Rows.of(spec.k, spec.weight)
        return float_kernels(rows) if spec.weight is None else code_kernels(spec, rows)
