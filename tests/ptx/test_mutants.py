"""Kernels of CUDA C with one thing made wrong, again and again: the PTX machine finds each.

A barrier is taken out, or a store goes one element too far.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from abqc.runtime.ptx import Kernel, PtxFault
from abqc.runtime.ptx.syntax import Instruction, Scope
from cuda_c import N, floats, integers, output


def random_arguments(rng: np.random.Generator) -> dict[str, tuple]:
    """By kernel: grid, block and arguments, so large that all warps of a block have work."""
    rows = floats(rng, 3, 75)
    return {
        "block_sum": (2, 256, floats(rng, N), output(2), N),
        "inclusive_scan": (1, 256, integers(rng, 0, 9, 200), output(200, dtype=np.int32), 200),
        "histogram": (
            *(3, 96, integers(rng, 0, 256, 1000, dtype=np.uint8)),
            *(np.zeros(64, np.uint32), 1000),
        ),
        "softmax": (3, 64, rows, output(3, 75), 75),
        "layer_norm": (3, 64, rows, floats(rng, 75), floats(rng, 75), output(3, 75), 75, 1e-5),
        "bitonic_sort": (2, 128, integers(rng, -1000, 1000, 2, 128)),
        "sum_in_one_launch": (
            *(5, 128, integers(rng, 0, 9, 640)),
            *(output(5, dtype=np.int32), output(1, dtype=np.int32)),
        ),
        "tiled_matmul": (
            *((3, 2), (16, 16), floats(rng, 21, 45), floats(rng, 45, 37)),
            *(output(21, 37), 21, 37, 45),
        ),
        "transpose": ((3, 2), (32, 4), floats(rng, 45, 70), output(70, 45), 45, 70),
        "stencil": ((3, 3), (16, 8), floats(rng, 20, 37), output(20, 37), 37, 20),
        "pipelined_sum": (2, 64, floats(rng, 2, 9, 64, 4), output(2, 64), 9),
        "copy_with_zeros": (1, 32, integers(rng, -9, 9, 54), output(128, dtype=np.int32), 54),
        "mma_through_shared": (
            *(1, 32, floats(rng, 16, 16).astype(np.float16)),
            *(floats(rng, 16, 8).astype(np.float16), output(16, 8)),
        ),
    }


# After the last barrier of these nothing touches shared memory: to leave it out is no fault.
LAST_IS_IDLE = {"softmax", "layer_norm", "pipelined_sum"}
MATRIX = {
    "tiled_matmul",
    "transpose",
    "stencil",
    "pipelined_sum",
    "copy_with_zeros",
    "mma_through_shared",
}
# nvcc unrolls its loop four-fold; the store for a remainder is never executed here.
HAS_IDLE_STORE = {"copy_with_zeros"}
NAMES = tuple(random_arguments(np.random.default_rng(0)))


def instructions(scope: Scope) -> Iterator[Instruction]:
    for item in scope.items:
        if isinstance(item, Scope):
            yield from instructions(item)
        elif isinstance(item, Instruction):
            yield item


def synchronizes(instruction: Instruction) -> bool:
    """Barriers of blocks and warps, and waits for asynchronous copies."""
    return instruction.opcode == "bar" or bool(
        {"wait_group", "wait_all"} & {*instruction.modifiers}
    )


def replaced(scope: Scope, old: Instruction, new: Instruction | None) -> Scope:
    """The same body with `new` (or nothing) instead of `old`."""
    items: list = []
    for item in scope.items:
        if isinstance(item, Scope):
            items.append(replaced(item, old, new))
        elif item is not old:
            items.append(item)
        elif new is not None:
            items.append(new)
    return Scope(tuple(items))


def mutant_of(kernel: Kernel, old: Instruction, new: Instruction | None) -> Kernel:
    body = replaced(kernel.function.body, old, new)
    return Kernel(replace(kernel.function, body=body), kernel.module)


def run(compiled, name: str, kernel: Kernel, rng: np.random.Generator) -> None:
    file = compiled["matrix" if name in MATRIX else "collective"]
    shared_bytes = 2048 if name == "inclusive_scan" else 0
    file.run(kernel, *random_arguments(rng)[name], shared_bytes=shared_bytes)


@pytest.fixture
def kernels(compiled) -> dict[str, Kernel]:
    for file in compiled.values():
        file.mode = "whole"
    return {**compiled["matrix"].module.kernels, **compiled["collective"].module.kernels}


@pytest.mark.parametrize("name", NAMES)
def test_missing_barrier(name: str, compiled, kernels, rng) -> None:
    kernel = kernels[name]
    barriers = [step for step in instructions(kernel.function.body) if synchronizes(step)]
    assert barriers
    for barrier in barriers:
        mutant = mutant_of(kernel, barrier, None)
        if barrier is barriers[-1] and name in LAST_IS_IDLE:
            run(compiled, name, mutant, rng)
            continue
        with pytest.raises(PtxFault, match="race in shared memory") as caught:
            run(compiled, name, mutant, rng)
        assert caught.value.line and caught.value.line != barrier.line


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HAS_IDLE_STORE])
def test_store_off_by_one(name: str, compiled, kernels, rng) -> None:
    """One word further, in every store to global memory: some leave their buffer.

    Where a loop is unrolled, a store may stay inside; then what it left out is found by reading.
    """
    kernel = kernels[name]
    steps = instructions(kernel.function.body)
    for store in (step for step in steps if step.opcode == "st" and "global" in step.modifiers):
        address, *values = store.operands
        further = replace(address, offset=address.offset + 4)
        mutant = mutant_of(kernel, store, replace(store, operands=(further, *values)))
        with pytest.raises(PtxFault, match="global memory") as caught:
            run(compiled, name, mutant, rng)
        if caught.value.kernel == name:
            assert caught.value.line == store.line
        else:
            assert "never written" in caught.value.reason
