"""Kernels that every GPU artifact has, for the shim (runtime/shim/cuda_launch.c).

    abqc_set_<1|2|4|8> (to, value i64)      the low bytes of `value`; one thread
    abqc_copy_...                           see copy.py

The driver can copy and set too, but as kernels these are nodes of a graph like all others, whose
arguments can be set anew.
"""

from __future__ import annotations

from functools import partial

from abqc.codegen.strategy import Kernel
from abqc.dialects.mlir import ir

from ..arch import GpuArch
from ..builder import POINTER, kernel
from .copy import copy_kernels

SET_BYTES = (1, 2, 4, 8)


def builtin_kernels() -> tuple[Kernel, ...]:
    """In the order in which the shim numbers them."""
    return (*copy_kernels(), *set_kernels())


def set_kernels() -> tuple[Kernel, ...]:
    """The kernels by size of the value, smallest first."""
    return tuple(Kernel(f"abqc_set_{n}", (1,), partial(_emit_set, n)) for n in SET_BYTES)


def _emit_set(nbytes: int, module: ir.Module, arch: GpuArch) -> None:
    with kernel(module, arch, f"abqc_set_{nbytes}", [POINTER, "i64"], threads=1) as opened:
        b, _, to, value = opened
        b.store(value if nbytes == 8 else b.trunc(value, f"i{8 * nbytes}"), to)
