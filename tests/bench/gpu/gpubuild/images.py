"""Kernels as images in a kit's folder."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from abqc.codegen.gpu.arch import GpuArch
from abqc.codegen.gpu.assembly.compile import MachineCode, assemble
from abqc.codegen.gpu.assembly.spills import compile_kernels
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.strategy import Kernel
from abqc.runtime.tensor_parameter import TensorParameter
from gpukit.kit import KernelImage

Progress = Callable[[str], None]
LEVEL = 9


class Images:
    """Builds each kernel once, a module each, so that a kernel that fails to load is alone."""

    def __init__(self, arch: GpuArch, folder: Path, assembled: bool, progress: Progress) -> None:
        self.arch = arch
        self.built: dict[str, KernelImage] = {}
        self.spilled: list[str] = []
        self._folder = folder / "kernels"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._assembled = assembled
        self._progress = progress
        self._ptx: dict[str, bytes] = {}  # beside cubins, compressed

    def add(self, kernel: Kernel) -> KernelImage:
        """Compile a kernel of abqc."""
        if kernel.name not in self.built:
            ptx, code = compile_kernels([kernel], self.arch)
            shape = ptx.kernels[kernel.name]
            self._write(kernel.name, ptx.text, shape.threads, shape.shared, code, shape.maps)
        return self.built[kernel.name]

    def add_ptx(self, name: str, text: str, threads: int, shared: int = 0) -> KernelImage:
        """Take a kernel that is PTX already; `shared` is dynamic."""
        code = assemble(text, self.arch) if find_tool("ptxas") else None
        return self._write(name, text, threads, shared, code)

    def with_ptx(self, budget: int) -> dict[str, KernelImage]:
        """The kernels, as many as fit into so many bytes with their PTX beside the cubin: an older
        driver reads no code of a newer ptxas. Those that were added first come first."""
        built = dict(self.built)
        for name, data in self._ptx.items():
            budget -= len(data)
            if budget < 0:
                break
            (self._folder / f"{name}.ptx.z").write_bytes(data)
            built[name] = replace(built[name], ptx=True)
        return built

    def _write(
        self,
        name: str,
        text: str,
        threads: int,
        shared: int,
        code: MachineCode | None,
        maps: Sequence[TensorParameter] = (),
    ) -> KernelImage:
        assert re.fullmatch(r"\w+", name), name
        registers, data = 0, text.encode() + b"\0"
        if self._assembled and code is not None:
            resources = code.resources[name]
            registers, data = resources.registers, code.cubin
            self._ptx[name] = zlib.compress(text.encode() + b"\0", LEVEL)
            if resources.spill_stores or resources.spill_loads:
                self.spilled.append(name)
        (self._folder / f"{name}.z").write_bytes(zlib.compress(data, LEVEL))
        self.built[name] = KernelImage(
            name, threads, shared, registers, maps=[each.numbers for each in maps]
        )
        self._progress(f"kernels: {len(self.built)}")
        return self.built[name]
