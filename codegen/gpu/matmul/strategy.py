"""What a GPU strategy is, and how schedules are chosen for its kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from abqc.codegen.strategy import Kernel, MatmulSpec, Variant
from abqc.costmodel.assembly import Assembly, KernelCode, shipped_assembly
from abqc.costmodel.interface import CostModel, KernelFeatures
from abqc.dialects.formats import QuantizedTensor

from ..arch import GpuArch
from ..assembly.spills import bound_registers
from .schedule import Schedule

# Rows are cut into ranges by powers of two up to here; more rows share one schedule.
RANGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PACK_THREADS = 256  # of a block of a packing kernel, about
MANY_ROWS = (512, 4096)  # what the schedule of the last range is judged by


class GpuStrategy(Protocol):
    """A way to compute matmuls on a GPU; docs/gpu.md has the arguments of its kernels.

    Packed weights and rows are the same for all targets and schedules.
    """

    name: str
    integers: bool  # whether it takes codes as they are and returns accumulators, where asked

    def unsupported(self, spec: MatmulSpec, arch: GpuArch) -> str | None:
        """Why this strategy cannot do `spec` there, as a sentence; None if it can."""
        ...

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        """The weight as a one-dimensional uint8 blob; float weights are f32 [N, K]."""
        ...

    def row_bytes(self, spec: MatmulSpec) -> int:
        """Bytes of one packed activation row, a multiple of 32; 0 where rows are read as f32."""
        ...

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        """The kernel that packs activations; None where rows are read as f32."""
        ...

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        """The kernel that packs activations by scales measured before."""
        ...

    def schedules(self, spec: MatmulSpec, arch: GpuArch) -> Sequence[Schedule]:
        """Every schedule that can run there."""
        ...

    def kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel:
        """The matmul."""
        ...

    def reduce_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel | None:
        """The kernel that adds the parts of a split; None without a split."""
        ...

    def features(self, spec: MatmulSpec, schedule: Schedule, m: int) -> KernelFeatures:
        """What the cost model needs to know of `m` rows; its `arch` is left open ("")."""
        ...


@runtime_checkable
class KnownCode(Protocol):
    """A GpuStrategy of whose machine code something was learned (costmodel/assembly.py)."""

    def code(self, spec: MatmulSpec, schedule: Schedule) -> KernelCode | None:
        """What a kernel's machine code depends on; None for those of which nothing was learned."""
        ...


def pack_features(
    spec: MatmulSpec, strategy: GpuStrategy, kernel: Kernel, m: int
) -> KernelFeatures:
    """A launch that packs `m` rows: f32 read, packed rows written."""
    rows = kernel.block[0]
    blocks = -(-m // rows)
    return KernelFeatures(
        arch="",
        strategy="pack",
        schedule=kernel.name,
        kind="pack",
        m=m,
        n=spec.k,
        k=spec.k,
        weight_bits=0,
        activation_bits=32,
        block_m=rows,
        block_n=spec.k,
        block_k=spec.k,
        blocks=blocks,
        threads=PACK_THREADS,
        weight_bytes=0,
        activation_bytes=4 * m * spec.k,
        written_bytes=m * strategy.row_bytes(spec),
        bytes_in_flight=4 * rows * spec.k,
    )


@dataclass(frozen=True)
class Candidate:
    """A schedule for a range of rows, and what it is expected to cost: the product over targets."""

    schedule: Schedule
    score: float


@dataclass(frozen=True)
class Scheduled:
    """A GPU strategy whose schedules are chosen by cost models, one for each target.

    To passes it is a `codegen.strategy.MatmulStrategy`.
    """

    strategy: GpuStrategy
    archs: tuple[GpuArch, ...]
    models: tuple[CostModel, ...] = field(repr=False)

    @property
    def name(self) -> str:
        return self.strategy.name

    def unsupported(self, spec: MatmulSpec) -> str | None:
        """Why it cannot do `spec` on all of the targets."""
        if (spec.stored_codes or spec.accumulators) and not self.strategy.integers:
            return f"strategy '{self.name}' takes floats and returns floats"
        for arch in self.archs:
            refusal = self.strategy.unsupported(spec, arch)
            if refusal is not None:
                return refusal
        if not any(schedule.covers(None) for schedule in self.candidates(spec)):
            names = " and ".join(arch.name for arch in self.archs)
            return f"strategy '{self.name}' has no schedule for these formats on {names}"
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        return self.strategy.pack_weight(spec, weight)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return self.strategy.row_bytes(spec)

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        return self.strategy.pack_kernel(spec)

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        return self.strategy.scaled_pack_kernel(spec)

    @cached_property
    def _known(self) -> dict[MatmulSpec, tuple[Variant, ...]]:
        return {}

    @cached_property
    def _best(self) -> dict[tuple[MatmulSpec, int | None], Candidate]:
        return {}

    @cached_property
    def _assembled(self) -> dict[MatmulSpec, Mapping[Schedule, tuple[Assembly | None, ...]]]:
        return {}

    @cached_property
    def _able(self) -> dict[MatmulSpec, list[Schedule]]:
        return {}

    def matmul_kernels(self, spec: MatmulSpec) -> tuple[Variant, ...]:
        """The best schedule for every range of rows; neighbours with the same one are joined."""
        if spec not in self._known:
            self._known[spec] = self._choose_all(spec)
        return self._known[spec]

    def _choose_all(self, spec: MatmulSpec) -> tuple[Variant, ...]:
        chosen: list[tuple[int, int | None, Schedule]] = []
        begin = 1
        for end in (*RANGES, None):
            schedule = self.best(spec, begin, end).schedule
            if chosen and chosen[-1][2] == schedule:
                begin_before = chosen.pop()[0]
                chosen.append((begin_before, end, schedule))
            else:
                chosen.append((begin, end, schedule))
            begin = (end or 0) + 1
        return tuple(
            Variant(
                self.kernel(spec, schedule),
                first,
                last,
                schedule.grid_split,
                self.strategy.reduce_kernel(spec, schedule),
            )
            for first, last, schedule in chosen
        )

    def kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel:
        """The matmul, with the bounds on registers that it is expected to need."""
        kernel = self.strategy.kernel(spec, schedule)
        bounds = {
            arch.name: expected.bound
            for arch, expected in zip(self.archs, self.assembled(spec)[schedule], strict=True)
            if expected is not None and expected.bound
        }
        return replace(kernel, emit=partial(_emit_bounded, kernel, bounds)) if bounds else kernel

    def assembled(self, spec: MatmulSpec) -> Mapping[Schedule, tuple[Assembly | None, ...]]:
        """What is expected of the machine code of every candidate on each target."""
        if spec not in self._assembled:
            self._assembled[spec] = self._predict_code(spec)
        return self._assembled[spec]

    def _predict_code(self, spec: MatmulSpec) -> dict[Schedule, tuple[Assembly | None, ...]]:
        schedules = self.candidates(spec)
        nothing = (None,) * len(self.archs)
        found: dict[Schedule, tuple[Assembly | None, ...]] = dict.fromkeys(schedules, nothing)
        if not isinstance(self.strategy, KnownCode):
            return found
        codes = {schedule: self.strategy.code(spec, schedule) for schedule in schedules}
        known = {schedule: code for schedule, code in codes.items() if code is not None}
        model = shipped_assembly()
        on_each = [model.predict(list(known.values()), arch.name) for arch in self.archs]
        return found | dict(zip(known, zip(*on_each, strict=True), strict=True))

    def candidates(self, spec: MatmulSpec) -> list[Schedule]:
        """The schedules that run on all targets."""
        if spec in self._able:
            return self._able[spec]
        common = set(self.strategy.schedules(spec, self.archs[0]))
        for arch in self.archs[1:]:
            common &= set(self.strategy.schedules(spec, arch))
        self._able[spec] = sorted(common)
        return self._able[spec]

    def best(self, spec: MatmulSpec, begin: int, end: int | None) -> Candidate:
        """The cheapest schedule for `begin <= M <= end`, judged by the most rows of the range."""
        if (spec, end) not in self._best:
            self._best[spec, end] = self._cheapest(spec, begin, end)
        return self._best[spec, end]

    def _cheapest(self, spec: MatmulSpec, begin: int, end: int | None) -> Candidate:
        rows = MANY_ROWS if end is None else (end,)
        able = self.able(spec, end)
        assert able, f"{self.name} has no schedule for {begin} to {end} rows of {spec}"
        scores = [1.0] * len(able)
        for m in rows:
            scores = [
                score * math.prod(seconds)
                for score, seconds in zip(scores, self.on_each(spec, able, m), strict=True)
            ]
        scored = [Candidate(s, score) for s, score in zip(able, scores, strict=True)]
        return min(scored, key=lambda candidate: candidate.score)

    def able(self, spec: MatmulSpec, rows: int | None) -> list[Schedule]:
        """The candidates for so many rows (None: any number), those that are expected to spill,
        whatever their bound, only where all are."""
        able = [s for s in self.candidates(spec) if s.covers(rows)]
        assembled = self.assembled(spec)
        return [s for s in able if not any(a and a.spills for a in assembled[s])] or able

    def on_each(
        self, spec: MatmulSpec, schedules: Sequence[Schedule], m: int
    ) -> list[tuple[float, ...]]:
        """Seconds of each schedule on each target."""
        assembled = self.assembled(spec)
        described = [self._described(spec, s, m, assembled[s]) for s in schedules]
        by_target = [
            model.predict_all([features[place] for features in described])
            for place, model in enumerate(self.models)
        ]
        return list(zip(*by_target, strict=True))

    def described(self, spec: MatmulSpec, schedule: Schedule, m: int) -> tuple[KernelFeatures, ...]:
        """What a cost model needs to know of `m` rows on each target."""
        return self._described(spec, schedule, m, self.assembled(spec)[schedule])

    def _described(
        self, spec: MatmulSpec, schedule: Schedule, m: int, assembled: Sequence[Assembly | None]
    ) -> tuple[KernelFeatures, ...]:
        features = self.strategy.features(spec, schedule, m)
        return tuple(
            expected.on(features, arch.name) if expected is not None else _on(features, arch)
            for arch, expected in zip(self.archs, assembled, strict=True)
        )

    def seconds(self, spec: MatmulSpec, m: int) -> tuple[float, ...]:
        """What `m` rows take on each target by the best schedule for them."""
        return self.on_each(spec, [self.best(spec, m, m).schedule], m)[0]

    def pack_name(self, spec: MatmulSpec) -> str:
        """What tells layouts of an activation apart: the kernel that packs it."""
        kernel = self.strategy.pack_kernel(spec)
        return kernel.name if kernel is not None else ""

    def pack_seconds(self, spec: MatmulSpec, m: int) -> tuple[float, ...]:
        """What packing `m` rows of its activation takes on each target; 0 where they are read as
        they are."""
        kernel = self.strategy.pack_kernel(spec)
        if kernel is None:
            return (0.0,) * len(self.archs)
        features = pack_features(spec, self.strategy, kernel, m)
        return tuple(
            model.predict(_on(features, arch))
            for arch, model in zip(self.archs, self.models, strict=True)
        )

    def features(self, spec: MatmulSpec, m: int) -> KernelFeatures:
        """Those of the best schedule for `m` rows on the first target."""
        return self.described(spec, self.best(spec, m, m).schedule, m)[0]


def _on(features: KernelFeatures, arch: GpuArch) -> KernelFeatures:
    return features.changed(arch=arch.name)


def _emit_bounded(kernel: Kernel, bounds: Mapping[str, int], module: Any, arch: GpuArch) -> None:
    """`bounds`: registers of a thread, by target."""
    kernel.emit(module, arch)
    if arch.name in bounds:
        bound_registers(module, {kernel.name: bounds[arch.name]})
