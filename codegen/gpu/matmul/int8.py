"""Strategy `int8`: weights of 1 to 8 bits unpacked to bytes in registers, `mma.sync` or
`wgmma` s8, or dp4a.

Exact integer accumulators for every format, group size and shape (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.codegen.strategy import Kernel, MatmulSpec

from ..arch import GpuArch
from ..atoms import mma_step
from ..packing.layout import Activation, GroupedK, Int8Rows
from ..packing.pack import scaled_pack_kernel
from ..tiles.int8_arithmetic import AccumulatorProbe
from ..tiles.schedules import SPLITS, plan_of, tile_schedules
from ..tiles.strategy import TileStrategy
from ..wgmma.schedules import wgmma_accumulator_kernel, wgmma_schedules
from .long_sums import MAX_TERMS, long_reduce_kernel, needs_long_sums, parts_fit
from .schedule import Schedule


class Int8Matmul(TileStrategy):
    """The GpuStrategy for quantized activations."""

    name = "int8"
    activation: Activation = "int8"
    integers = True

    def unsupported(self, spec: MatmulSpec, arch: GpuArch) -> str | None:
        if spec.weight is None or spec.activation is None:
            return "strategy 'int8' takes quantized weights and activations only"
        if spec.blocks:
            return "strategy 'int8' takes one scale for a row of activations, not blocks"
        if not spec.weight.format.has_integers:
            return f"strategy 'int8' multiplies integers, which {spec.weight} has not"
        if spec.trellis:
            return "strategy 'int8' takes no trellis codes"
        if mma_step(arch, "s8") is None:
            return f"strategy 'int8' needs an 8-bit mma.sync, which {arch.name} has not"
        if spec.stored_codes and (spec.hadamard_block or spec.activation.format.kind == "binary"):
            return "strategy 'int8' takes stored codes of two bits and more, unrotated"
        grouped = GroupedK.of(spec.weight, spec.k)
        if spec.accumulators and (grouped.groups > 1 or needs_long_sums(spec)):
            return "strategy 'int8' returns the accumulators of one group within 32 bits"
        if needs_long_sums(spec) and (grouped.groups > 1 or not self.schedules(spec, arch)):
            return (
                f"strategy 'int8' sums {MAX_TERMS} terms in 32 bits, and more only of one group "
                f"that {max(SPLITS)} splits hold; give the weights smaller groups"
            )
        return None

    def schedules(self, spec: MatmulSpec, arch: GpuArch) -> Sequence[Schedule]:
        """As of all tile strategies; of sums that need 64 bits, those that split them; tiles that
        are not split where accumulators are stored."""
        if spec.accumulators:
            every = tile_schedules(spec, arch, self.activation)
            every += wgmma_schedules(spec, arch, self.activation)
            return [schedule for schedule in every if schedule.split == 1]
        if not needs_long_sums(spec):
            return super().schedules(spec, arch)
        every = tile_schedules(spec, arch, self.activation, always_split=True)
        return [s for s in every if parts_fit(plan_of(spec, s, self.activation))]

    def kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel:
        if spec.accumulators:
            return self.accumulator_kernel(spec, schedule)
        return super().kernel(spec, schedule)

    def reduce_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel | None:
        if needs_long_sums(spec):
            return long_reduce_kernel(spec, schedule, self.kernel_stem(spec))
        return super().reduce_kernel(spec, schedule)

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        return scaled_pack_kernel(spec, Int8Rows.of(spec))

    def accumulator_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel:
        """A tile kernel that stores acc, i32 [groups][m][n], in the place of y."""
        name = f"{self.kernel_stem(spec)}_{schedule.name}_acc"
        if schedule.kind == "wgmma":
            return wgmma_accumulator_kernel(name, spec, schedule)
        return self._tile_kernel(name, spec, schedule, AccumulatorProbe(spec))
