"""Emitted Hadamard transforms against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.packing.hadamard import hadamard_kernel
from abqc.codegen.cpu.packing.rounded_rows import rounded_scaled_pack_kernel
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects import hadamard
from abqc.dialects.formats import parse_scheme
from kernel_cases import compile_jit

ISAS = [pytest.param(isa, id=isa.name) for isa in isas.available()]


def transform(isa: Isa, x: np.ndarray, block: int) -> np.ndarray:
    m, k = x.shape
    kernel = hadamard_kernel(k, block)
    jit = compile_jit(isa, [kernel])
    y = np.full(m * k + 16, 7, np.float32)
    jit.run(kernel.name, kernel.grid(m), [x.reshape(-1), y[: m * k], m])
    assert (y[m * k :] == 7).all()
    return y[: m * k].reshape(m, k)


CASES = [
    # k, block
    *((block, block) for block in (1, 2, 4, 8, 16, 32, 64, 128, 384, 576, 1152, 1536, 2048)),
    *((block, block) for block in (12, 24, 40, 56, 80, 96, 112, 160, 320, 448)),
    *((block, block) for block in (44, 52, 60, 76, 240, 344, 672, 688, 14784)),
    (2 * 92, 92),
    (24, 8),
    (9, 1),
    (15 * 32, 32),
    (4864, 256),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_transform_agrees_with_numpy(isa, case):
    k, block = case
    x = np.random.default_rng(k).standard_normal((5, k)).astype(np.float32)
    exact = hadamard.transform(x.astype(np.float64), block)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    assert (np.abs(transform(isa, x, block) - exact) <= 1e-6 * norm).all()


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_every_size_up_to_512(isa):
    for block in hadamard.supported_sizes(512):
        x = np.random.default_rng(block).standard_normal((2, 2 * block)).astype(np.float32)
        exact = hadamard.transform(x.astype(np.float64), block)
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        assert (np.abs(transform(isa, x, block) - exact) <= 1e-6 * norm).all(), block


def test_powers_of_two_are_bit_identical_to_numpy():
    x = np.random.default_rng(0).standard_normal((4, 1024)).astype(np.float32)
    for isa in isas.available():
        assert np.array_equal(transform(isa, x, 1024), hadamard.transform(x, 1024))


def test_nan_stays_in_its_block():
    x = np.ones((1, 64), np.float32)
    x[0, 40] = np.nan
    y = transform(isas.PLAIN, x, 32)
    assert np.isfinite(y[0, :32]).all() and np.isnan(y[0, 32:]).all()


def test_blocks_must_divide_the_row():
    with pytest.raises(ValueError, match="divide"):
        transform(isas.PLAIN, np.ones((1, 48), np.float32), 32)


@pytest.mark.parametrize(
    "kernel_of",
    [Int8Strategy().scaled_pack_kernel, rounded_scaled_pack_kernel],
    ids=["int8", "rounded"],
)
def test_measured_scales_are_those_of_rotated_rows(kernel_of: Callable[[MatmulSpec], Kernel]):
    """Whole numbers in blocks of 16, whose transform is exact."""
    x = np.random.default_rng(0).integers(-9, 10, (3, 48)).astype(np.float32)
    weight, activation = parse_scheme("w8:channel"), parse_scheme("a4:tensor")
    specs = [MatmulSpec(16, 48, weight, activation, hadamard_block=block) for block in (16, 0)]
    kernels = [kernel_of(spec) for spec in specs]
    jit = compile_jit(isas.available()[0], kernels)
    packed = []
    for kernel, values in zip(kernels, (x, hadamard.transform(x, 16)), strict=True):
        q = np.zeros(3 * 4 * 64, np.uint8)
        scale, zero = np.array([1.7], np.float32), np.array([7], np.int32)
        jit.run(kernel.name, kernel.grid(3), [values.reshape(-1), scale, zero, q, 3, 3])
        packed.append(q)
    assert packed[0].any()
    np.testing.assert_array_equal(*packed)
