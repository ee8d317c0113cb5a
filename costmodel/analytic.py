"""The roofline: an operation takes as long as its slower half, arithmetic or memory.

Williams, Waterman, Patterson: "Roofline: an insightful visual performance model" (CACM 2009). The
arithmetic of each strategy is counted under the schedule that the features name
(`cpu_arithmetic.py`). Memory is the packed weight from the level of the memory that the model's
weights live in, and what tiles and blocks read again from the caches that keep it (`cpu_work.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ..errors import CompileError
from .cpu_arithmetic import COMPUTE
from .cpu_work import PANEL, STREAMS, Tiling, streams
from .hardware import cpu_named
from .hardware_cpu import ZEN4, Cpu
from .interface import MatmulFeatures
from .residual import Residual
from .roofline import Roofline


@dataclass(frozen=True)
class CpuEstimate:
    """Seconds of arithmetic over all threads, of memory traffic, and of starting the loops; `parts`
    are those of the arithmetic and the traffic."""

    compute: float
    memory: float
    launch: float
    level: str
    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory) + self.launch

    @property
    def bound(self) -> str:
        if self.launch > max(self.compute, self.memory):
            return "launch-bound"
        return "compute-bound" if self.compute >= self.memory else f"{self.level}-bound"

    @property
    def terms(self) -> Mapping[str, float]:
        whole = {"compute": self.compute, "memory": self.memory, "launch": self.launch}
        return whole | dict(self.parts)


@dataclass
class AnalyticModel(Roofline[MatmulFeatures]):
    """A roofline for a described CPU."""

    features_class = MatmulFeatures

    cpu: Cpu = ZEN4
    residual: Residual | None = None

    @property
    def machine(self) -> str:
        return self.cpu.name

    @classmethod
    def of_machine(cls, name: str) -> Self:
        return cls(cpu_named(name))

    @property
    def fitted_isas(self) -> frozenset[str]:
        """The instruction sets whose kernels were measured."""
        return self.residual.isas if self.residual else frozenset()

    def estimate(self, features: MatmulFeatures) -> CpuEstimate:
        compute = COMPUTE.get(features.strategy)
        rates = self.cpu.isas.get(features.isa)
        if compute is None:
            raise CompileError(f"the cost model knows no strategy '{features.strategy}'")
        if rates is None:
            raise CompileError(f"{self.cpu.name} has no rates for instruction set '{features.isa}'")
        tiling = Tiling.of(features)
        cpu, threads = self.cpu, features.threads
        calls = tiling.tiles * cpu.tile_seconds + tiling.blocks * cpu.block_seconds
        level = cpu.level_for(max(features.working_set, features.weight_bytes))
        bandwidth = level.throughput(threads)
        waits = 0.0
        if features.m == 1 and level.capacity == math.inf:
            part = _fetched(features, tiling, cpu)
            waits = (1 / part - 1) * features.weight_bytes / bandwidth
            bandwidth *= part
        elif features.m > 1 and features.prefetch == 0:
            waits = cpu.waits * features.weight_bytes / bandwidth
        ends = 4 * features.m * (features.k + features.n) / cpu.levels[0].throughput(threads)
        traffic = [
            stream.traffic / cpu.level_for(stream.between).throughput(threads)
            for stream in streams(features, tiling)
        ]
        work = compute(features, tiling, rates)
        weights = features.weight_bytes / bandwidth
        parts = work._asdict() | dict(zip(STREAMS, traffic, strict=True))
        return CpuEstimate(
            compute=(work.seconds + calls) / threads + waits,
            memory=weights + ends + sum(traffic),
            launch=cpu.launch_seconds * (2 if features.activation_bits <= 8 else 1),
            level=level.name,
            parts=parts | {"calls": calls, "waits": waits, "weights": weights, "ends": ends},
        )


def _fetched(f: MatmulFeatures, t: Tiling, cpu: Cpu) -> float:
    """The part of the memory's bandwidth that one row of products of bytes gets."""
    if not f.schedule or f.strategy != "int8":
        return 1.0
    streams = cpu.one_row_streams.get((t.panels, f.prefetch > 0))
    return 1.0 if streams is None else streams.part_of(PANEL * f.k * f.weight_bits / 8)
