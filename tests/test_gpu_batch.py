"""Products of two activations on a GPU, in the PTX machine, against f64 numpy."""

from __future__ import annotations

import gpu_kernels
import ml_dtypes
import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_75, SM_80, GpuArch
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.float_products.batch_matmul import batch_matmul_kernels
from abqc.dialects.formats import Float
from test_gpu_float import check, random

BATCHES = [
    # batch, m, n, k, group
    (1, 1, 1, 1, 1),
    (3, 1, 70, 33, 1),
    (4, 1, 64, 300, 2),
    (2, 3, 50, 7, 1),
    (3, 66, 65, 20, 3),
    (3, 2, 5, 77, 2),
    (2, 2, 3, 0, 1),
    (2, 1, 3, 0, 1),
]


ELEMENTS: dict[str, Float] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def run_batch(
    a: np.ndarray,
    b: np.ndarray,
    group: int,
    transposed: bool,
    room: int = 5,
    arch: GpuArch = SM_80,
) -> np.ndarray:
    """`a` [batch, m, k] times `b` [batches of b, n, k], stored as the kernel wants it."""
    (batch, m, k), n = a.shape, b.shape[1]
    pitch = n * k + room  # room between the matrices, which holds what must not be read
    stored = np.full((len(b), pitch), np.nan, b.dtype)
    stored[:, : n * k] = (b if transposed else b.swapaxes(1, 2)).reshape(len(b), -1)
    variants = batch_matmul_kernels(transposed, ELEMENTS[b.dtype.name])
    kernel = next(v.kernel for v in variants if v.covers(m))
    arguments = [a, stored, gpu_kernels.output(batch * m * n), m, n, k, group, pitch]
    y = gpu_kernels.run(kernel, kernel.grid(batch, m, n), arguments, arch)[2]
    return gpu_kernels.take(y).reshape(batch, m, n)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_batch_matmul(shape, transposed):
    batch, m, n, k, group = shape
    rng = np.random.default_rng(m)
    a, b = random(rng, batch, m, k), random(rng, -(-batch // group), n, k)
    y = run_batch(a, b, group, transposed)
    check(y, a, np.repeat(b, group, axis=0)[:batch])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize(("m", "k"), [(1, 33), (1, 36), (3, 20)])
def test_halves(m, k, dtype, transposed):
    rng = np.random.default_rng(m)
    a, b = random(rng, 4, m, k), random(rng, 2, 21, k).astype(dtype)
    y = run_batch(a, b, 2, transposed, room=4)
    check(y, a, np.repeat(b.astype(np.float32), 2, axis=0))


@pytest.mark.parametrize("room", [0, 4])
def test_aligned_rows_take_vectors(room):
    rng = np.random.default_rng(room)
    a, b = random(rng, 2, 1, 204), random(rng, 2, 21, 204)
    check(run_batch(a, b, 1, True, room), a, b)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("m", [1, 3])
def test_without_asynchronous_copies(m, transposed):
    rng = np.random.default_rng(m)
    a, b = random(rng, 2, m, 37), random(rng, 2, 20, 37)
    check(run_batch(a, b, 1, transposed, arch=SM_75), a, b)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("m", [1, 3])
def test_nan_stays_in_its_column(m, transposed):
    rng = np.random.default_rng(0)
    a, b = random(rng, 2, m, 40), random(rng, 2, 50, 40)
    b[1, 49, 39] = np.nan
    y = run_batch(a, b, 1, transposed)
    assert np.isnan(y[1, :, 49]).all()
    assert np.isfinite(y[0]).all() and np.isfinite(y[1, :, :49]).all()


@pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
@pytest.mark.parametrize("arch", gpu_kernels.SAMPLE, ids=lambda arch: arch.name)
def test_no_spills(arch):
    kernels = [v.kernel for t in (False, True) for v in batch_matmul_kernels(t)]
    assert not gpu_kernels.spills(arch, *kernels)
