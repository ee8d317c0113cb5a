"""What strategies over panels share: layouts, kernel names, variants by rows and schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from abqc.codegen.builder import Builder, Value
from abqc.codegen.codes.bit_parts import StoredValue
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, MatmulSpec, Variant
from abqc.dialects.formats import NumberFormat, QuantizedTensor, Scheme

from ..packing.activations import ROWS, PackKernel, ScaledPackKernel, rows_kernel
from ..packing.quantize_row import RowCodes, RowScale
from ..schedule import CpuSchedule, KernelSchedule, RangeSchedule, RowRange, default_schedules
from .layout import RowLayout, WeightLayout, pack_weight
from .matmul import PanelKernel
from .reduction import Reduction

MAX_ROTATED_K = 1 << 16  # a row of floats on the stack


class _Emits(Protocol):
    def emit(self, module: Any, isa: Any, name: str) -> None: ...


@dataclass(frozen=True)
class PanelRows:
    """Writes packed rows: the header here, codes by a strategy's subclass."""

    layout: RowLayout

    @property
    def row_bytes(self) -> int:
        return self.layout.row_bytes

    def write_row(self, b: Builder, codes: RowCodes, row: RowScale, q: Value, at: Value) -> None:
        layout = self.layout
        b.store_as(row.scale, q, at + layout.scale_offset)
        b.store_as(row.zero, q, at + layout.zero_offset)

        def segment(segment: Value, begin: Value, terms: Value) -> None:
            target = at + (segment * layout.segment_bytes + layout.codes_offset)
            total = self.write_segment(b, codes, row, q, target, begin, terms)
            b.store_as(total, q, at + (segment * 4 + layout.sums_offset))

        layout.reduction.emit_segments(b, segment)

    def write_segment(
        self,
        b: Builder,
        codes: RowCodes,
        row: RowScale,
        q: Value,
        target: Value,
        begin: Value,
        terms: Value,
    ) -> Value:
        """Write `terms` codes from element `begin` on at byte `target`; their sum (i32)."""
        raise NotImplementedError


class PanelStrategy:
    """A strategy over panels; subclasses say how codes are stored and multiplied."""

    name: str

    def unit(self, weight: Scheme) -> int:
        """Segments are padded to a multiple of so many elements of K."""
        raise NotImplementedError

    def code_bits(self, activation: NumberFormat) -> int:
        """Bits of an activation's code in a packed row."""
        raise NotImplementedError

    def stored_value(self, format: NumberFormat) -> StoredValue:
        raise NotImplementedError

    def pack_codes(self, layout: WeightLayout, values: np.ndarray) -> np.ndarray:
        """The bytes of the stored values of some panels, uint8 [panels, 16, padded K], by panel."""
        raise NotImplementedError

    def rows(self, layout: RowLayout, activation: NumberFormat) -> PanelRows:
        raise NotImplementedError

    def schedules(self, spec: MatmulSpec, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
        """See `CpuStrategy`."""
        raise NotImplementedError

    def kernel(
        self,
        spec: MatmulSpec,
        weight: WeightLayout,
        row: RowLayout,
        schedule: KernelSchedule,
        accumulators: bool,
    ) -> PanelKernel:
        """The kernel of a schedule."""
        raise NotImplementedError

    def unsupported(self, spec: MatmulSpec) -> str | None:
        if spec.weight is None or spec.activation is None:
            return f"strategy '{self.name}' needs quantized weights and activations"
        if spec.blocks:
            return f"strategy '{self.name}' takes one scale for a row of activations, not blocks"
        if not spec.weight.format.has_integers:
            return f"strategy '{self.name}' multiplies integers, which {spec.weight} has not"
        if spec.trellis:
            return f"strategy '{self.name}' takes no trellis codes"
        if spec.hadamard_block and spec.k > MAX_ROTATED_K:
            return f"rotating rows of more than {MAX_ROTATED_K} elements needs too much stack"
        return self.integers_unsupported(spec)

    def integers_unsupported(self, spec: MatmulSpec) -> str | None:
        """Why it cannot take codes as they are, or return accumulators, as `spec` asks."""
        if spec.stored_codes and (
            spec.hadamard_block or activation_of(spec).format.kind == "binary"
        ):
            return f"strategy '{self.name}' takes stored codes of two bits and more, unrotated"
        reduction = self._reduction(spec)
        if spec.accumulators and reduction.n_groups * reduction.segments_per_group > 1:
            return f"strategy '{self.name}' returns the accumulators of one group within 32 bits"
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, QuantizedTensor), "panels hold quantized weights"
        return pack_weight(self.weight_layout(spec), weight, self.pack_codes)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return self.row_layout(spec).row_bytes

    def pack_kernel(self, spec: MatmulSpec) -> Kernel:
        format = activation_of(spec).format
        kernel = PackKernel(format, spec.k, spec.hadamard_block, self._rows(spec))
        name = f"{self.name}_pack_{self._row_name(spec)}_h{spec.hadamard_block}"
        return rows_kernel(kernel, name)

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        """Packs by scales that `activations.measure_kernel` found: per image, per tensor."""
        block, format = spec.hadamard_block, activation_of(spec).format
        kernel = ScaledPackKernel(format, spec.k, block, self._rows(spec), spec.stored_codes)
        kind = "stored" if spec.stored_codes else "scaled"
        name = f"{self.name}_{kind}_pack_{self._row_name(spec)}_h{block}"
        return _kernel(kernel, name, (ROWS,))

    def matmul_kernels(
        self, spec: MatmulSpec, schedules: Sequence[RangeSchedule] | None = None
    ) -> tuple[Variant, ...]:
        return self._variants(spec, schedules, accumulators=spec.accumulators)

    def accumulator_kernels(
        self, spec: MatmulSpec, schedules: Sequence[RangeSchedule] | None = None
    ) -> tuple[Variant, ...]:
        """Like `matmul_kernels`, but y is memref<?xi32> and gets acc [groups, m, n]."""
        return self._variants(spec, schedules, accumulators=True)

    def weight_layout(self, spec: MatmulSpec) -> WeightLayout:
        weight = weight_of(spec)
        value = self.stored_value(weight.format)
        return WeightLayout(value, weight.symmetric, spec.scale, self._reduction(spec))

    def row_layout(self, spec: MatmulSpec) -> RowLayout:
        return RowLayout(self._reduction(spec), self.code_bits(activation_of(spec).format))

    def _reduction(self, spec: MatmulSpec) -> Reduction:
        weight = weight_of(spec)
        return Reduction.of(spec.k, weight, self.unit(weight))

    def _rows(self, spec: MatmulSpec) -> PanelRows:
        return self.rows(self.row_layout(spec), activation_of(spec).format)

    def _variants(
        self, spec: MatmulSpec, schedules: Sequence[RangeSchedule] | None, accumulators: bool
    ) -> tuple[Variant, ...]:
        weight, row = self.weight_layout(spec), self.row_layout(spec)
        prefix = (
            f"{self.name}_{weight_of(spec).format.name}_g{weight.reduction.group_size}"
            f"_{spec.scale_name}_k{spec.k}_{activation_of(spec).format.name}"
        )
        variants = []
        for each in schedules or default_schedules(spec, self.schedules):
            body = self.kernel(spec, weight, row, each.schedule, accumulators)
            name = f"{prefix}_{each.schedule.name}{'_acc' if accumulators else ''}"
            kernel = Kernel(
                name,
                each.schedule.block,
                partial(_emit, body, name),
                uses=body.uses,
                by_columns=each.schedule.by_columns,
            )
            variants.append(Variant(kernel, each.first, each.last))
        return tuple(variants)

    def _row_name(self, spec: MatmulSpec) -> str:
        reduction = self._reduction(spec)
        format = activation_of(spec).format
        return f"{format.name}_k{spec.k}_g{reduction.group_size}_u{reduction.unit}"


def _kernel(body: _Emits, name: str, block: tuple[int, ...]) -> Kernel:
    return Kernel(name, block, partial(_emit, body, name))


def _emit(body: _Emits, name: str, module: Any, isa: Any) -> None:
    body.emit(module, isa, name)


def weight_of(spec: MatmulSpec) -> Scheme:
    assert spec.weight is not None
    return spec.weight


def activation_of(spec: MatmulSpec) -> Scheme:
    assert spec.activation is not None
    return spec.activation


def highest_code(spec: MatmulSpec) -> int:
    """The largest activation code u."""
    format = activation_of(spec).format
    return format.qmax - format.qmin
