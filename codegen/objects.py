"""What a target's kernels become on their way into an artifact."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .elf import loaded_bytes
from .isa import Isa, lineage
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
        """One job for each ISA; kernel i is `names[i]`, its body in `outlined` if it is None."""
        ...

    def collect(self, results: Sequence[Path], names: Sequence[str], work: Path) -> KernelObjects:
        """The objects made of what the jobs wrote, in the order of `jobs`."""
        ...


@dataclass(frozen=True)
class CpuObjects:
    """An object for each kernel and instruction set, and a table of kernels for each of these.

    An instruction set that extends another one has objects of the kernels alone that have a body of
    their own for it, and is left out where there are none.
    """

    isas: tuple[Isa, ...]
    on_device: bool = False

    def jobs(
        self, names: Sequence[str], kernels: Sequence[Kernel | None], outlined: str
    ) -> list[Job]:
        return [self._job(isa, names, kernels, outlined) for isa in self.isas]

    def _job(
        self, isa: Isa, names: Sequence[str], kernels: Sequence[Kernel | None], outlined: str
    ) -> KernelJob:
        if isa.extends is None:
            return KernelJob(isa, tuple(names), tuple(kernels), outlined)
        pairs = zip(names, kernels, strict=True)
        own = {name: k for name, k in pairs if k is not None and isa.adds in k.uses}
        return KernelJob(isa, tuple(own), tuple(own.values()), "module {}")

    def collect(self, results: Sequence[Path], names: Sequence[str], work: Path) -> KernelObjects:
        made = {
            isa: pickle.loads(result.read_bytes())
            for isa, result in zip(self.isas, results, strict=True)
        }
        paths: list[Path] = []
        code_bytes = 0
        isas = [isa for isa in self.isas if made[isa] or isa.extends is None]
        for isa in isas:
            own = made[isa]
            code_bytes += sum(map(loaded_bytes, own.values()))
            line = lineage(isa)
            owners = [
                next((each for each in line[:-1] if name in made.get(each, ())), line[-1])
                for name in names
            ]
            symbols = [
                kernel_symbol(name, owner.name) for name, owner in zip(names, owners, strict=True)
            ]
            table = compile_table(symbols, f"abqc_kernels_{isa.name}")
            for number, content in enumerate([*own.values(), table]):
                paths.append(work / f"{isa.name}_{number}.o")
                paths[-1].write_bytes(content)
        listed = [isa.name for isa in isas]
        return KernelObjects(paths, code_bytes, isas=listed, manifest={"isas": listed})
