"""Compiles GPU kernels and runs them in the PTX machine, for tests."""

from __future__ import annotations

import numpy as np
from abqc.codegen.gpu.arch import SM_75, SM_80, SM_90A, SM_120A, GpuArch
from abqc.codegen.gpu.assembly.compile import Ptx, assemble, compile_ptx, disassemble
from abqc.codegen.gpu.assembly.spills import compile_kernels as spill_free
from abqc.codegen.strategy import Kernel
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.runtime.ptx import Device, Unwritten, run_kernel
from abqc.runtime.ptx.counters import Counters

SAMPLE = (SM_75, SM_90A, SM_120A)  # targets for fast tests: the oldest, the main one, the newest


def compile_kernels(arch: GpuArch, *kernels: Kernel) -> Ptx:
    with make_context(), ir.Location.unknown():
        module = ir.Module.create()
        for kernel in kernels:
            kernel.emit(module, arch)
        return compile_ptx(module, arch)


_compiled: dict[tuple[str, str], Ptx] = {}


def compile_kernel(arch: GpuArch, kernel: Kernel) -> Ptx:
    """One kernel; each name is compiled once for each target."""
    key = (arch.name, kernel.name)
    if key not in _compiled:
        _compiled[key] = compile_kernels(arch, kernel)
    return _compiled[key]


def run(
    kernel: Kernel,
    grid: int,
    arguments: list,
    arch: GpuArch = SM_80,
    counters: Counters | None = None,
) -> list[np.ndarray]:
    """The arrays among `arguments`, as the kernel leaves them."""
    ptx = compile_kernel(arch, kernel)
    shape = ptx.kernels[kernel.name]
    return run_kernel(
        ptx.text,
        kernel.name,
        grid,
        shape.threads,
        arguments,
        shared_bytes=shape.shared,
        device=Device(arch.capability),
        counters=counters,
        maps=shape.maps,
    )


def run_stream(
    kernel: Kernel, grid: int, operands: list, m: int, n: int, arch: GpuArch
) -> np.ndarray:
    """y of a kernel whose blocks share tiles: (q, w, bias) and sizes; counters are 0 again."""
    stream = kernel.stream
    assert stream is not None
    workspace = output(grid * stream.slot_bytes // 4)
    counters = np.zeros(3 + grid * stream.flags, np.int32)
    arguments = [*operands, output(m * n), m, n, workspace, 3, counters]
    *_, y, _, counters = run(kernel, grid, arguments, arch)
    assert not counters.any()
    return y.reshape(m, n)


def output(count: int, dtype: type = np.float32) -> Unwritten:
    """What a kernel writes, and may read only then. The machine knows where it ends."""
    return Unwritten(count, dtype)


def take(y: np.ndarray) -> np.ndarray:
    """An output, all of which must be written where it is f32: its poison is no NaN of a kernel."""
    assert y.dtype != np.float32 or (y.view(np.uint32) != 0xFFFF_FFFF).all()
    return y


def spills(arch: GpuArch, *kernels: Kernel) -> dict[str, int]:
    """Bytes of spills by kernel, of those that have any."""
    _, code = spill_free(kernels, arch)
    assert code is not None
    used = {name: r.spill_stores + r.spill_loads for name, r in code.resources.items()}
    return {name: count for name, count in used.items() if count}


def machine_code(arch: GpuArch, kernel: Kernel) -> str:
    """The instructions of a kernel, a line each."""
    code = assemble(compile_kernels(arch, kernel).text, arch)
    return "\n".join(disassemble(code.cubin)[kernel.name])
