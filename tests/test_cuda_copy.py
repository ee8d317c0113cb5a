"""The builtin kernels of GPU artifacts, in the PTX machine and through the assembler."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_80
from abqc.codegen.gpu.assembly.builtin import SET_BYTES, builtin_kernels
from abqc.codegen.gpu.assembly.compile import Ptx, assemble, compile_ptx
from abqc.codegen.gpu.assembly.copy import MAX_RANK, THREADS
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.runtime.ptx import run_kernel


@cache
def ptx() -> Ptx:
    with make_context(), ir.Location.unknown():
        module = ir.Module.create()
        for kernel in builtin_kernels():
            kernel.emit(module, SM_80)
        return compile_ptx(module, SM_80)


def padded(values: list[int]) -> list[int]:
    return [*values, *[0] * (MAX_RANK - len(values))]


def copy(item: int, to: np.ndarray, source: np.ndarray, sizes, to_strides, from_strides):
    total = int(np.prod(sizes))
    arguments = [to, source, total, len(sizes)]
    arguments += padded(sizes) + padded(to_strides) + padded(from_strides)
    grid = -(-total // THREADS)
    return run_kernel(ptx().text, f"abqc_copy_{item}", grid, THREADS, arguments)[0]


@pytest.mark.parametrize("item", [1, 2, 4, 8])
def test_single_values(item: int) -> None:
    arguments = [np.full(16, 0xAA, np.uint8), 0xF1F2F3F4F5F6F7F8]
    out = run_kernel(ptx().text, f"abqc_set_{item}", 1, 1, arguments)[0].view(np.uint8)
    assert bytes(out) == arguments[1].to_bytes(8, "little")[:item] + b"\xaa" * (16 - item)


def test_transposes_of_16_bytes() -> None:
    x = np.arange(7 * 45 * 2, dtype=np.uint64).reshape(7, 45, 2)
    out = copy(16, np.zeros(x.size, x.dtype), x.reshape(-1), [45, 7], [7, 1], [1, 45])
    np.testing.assert_array_equal(out.view(x.dtype).reshape(45, 7, 2), x.swapaxes(0, 1))


@pytest.mark.parametrize("item", [1, 2, 4, 8])
def test_transposes_of_every_item_size(item: int) -> None:
    x = np.arange(7 * 45, dtype=f"u{item}").reshape(7, 45)
    out = copy(item, np.zeros(x.size, x.dtype), x.reshape(-1), [45, 7], [7, 1], [1, 45])
    np.testing.assert_array_equal(out.view(x.dtype).reshape(45, 7), x.T)


def test_eight_dimensions() -> None:
    shape = (2, 1, 3, 2, 2, 3, 1, 2)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    order = (7, 3, 0, 5, 1, 2, 6, 4)
    y = x.transpose(order)
    strides = [s // 4 for s in y.strides]
    to = [s // 4 for s in np.empty(y.shape, np.float32).strides]
    out = copy(4, np.zeros(x.size, np.float32), x.reshape(-1), list(y.shape), to, strides)
    np.testing.assert_array_equal(out.view(np.float32).reshape(y.shape), y)


def test_gaps_keep_what_they_had() -> None:
    to = np.full((4, 10), 7, np.uint32)
    x = np.arange(12, dtype=np.uint32)
    out = copy(4, to.reshape(-1), x, [4, 3], [10, 1], [3, 1]).view(np.uint32).reshape(4, 10)
    np.testing.assert_array_equal(out[:, :3], x.reshape(4, 3))
    assert (out[:, 3:] == 7).all()


def test_the_assembler_takes_them() -> None:
    if find_tool("ptxas") is None:
        pytest.skip("ptxas is missing")
    used = assemble(ptx().text, SM_80).resources
    assert set(used) == {kernel.name for kernel in builtin_kernels()}
    assert not any(r.spill_loads or r.stack for r in used.values())


def test_parameters_are_what_the_shim_passes() -> None:
    """cuda_launch.c and cuda.h."""
    shapes = {n: (s.threads, s.shared, s.parameters) for n, s in ptx().kernels.items()}
    copies = {f"abqc_copy_{n}": (THREADS, 0, 4 + 3 * MAX_RANK) for n in (1, 2, 4, 8, 16)}
    sets = {f"abqc_set_{n}": (1, 0, 2) for n in SET_BYTES}
    assert shapes == copies | sets
