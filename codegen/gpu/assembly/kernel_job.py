"""All kernels for one GPU target, compiled in a process of its own (see codegen/kernel_job.py)."""

from __future__ import annotations

import pickle
import zlib
from dataclasses import dataclass
from typing import Any

from abqc.codegen.arithmetic.expand_math import expand_math
from abqc.codegen.arithmetic.half_floats import promote_half_floats
from abqc.codegen.kernel_cache import KernelCache
from abqc.codegen.llvm import functions
from abqc.dialects.mlir import ir

from ..arch import GpuArch
from .builtin import builtin_kernels
from .compile import MachineCode, Ptx, compile_ptx
from .merge import merge
from .spills import raise_bounds, with_bounds
from .tools import tool_identity


@dataclass(frozen=True)
class GpuCode:
    """A target's PTX, and machine code where there is an assembler."""

    ptx: Ptx
    machine: MachineCode | None


@dataclass(frozen=True)
class GpuKernelJob:
    """`outlined` is a module (text) with the kernels that are None in `kernels`; kernel i is
    `names[i]`."""

    arch: GpuArch
    names: tuple[str, ...]
    kernels: tuple[Any, ...]
    outlined: str

    @property
    def isa_name(self) -> str:
        return self.arch.name

    def compile(self) -> bytes:
        """A pickled GpuCode; the builtin kernels of the runtime are added."""
        cache = KernelCache(device="gpu")
        kernels = dict(zip(self.names, self.kernels, strict=True))
        kernels |= {kernel.name: kernel for kernel in builtin_kernels()}
        with ir.Context() as context, ir.Location.unknown():
            context.enable_multithreading(False)
            library = ir.Module.parse(self.outlined)  # which owns the functions
            outlined = functions(library)
            kept = {
                name: self._compile(kernel, outlined.get(name), cache)
                for name, kernel in kernels.items()
            }
        code = self._assemble(kept, cache)
        cache.trim()
        return pickle.dumps(code)

    def _compile(
        self, kernel: Any | None, outlined: ir.Operation | None, cache: KernelCache
    ) -> tuple[str, Ptx]:
        """One kernel, from the cache if it is there, and its key."""
        module = ir.Module.create()
        if kernel is None:
            assert outlined is not None
            module.body.append(outlined.clone())
        else:
            kernel.emit(module, self.arch)
        origin = "outlined" if kernel is None else "emitted"
        # An entry has the bounds that this assembler made it learn.
        ptxas = tool_identity("ptxas")
        key = cache.key(self.arch.text, ptxas, origin, module.operation.get_asm())
        known = _get(cache, key)
        if known is not None:
            return key, known
        if kernel is None:
            promote_half_floats(module)  # kernels written by hand know what they do
        expand_math(module)
        ptx = compile_ptx(module, self.arch)
        _put(cache, key, ptx)
        return key, ptx

    def _assemble(self, kept: dict[str, tuple[str, Ptx]], cache: KernelCache) -> GpuCode:
        """All kernels in one module, with bounds under which none spills. The cache learns these,
        so that the assembler need not find them again."""
        ptx = merge([each for _, each in kept.values()])
        known = _get(cache, self._assembled_key(ptx, cache))
        if known is not None:
            return GpuCode(ptx, known)
        ptx, machine, bounds = raise_bounds(ptx, self.arch)
        for name, registers in bounds.items():
            key, own = kept[name]
            _put(cache, key, with_bounds(own, {name: registers}))
        if machine is not None:
            _put(cache, self._assembled_key(ptx, cache), machine)
        return GpuCode(ptx, machine)

    def _assembled_key(self, ptx: Ptx, cache: KernelCache) -> str:
        return cache.key("assembled", self.arch.name, tool_identity("ptxas"), ptx.text)


def _get(cache: KernelCache, key: str) -> Any | None:
    content = cache.get(key)
    return None if content is None else pickle.loads(zlib.decompress(content))


def _put(cache: KernelCache, key: str, value: Ptx | MachineCode) -> None:
    cache.put(key, zlib.compress(pickle.dumps(value), 1))
