"""Copies between strided places: the kernels that every GPU artifact has for the shim.

    abqc_copy_<1|2|4|8|16> (to, from, total, rank, sizes[8], to_strides[8], from_strides[8])
                                                               all i64; grid = ceil(total / 256)

A thread copies the element of its number in row-major order over `sizes[:rank]`; strides are in
elements (of 1 to 16 bytes) and may be negative. The shim makes elements as wide as sizes, strides
and addresses allow (runtime/shim/cuda_host.c).
"""

from __future__ import annotations

from functools import partial

from abqc.codegen.builder import Value, vec
from abqc.codegen.strategy import Kernel
from abqc.dialects.mlir import ir

from ..arch import GpuArch
from ..builder import POINTER, GpuBuilder, kernel

THREADS = 256
MAX_RANK = 8  # ABQC_MAX_RANK in runtime/shim/abqc.h
ITEMS = (1, 2, 4, 8, 16)


def copy_kernels() -> tuple[Kernel, ...]:
    """The kernels by element size, smallest first."""
    return tuple(Kernel(f"abqc_copy_{item}", (THREADS,), partial(_emit, item)) for item in ITEMS)


def _emit(item: int, module: ir.Module, arch: GpuArch) -> None:
    arguments = [POINTER, POINTER, *["i64"] * (2 + 3 * MAX_RANK)]
    with kernel(module, arch, f"abqc_copy_{item}", arguments, threads=THREADS) as opened:
        b, block, to, source, total, rank, *rest = opened
        sizes, to_strides, from_strides = (
            rest[i * MAX_RANK : (i + 1) * MAX_RANK] for i in range(3)
        )
        number = b.wide(block) * THREADS + b.wide(b.thread)
        with b.when(number < total):
            to_at, from_at = _places(b, number, rank, sizes, to_strides, from_strides)
            element = vec(4, "i32") if item == 16 else f"i{8 * item}"
            value = b.load(source, element, from_at * item)
            b.store(value, to, to_at * item)


def _places(
    b: GpuBuilder,
    number: Value,
    rank: Value,
    sizes: list[Value],
    to_strides: list[Value],
    from_strides: list[Value],
) -> tuple[Value, Value]:
    """Where an element lies on both sides, in elements; threads take the same branches."""
    zero = b.const(0, "i64")
    state = [number, zero, zero]
    for d in reversed(range(MAX_RANK)):
        dim = (sizes[d], to_strides[d], from_strides[d])
        state = b.either(rank > d, ["i64"] * 3, partial(_step, state, *dim), partial(list, state))
    return state[1], state[2]


def _step(state: list[Value], size: Value, to_stride: Value, from_stride: Value) -> list[Value]:
    """One dimension further out: what is left of the number, and the places so far."""
    left, to_at, from_at = state
    index = left % size
    return [left // size, to_at + index * to_stride, from_at + index * from_stride]
