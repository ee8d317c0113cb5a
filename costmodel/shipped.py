"""The models that come with the package: trained where a machine could be measured, one row each.

Their files, in `weights/`, are written by tests/bench/costmodel/ (train.py, train_gpu.py) and say
in `trained` on what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .cpu_identity import CpuIdentity
from .hardware_gpu import Gpu

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Shipped:
    """A model and the CPUs that are of its kind: CPUID's vendor, family and ranges of models.
    `isas` are the instruction sets that it was trained on."""

    name: str
    vendor: str
    family: int
    models: tuple[range, ...]
    isas: tuple[str, ...]
    file: str

    @property
    def path(self) -> Path:
        return WEIGHTS / self.file

    def matches(self, cpu: CpuIdentity) -> bool:
        same = cpu.vendor == self.vendor and cpu.family == self.family
        return same and any(cpu.model in models for models in self.models)


# Family 19h: Genoa, Raphael and Phoenix, Bergamo and Siena.
ZEN4_MODELS = (range(0x10, 0x20), range(0x60, 0x80), range(0xA0, 0xB0))
CPUS = (
    Shipped("Zen 4", "AuthenticAMD", 25, ZEN4_MODELS, ("avx512", "avx2", "plain"), "zen4.json"),
)


def shipped_for(cpu: CpuIdentity | None, rows: Sequence[Shipped] = CPUS) -> Shipped | None:
    """The model of a CPU; else the nearest one: trained on the vector instructions that are its
    best, of its vendor if there is such a one. None for a CPU without any, or that is unknown."""
    if cpu is None:
        return None
    own = next((row for row in rows if row.matches(cpu)), None)
    if own is not None or cpu.best_isa == "plain":
        return own
    near = [row for row in rows if cpu.best_isa in row.isas]
    return min(near, key=lambda row: row.vendor != cpu.vendor, default=None)


@dataclass(frozen=True)
class ShippedGpu:
    """A residual and the GPU of `hardware_gpu.py` that it was measured on."""

    name: str
    arch: str
    file: str

    @property
    def path(self) -> Path:
        return WEIGHTS / self.file


GPUS = (ShippedGpu("H200", "sm_90a", "h200.json"),)


def shipped_for_gpu(gpu: Gpu, rows: Sequence[ShippedGpu] = GPUS) -> ShippedGpu | None:
    """That of a GPU; else of one of its architecture. None where there is none."""
    near = [row for row in rows if row.arch == gpu.arch]
    return min(near, key=lambda row: row.name != gpu.name, default=None)
