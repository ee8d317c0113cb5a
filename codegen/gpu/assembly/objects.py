"""PTX and machine code as data of an artifact."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from abqc.codegen.elf import write_data_object
from abqc.codegen.kernel_job import Job
from abqc.codegen.link import GpuBlock, GpuImage, GpuKernelEntry, GpuMeta
from abqc.codegen.objects import KernelObjects
from abqc.codegen.strategy import Kernel

from ..arch import GpuArch
from .kernel_job import GpuCode, GpuKernelJob


@dataclass(frozen=True)
class GpuObjects:
    """One object with the PTX of every target, and its cubin where there is an assembler."""

    archs: tuple[GpuArch, ...]
    on_device: bool = True

    def jobs(
        self, names: Sequence[str], kernels: Sequence[Kernel | None], outlined: str
    ) -> list[Job]:
        return [GpuKernelJob(arch, tuple(names), tuple(kernels), outlined) for arch in self.archs]

    def collect(self, results: Sequence[Path], names: Sequence[str], work: Path) -> KernelObjects:
        codes = [pickle.loads(path.read_bytes()) for path in results]
        data: list[tuple[str, bytes]] = []
        images = []
        for arch, code in zip(self.archs, codes, strict=True):
            ptx = f"abqc_ptx_{arch.name}"
            data.append((ptx, code.ptx.text.encode() + b"\0"))
            cubin = None
            if code.machine is not None:
                cubin = f"abqc_cubin_{arch.name}"
                data.append((cubin, code.machine.cubin))
            images.append(
                GpuImage(
                    name=arch.name,
                    capability=arch.capability,
                    specific=arch.specific,
                    ptx=ptx,
                    blocks=_blocks(code, names),
                    cubin=cubin,
                    cubin_bytes=len(code.machine.cubin) if code.machine is not None else 0,
                    waits=arch.dependent_launch,
                )
            )
        path = work / "gpu_code.o"
        write_data_object(path, data)
        return KernelObjects(
            [path],
            path.stat().st_size,
            gpu=GpuMeta(tuple(images), _entries(codes, names)),
            manifest={
                "isas": [],
                "gpu": [_describe(a, c) for a, c in zip(self.archs, codes, strict=True)],
            },
        )


def _entries(codes: Sequence[GpuCode], names: Sequence[str]) -> tuple[GpuKernelEntry, ...]:
    """The model's kernels by number; the shim knows the builtin ones. The host function fills the
    same parameters whatever the target; what a kernel does with them on any is noted."""
    entries = []
    for name in names:
        by_target = [code.ptx.kernels[name].accesses for code in codes]
        assert len({len(accesses) for accesses in by_target}) == 1
        union = tuple(int(reduce(or_, each)) for each in zip(*by_target, strict=True))
        (maps,) = {code.ptx.kernels[name].maps for code in codes}
        entries.append(GpuKernelEntry(name, len(union), union, maps))
    return tuple(entries)


def _blocks(code: GpuCode, names: Sequence[str]) -> tuple[GpuBlock, ...]:
    shapes = [code.ptx.kernels[name] for name in names]
    return tuple(GpuBlock(shape.threads, shape.shared) for shape in shapes)


def _describe(arch: GpuArch, code: GpuCode) -> dict[str, Any]:
    """For `abqc inspect`: what the assembler says of every kernel."""
    used = code.machine.resources if code.machine is not None else {}
    return {
        "target": arch.name,
        "machine_code": code.machine is not None,
        "kernels": {
            name: {
                "threads": shape.threads,
                "shared": shape.shared + (used[name].shared if name in used else 0),
                **(
                    {
                        "registers": used[name].registers,
                        "spilled": used[name].spill_stores + used[name].spill_loads,
                    }
                    if name in used
                    else {}
                ),
            }
            for name, shape in code.ptx.kernels.items()
        },
    }
