"""The cost model of a GPU: the roofline of its kernels (gpu_kernels.py), and what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ..errors import CompileError
from .gpu_kernels import GpuEstimate, GpuKernels, Occupancy
from .hardware import gpu_named
from .hardware_gpu import Gpu
from .interface import KernelFeatures
from .residual import Residual
from .roofline import Roofline

__all__ = ["GpuAnalyticModel", "GpuEstimate", "Occupancy"]


@dataclass
class GpuAnalyticModel(Roofline[KernelFeatures]):
    """A roofline for a described GPU. `in_graph`: launches are nodes of a CUDA graph."""

    features_class = KernelFeatures

    gpu: Gpu
    residual: Residual | None = None
    in_graph: bool = True

    @property
    def machine(self) -> str:
        return self.gpu.name

    @classmethod
    def of_machine(cls, name: str) -> Self:
        return cls(gpu_named(name))

    def estimate(self, features: KernelFeatures) -> GpuEstimate:
        return self.estimates([features])[0]

    def estimates(self, candidates: Sequence[KernelFeatures]) -> Sequence[GpuEstimate]:
        return _Estimates(self._kernels(candidates), self.launch)

    def predict_all(self, candidates: Sequence[KernelFeatures]) -> list[float]:
        if not candidates:
            return []
        kernels = self._kernels(candidates)
        seconds = kernels.seconds(self.launch)
        if self.residual is not None:
            seconds = seconds * self.residual.factors(candidates, _Estimates(kernels, self.launch))
        return seconds.tolist()

    @property
    def launch(self) -> float:
        """Seconds of a launch."""
        return self.gpu.graph_launch_seconds if self.in_graph else self.gpu.launch_seconds

    def _kernels(self, features: Sequence[KernelFeatures]) -> GpuKernels:
        other = next((f.arch for f in features if f.arch != self.gpu.arch), None)
        if other is not None:
            raise CompileError(f"{self.gpu.name} runs {self.gpu.arch}, the kernel is for {other}")
        return GpuKernels.of(features, self.gpu)


@dataclass(frozen=True)
class _Estimates(Sequence[GpuEstimate]):
    """Made one by one, as they are asked for."""

    kernels: GpuKernels
    launch: float

    def __len__(self) -> int:
        return len(self.kernels.features)

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        return self.kernels.estimate_of(i, self.launch)
