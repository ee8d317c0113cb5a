"""Strategy `trellis`: trellis codes and quantized activations, exact.

Codes are decoded to the bytes that strategy `int8` multiplies (`kernels.py`).
"""

from __future__ import annotations

import numpy as np
from abqc.codegen.codes.dense_units import unit_quads
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import QuantizedTensor, Scheme

from ..int8.layout import QUAD
from ..int8.strategy import Int8Strategy
from ..panels.strategy import MAX_ROTATED_K, highest_code
from ..schedule import CpuSchedule, RowRange
from .kernels import MAX_K, TrellisKernel, schedules
from .layout import BYTE_BITS, TrellisLayout


class TrellisStrategy(Int8Strategy):
    """See the module."""

    name = "trellis"
    kernel_of_rows = kernel_of_many_rows = TrellisKernel

    def unsupported(self, spec: MatmulSpec) -> str | None:
        if not spec.trellis:
            return "strategy 'trellis' takes trellis codes only"
        if spec.activation is None:
            return "strategy 'trellis' needs quantized activations"
        if spec.blocks:
            return "strategy 'trellis' takes one scale for a row of activations, not blocks"
        if spec.hadamard_block and spec.k > MAX_ROTATED_K:
            return f"rotating rows of more than {MAX_ROTATED_K} elements needs too much stack"
        if spec.k > MAX_K:
            return f"decoding more than {MAX_K} columns needs too much stack"
        return self.integers_unsupported(spec)

    def unit(self, weight: Scheme) -> int:
        return QUAD * unit_quads(BYTE_BITS)

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, QuantizedTensor), "trellis codes are quantized"
        return TrellisLayout.of(spec).pack(weight)

    def weight_layout(self, spec: MatmulSpec) -> TrellisLayout:
        return TrellisLayout.of(spec)

    def schedules(self, spec: MatmulSpec, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
        return schedules(self.weight_layout(spec), highest_code(spec), spec.n, rows, isa)
