"""Kernels that spill no registers: the assembler says which do, and their bounds are raised.

Plans bound the registers of a kernel so that many warps fit (`abq.registers`). What the assembler
needs differs by a few between formats and targets; a bound that is too tight costs memory traffic
in the innermost loop, so it is raised until nothing is spilled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from abqc.codegen.strategy import Kernel
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.errors import ToolchainError

from ..arch import GpuArch
from ..builder import REGISTERS
from .compile import MachineCode, Ptx, assemble, compile_ptx

STEP = 8  # registers; what the assembler rounds bounds to

Bounds = Mapping[str, int]  # registers a thread, by kernel


def bound_registers(module: ir.Module, bounds: Bounds) -> None:
    """Give kernels of a module, before it is lowered, these bounds in place of their own."""
    for op in module.body.operations:
        name = op.operation.attributes.get("sym_name")
        if name is not None and ir.StringAttr(name).value in bounds:
            i32 = ir.IntegerType.get_signless(32)
            bound = ir.IntegerAttr.get(i32, bounds[ir.StringAttr(name).value])
            op.operation.attributes[REGISTERS] = bound


def with_bounds(ptx: Ptx, bounds: Bounds) -> Ptx:
    """The same kernels under these bounds. What comes before the assembler does not depend on them:
    nothing but the directive of each kernel changes."""
    text = ptx.text
    for name, registers in bounds.items():
        entry = re.compile(rf"(\.entry {re.escape(name)}\([^)]*\)[^{{]*?)(?:\.maxnreg \d+ *\n)?\{{")
        directive = f".maxnreg {registers}\n{{"
        text, changed = entry.subn(lambda found, end=directive: found[1] + end, text)  # type: ignore[misc]
        assert changed == 1, name
    return replace(ptx, text=text)


def without_spills(ptx: Ptx, arch: GpuArch) -> tuple[Ptx, MachineCode | None]:
    """The kernels with bounds under which nothing is spilled that need not be, assembled; None
    where there is no assembler."""
    ptx, code, _ = raise_bounds(ptx, arch)
    return ptx, code


def raise_bounds(ptx: Ptx, arch: GpuArch) -> tuple[Ptx, MachineCode | None, Bounds]:
    """As `without_spills`, with the bounds that were raised."""
    bounds: dict[str, int] = {}
    while True:
        try:
            code = assemble(ptx.text, arch)
        except ToolchainError:
            return ptx, None, bounds  # the driver compiles the PTX
        raised = _raised(ptx, code, arch)
        if not raised:
            return ptx, code, bounds
        bounds |= raised
        ptx = with_bounds(ptx, raised)


def _raised(ptx: Ptx, code: MachineCode, arch: GpuArch) -> dict[str, int]:
    """Larger bounds of the kernels that spill, as far as a block of theirs fits into an SM."""
    raised = {}
    for name, used in code.resources.items():
        most = min(arch.registers_per_thread, arch.registers_per_sm // ptx.kernels[name].threads)
        if (used.spill_stores or used.spill_loads) and used.registers + STEP <= most:
            raised[name] = used.registers + STEP
    return raised


def compile_kernels(kernels: Iterable[Kernel], arch: GpuArch) -> tuple[Ptx, MachineCode | None]:
    """Kernels of one target in one module, by `without_spills`."""
    with make_context(), ir.Location.unknown():
        module = ir.Module.create()
        for kernel in kernels:
            kernel.emit(module, arch)
        ptx = compile_ptx(module, arch)
    return without_spills(ptx, arch)
