"""Strategy `planes`: codes as planes of bits, products by binary tensor cores.

    sum of u * v = sum over planes i, j of weight_i * weight_j * popcount(u_i & v_j)

by `mma.sync` b1 and.popc, or by `wgmma`, for weights of 1 to 8 bits, ternary and `2*`, and
activations of 1 to 8 bits. Exact integer accumulators for every pair, group size and shape
(docs/numerics.md). The cost grows with the product of the widths; the bytes of a weight are those
of its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.costmodel.assembly import KernelCode
from abqc.costmodel.interface import KernelFeatures
from abqc.dialects.formats import QuantizedTensor

from ..arch import GpuArch
from ..matmul.code_numbers import planes_code
from ..matmul.reduction import COLUMNS, emit_reduction
from ..matmul.schedule import Schedule
from ..packing.pack import pack_kernel, scaled_pack_kernel
from ..wgmma.schedules import WgmmaKernel
from .kernel import emit_matmul, finisher
from .layout import PlaneRows, PlaneWeights, grouped_by_planes, reach
from .plan import FORM, PlanesPlan
from .schedules import plan_of, planes_features, planes_schedules
from .wgmma_kernel import emit_wgmma_matmul
from .wgmma_plan import WgmmaPlanesPlan
from .wgmma_schedules import wgmma_planes_features, wgmma_planes_schedules

LARGEST = 2**31 - 1


class Planes:
    """The GpuStrategy for targets with binary tensor cores."""

    name = "planes"
    integers = False

    def unsupported(self, spec: MatmulSpec, arch: GpuArch) -> str | None:
        if spec.weight is None or spec.activation is None:
            return "strategy 'planes' takes quantized weights and activations only"
        if spec.blocks:
            return "strategy 'planes' takes one scale for a row of activations, not blocks"
        if spec.weight.format.indexed:
            return f"strategy 'planes' multiplies bits of integers, which {spec.weight} has not"
        if spec.weight.format.in_digits:
            return f"strategy 'planes' stores planes, not digits as {spec.weight} asks for"
        if spec.scale not in ("f16", "f32"):
            return f"strategy 'planes' takes scales of f16 and f32, not {spec.scale}"
        if spec.trellis:
            return "strategy 'planes' takes no trellis codes"
        if not arch.has(FORM):
            return f"strategy 'planes' needs binary mma.sync, which {arch.name} has not"
        terms = grouped_by_planes(spec.weight, spec.k).group_size
        largest = reach(spec.weight.format) * reach(spec.activation.format)
        if terms * largest > LARGEST:
            return (
                f"strategy 'planes' sums at most {LARGEST // largest} terms of {spec.weight} and "
                f"{spec.activation} in 32 bits; give the weights groups"
            )
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, QuantizedTensor)
        return PlaneWeights.of(spec).pack(weight)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return PlaneRows.of(spec).row_bytes

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        return pack_kernel(spec, PlaneRows.of(spec))

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        return scaled_pack_kernel(spec, PlaneRows.of(spec))

    def schedules(self, spec: MatmulSpec, arch: GpuArch) -> Sequence[Schedule]:
        return [*planes_schedules(spec, arch), *wgmma_planes_schedules(spec, arch)]

    def kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel:
        plan = plan_of(spec, schedule)
        name = f"{_stem(plan)}_{schedule.name}"
        if isinstance(plan, WgmmaPlanesPlan):
            emit = partial(emit_wgmma_matmul, name=name, plan=plan)
            most = schedule.persistent
            return WgmmaKernel(name, _block(schedule), emit, most_blocks=most, stream=plan.stream)
        return Kernel(name, _block(schedule), partial(_emit, emit_matmul, name, plan))

    def reduce_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel | None:
        if schedule.grid_split == 1:
            return None
        plan = plan_of(spec, schedule)
        name = f"{_stem(plan)}_reduce{schedule.split}"
        element = "i32" if plan.one_group else "f32"
        emit = partial(emit_reduction, name, schedule.split, element, finisher(plan))
        return Kernel(name, (1, COLUMNS), emit)

    def features(self, spec: MatmulSpec, schedule: Schedule, m: int) -> KernelFeatures:
        plan = plan_of(spec, schedule)
        if isinstance(plan, WgmmaPlanesPlan):
            return wgmma_planes_features(plan, m)
        return planes_features(plan, m)

    def code(self, spec: MatmulSpec, schedule: Schedule) -> KernelCode | None:
        """What the kernel's machine code depends on; those by wgmma set their registers."""
        return None if schedule.kind == "wgmma" else planes_code(plan_of(spec, schedule))


def _block(schedule: Schedule) -> tuple[int, int]:
    return schedule.block_m, schedule.block_n


def _stem(plan: PlanesPlan) -> str:
    """What a kernel's body depends on beside its schedule."""
    grouped = plan.weight.grouped
    formats = f"{plan.weight.format.name}_{plan.rows.format.name}"
    return f"planes_{formats}_g{grouped.group_size}_s{plan.weight.scale_bits}_k{grouped.k}"


def _emit(emit: Any, name: str, plan: PlanesPlan, module: Any, arch: GpuArch) -> None:
    emit(module, arch, name, plan)
