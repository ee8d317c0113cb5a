"""Loops over launches of other kernels as one kernel: a recurrence is launched once.

The loop calls the bodies of the kernels that it launched, which LLVM sees together: what is small
is inlined, arguments stay in registers. All of them run on one thread, one index of the grid after
the other. Weights are read again in every step, from a cache: what asks for them ahead, as kernels
do that read a weight once from memory, is left out (from L3 to one core it cost a fifth).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from abqc.dialects.mlir import ir

from ...passes.infrastructure import walk
from ..llvm import functions
from ..strategy import Kernel


def sequence_kernel(name: str, text: str, launched: Sequence[Kernel]) -> Kernel:
    """The kernel `name` of a module, whose function calls the kernels `launched` too.

    Its instruction sets are those for which any of these has a body of its own.
    """
    uses = frozenset[Any]().union(*(kernel.uses for kernel in launched))
    return Kernel(name, (1,), partial(_emit, text, tuple(launched)), uses=uses)


def _emit(text: str, launched: Sequence[Kernel], module: ir.Module, isa: Any) -> None:
    with module.context, ir.Location.unknown():
        _append(module, ir.Module.parse(text))
        for kernel in launched:
            own = ir.Module.create()
            kernel.emit(own, isa)
            _append(module, own)
        for op in walk(module.operation, "memref.prefetch"):
            op.erase()


def _append(module: ir.Module, other: ir.Module) -> None:
    """The functions of another module that this one does not have, declarations left out."""
    known = functions(module)
    for name, function in functions(other).items():
        if name not in known and len(function.regions[0].blocks):
            module.body.append(function.clone())
