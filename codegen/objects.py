"""What a target's kernels become on their way into an artifact."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .elf import loaded_bytes
from .kernel_job import Job, KernelJob, kernel_symbol
from .link import GpuMeta
from .llvm import compile_table
from .strategy import Kernel


@dataclass(frozen=True)
class KernelObjects:
    """Objects to link, the bytes of code in them, and what the meta table and the manifest say."""

    objects: Sequence[Path]
    code_bytes: int
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
    """An object for each kernel and instruction set, and a table of kernels for each of these."""

    isas: tuple[Any, ...]
    on_device: bool = False

    def jobs(
        self, names: Sequence[str], kernels: Sequence[Kernel | None], outlined: str
    ) -> list[Job]:
        return [KernelJob(isa, tuple(names), tuple(kernels), outlined) for isa in self.isas]

    def collect(self, results: Sequence[Path], names: Sequence[str], work: Path) -> KernelObjects:
        paths = []
        code_bytes = 0
        for isa, result in zip(self.isas, results, strict=True):
            objects = pickle.loads(result.read_bytes())
            code_bytes += sum(map(loaded_bytes, objects))
            symbols = [kernel_symbol(name, isa) for name in names]
            objects.append(compile_table(symbols, f"abqc_kernels_{isa.name}"))
            for number, content in enumerate(objects):
                paths.append(work / f"{isa.name}_{number}.o")
                paths[-1].write_bytes(content)
        isas = [isa.name for isa in self.isas]
        return KernelObjects(paths, code_bytes, isas=isas, manifest={"isas": isas})
