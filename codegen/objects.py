"""What a target's kernels become on their way into an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .kernel_job import Job, KernelJob
from .link import GpuMeta
from .strategy import Kernel


@dataclass(frozen=True)
class KernelObjects:
    """Objects to link, and what the meta table and the manifest say of them."""

    objects: Sequence[Path]
    isas: Sequence[str] = ()
    gpu: GpuMeta | None = None
    manifest: dict[str, Any] = field(default_factory=dict)


class ObjectMaker(Protocol):
    """How a target compiles kernels: as jobs in processes of their own, and what they make."""

    @property
    def on_device(self) -> bool:
        """Whether kernels run on a GPU."""
        ...

    def jobs(
        self, names: Sequence[str], kernels: Sequence[Kernel | None], outlined: str
    ) -> list[Job]:
        """One job for each form; kernel i is `names[i]`, its body in `outlined` if it is None."""
        ...

    def collect(self, results: Sequence[Path], names: Sequence[str], work: Path) -> KernelObjects:
        """The objects made of what the jobs wrote, in the order of `jobs`."""
        ...


@dataclass(frozen=True)
class CpuObjects:
    """An object for each instruction set."""

    isas: tuple[Any, ...]
    on_device: bool = False

    def jobs(
        self, names: Sequence[str], kernels: Sequence[Kernel | None], outlined: str
    ) -> list[Job]:
        return [KernelJob(isa, tuple(names), tuple(kernels), outlined) for isa in self.isas]

    def collect(self, results: Sequence[Path], names: Sequence[str], work: Path) -> KernelObjects:
        isas = [isa.name for isa in self.isas]
        return KernelObjects(results, isas=isas, manifest={"isas": isas})
