"""What the strategies `int8` and `dequantize` have in common: one packed weight, three kinds of
kernels over it (few_rows/ for 1 to 8 rows, kernel.py for more, wgmma/ where that is native), one
reduction of splits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.costmodel.assembly import KernelCode
from abqc.costmodel.interface import KernelFeatures
from abqc.dialects.formats import QuantizedTensor

from ..arch import GpuArch
from ..few_rows.schedules import rows_features, rows_kernel, rows_reduce_kernel, rows_schedules
from ..matmul.code_numbers import rows_code, tile_code
from ..matmul.schedule import Schedule
from ..packing.layout import Activation, rows_of
from ..packing.pack import pack_kernel
from ..weights.layout import WeightLayout, pack
from ..wgmma.schedules import wgmma_features, wgmma_kernel, wgmma_schedules
from .half_arithmetic import HalfArithmetic
from .int8_arithmetic import Int8Arithmetic
from .kernel import Arithmetic, emit_tile_kernel
from .schedules import plan_of, tile_features, tile_schedules


class TileStrategy:
    """Weights of 1 to 8 bits, ternary or `2*`, decoded in registers."""

    name: str
    activation: Activation
    integers: bool = False

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, QuantizedTensor)
        return pack(WeightLayout.of(spec), weight)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return rows_of(spec, self.activation).row_bytes

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        return pack_kernel(spec, rows_of(spec, self.activation))

    def schedules(self, spec: MatmulSpec, arch: GpuArch) -> Sequence[Schedule]:
        """Rows kernels for few rows, tiles for any."""
        return [
            *rows_schedules(spec, arch, self.activation),
            *tile_schedules(spec, arch, self.activation),
            *wgmma_schedules(spec, arch, self.activation),
        ]

    def kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel:
        if schedule.kind == "rows":
            return rows_kernel(spec, schedule, self.activation)
        name = f"{self.kernel_stem(spec)}_{schedule.name}"
        if schedule.kind == "wgmma":
            return wgmma_kernel(name, spec, schedule, self.activation)
        return self._tile_kernel(name, spec, schedule, self.arithmetic(spec))

    def reduce_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel | None:
        return rows_reduce_kernel(spec, schedule, self.activation)

    def features(self, spec: MatmulSpec, schedule: Schedule, m: int) -> KernelFeatures:
        if schedule.kind == "rows":
            return rows_features(spec, schedule, m, self.activation)
        if schedule.kind == "wgmma":
            return wgmma_features(spec, schedule, m, self.name, self.activation)
        return tile_features(spec, schedule, m, self.name, self.activation)

    def code(self, spec: MatmulSpec, schedule: Schedule) -> KernelCode | None:
        """What the kernel's machine code depends on; kernels by wgmma set their registers."""
        plain = not (spec.accumulators or spec.blocks) and spec.scale in ("f16", "f32")
        if not plain or schedule.kind == "wgmma":
            return None
        if schedule.kind == "rows":
            return rows_code(spec, schedule, self.activation)
        return tile_code(spec, plan_of(spec, schedule, self.activation), self.activation)

    def arithmetic(self, spec: MatmulSpec) -> Arithmetic:
        """How tiles are multiplied."""
        if self.activation == "int8":
            return Int8Arithmetic(spec)
        return HalfArithmetic(spec, self.activation)

    def kernel_stem(self, spec: MatmulSpec) -> str:
        """What the bodies of tile kernels depend on beside their schedule."""
        assert spec.weight is not None
        layout = WeightLayout.of(spec)
        rows: str = self.activation
        if spec.activation is not None and not spec.blocks:
            name = spec.activation.format.name
            rows = name if self.activation == "int8" else f"{rows}_codes"
        return (
            f"{self.name}_{layout.format.name}_{rows}_g{layout.grouped.group_size}"
            f"_{spec.scale_name}_k{spec.k}"
        )

    def _tile_kernel(
        self, name: str, spec: MatmulSpec, schedule: Schedule, arithmetic: Arithmetic
    ) -> Kernel:
        plan = plan_of(spec, schedule, self.activation)
        block = (schedule.block_m, schedule.block_n)
        return Kernel(
            name, block, partial(emit_tile_kernel, name=name, plan=plan, arithmetic=arithmetic)
        )
