"""All kernels for one GPU target, compiled in a process of its own (see codegen/kernel_job.py)."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from abqc.codegen.arithmetic.expand_math import expand_math
from abqc.codegen.arithmetic.half_floats import promote_half_floats
from abqc.dialects.mlir import ir

from ..arch import GpuArch
from .builtin import builtin_kernels
from .compile import MachineCode, Ptx, compile_ptx
from .spills import without_spills


@dataclass(frozen=True)
class GpuCode:
    """A target's PTX, and machine code where there is an assembler."""

    ptx: Ptx
    machine: MachineCode | None


@dataclass(frozen=True)
class GpuKernelJob:
    """`outlined` is a module (text) with the kernels that are None in `kernels`."""

    arch: GpuArch
    kernels: tuple[Any, ...]
    outlined: str

    @property
    def isa_name(self) -> str:
        return self.arch.name

    def compile(self) -> bytes:
        """A pickled GpuCode; the builtin kernels of the runtime are added."""
        return pickle.dumps(GpuCode(*without_spills(self._build(), self.arch)))

    def _build(self) -> Ptx:
        with ir.Context(), ir.Location.unknown():
            module = ir.Module.parse(self.outlined)
            promote_half_floats(module)  # kernels written by hand know what they do
            for kernel in (*self.kernels, *builtin_kernels()):
                if kernel is not None:
                    kernel.emit(module, self.arch)
            expand_math(module)
            return compile_ptx(module, self.arch)
