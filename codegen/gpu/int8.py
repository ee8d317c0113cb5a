"""Strategy `int8`: weights of 1 to 8 bits unpacked to bytes in registers, `mma.sync` s8 or dp4a.

Exact integer accumulators for every format, group size and shape (docs/numerics.md).
"""

from __future__ import annotations

from ..strategy import Kernel, MatmulSpec
from .arch import GpuArch
from .atoms import mma_step
from .int8_arithmetic import MAX_TERMS, AccumulatorProbe
from .pack import scaled_pack_kernel
from .rows_layout import Activation, GroupedK, Int8Rows
from .schedule import Schedule
from .tile_strategy import TileStrategy


class Int8Matmul(TileStrategy):
    """The GpuStrategy for quantized activations."""

    name = "int8"
    activation: Activation = "int8"

    def unsupported(self, spec: MatmulSpec, arch: GpuArch) -> str | None:
        if spec.weight is None or spec.activation is None:
            return "strategy 'int8' takes quantized weights and activations only"
        if mma_step(arch, "s8") is None:
            return f"strategy 'int8' needs an 8-bit mma.sync, which {arch.name} has not"
        if GroupedK.of(spec.weight, spec.k).group_size > MAX_TERMS:
            return (
                f"strategy 'int8' sums at most {MAX_TERMS} terms with one scale in 32 bits; "
                f"give the weights groups"
            )
        return None

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        return scaled_pack_kernel(spec, Int8Rows.of(spec))

    def accumulator_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel:
        """A tile kernel that stores acc, i32 [groups][m][n], in the place of y."""
        name = f"{self.kernel_stem(spec)}_{schedule.name}_acc"
        return self._tile_kernel(name, spec, schedule, AccumulatorProbe(spec))
