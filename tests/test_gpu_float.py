"""Strategy `float` on a GPU, in the PTX machine, against f64 numpy."""

from __future__ import annotations

import gpu_kernels
import ml_dtypes
import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_75, SM_80, GpuArch
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.float_products.matmul import FloatMatmul
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import Float, parse_scheme

TOLERANCE = 2.0**-20  # of the sum of |terms|, docs/numerics.md
STRATEGY = FloatMatmul()
SCHEDULES = STRATEGY.schedules(MatmulSpec(1, 1, None, None), SM_80)


BF16 = np.dtype(ml_dtypes.bfloat16)
ELEMENTS: dict[np.dtype, Float] = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float16): "f16",
    BF16: "bf16",
}


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def check(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | float = 0.0) -> None:
    """Within `TOLERANCE` of the f64 result, relative to the sum of the terms' magnitudes."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    exact = x @ np.swapaxes(w, -1, -2) + bias
    terms = np.abs(x) @ np.swapaxes(np.abs(w), -1, -2) + np.abs(bias)
    assert (np.abs(y - exact) <= TOLERANCE * terms).all()


def run(
    schedule: Schedule, x: np.ndarray, w: np.ndarray, bias: np.ndarray, arch: GpuArch = SM_80
) -> np.ndarray:
    (m, k), n = x.shape, len(w)
    spec = MatmulSpec(n, k, None, None, weight_float=ELEMENTS[w.dtype])
    kernel = STRATEGY.kernel(spec, schedule)
    y = gpu_kernels.output(m * n)
    arguments = [x, STRATEGY.pack_weight(spec, w), bias, y, m, n]
    return gpu_kernels.take(gpu_kernels.run(kernel, kernel.grid(m, n), arguments, arch)[3]).reshape(
        m, n
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("k", [1, 7, 16, 130])
def test_float_matmul(schedule, k):
    rng = np.random.default_rng(k)
    rows = schedule.max_rows
    for m, n in [(1, 1), (3, 50), (66, 65) if k == 16 else (2, 17)]:
        m = min(m, rows) if rows else m
        x, w, bias = random(rng, m, k), random(rng, n, k), random(rng, n)
        check(run(schedule, x, w, bias), x, w, bias)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("arch", [SM_75, SM_80], ids=lambda a: a.name)
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
def test_weights_of_16_bits(schedule, arch, dtype):
    rng = np.random.default_rng(2)
    m = schedule.max_rows or 66
    for k in (9, 40, 44):
        x, w, bias = random(rng, m, k), random(rng, 19, k).astype(dtype), random(rng, 19)
        w[3, k - 1], w[4, 0] = 6e-8, np.inf
        y = run(schedule, x, w, bias, arch)
        assert np.isinf(y[:, 4]).all()
        finite = np.arange(19) != 4
        check(y[:, finite], x, w[finite], bias[finite])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_without_asynchronous_copies(schedule):
    rng = np.random.default_rng(1)
    m = schedule.max_rows or 65
    x, w, bias = random(rng, m, 41), random(rng, 20, 41), random(rng, 20)
    check(run(schedule, x, w, bias, SM_75), x, w, bias)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_nan_and_infinity_stay_in_their_row_and_column(schedule):
    rng = np.random.default_rng(0)
    m = schedule.max_rows or 5
    x, w, bias = random(rng, m, 33), random(rng, 50, 33), random(rng, 50)
    w[49, 32] = np.nan
    x[m - 1, 32] = np.inf
    y = run(schedule, x, w, bias)
    assert np.isnan(y[:, 49]).all()
    assert np.isinf(y[m - 1, :49]).all()
    check(y[: m - 1, :49], x[: m - 1], w[:49], bias[:49])


def test_float_strategy_says_what_it_cannot_do():
    assert STRATEGY.unsupported(MatmulSpec(16, 16, None, None), SM_80) is None
    w4, a8 = parse_scheme("w4"), parse_scheme("a8")
    assert "weights" in (STRATEGY.unsupported(MatmulSpec(16, 16, w4, None), SM_80) or "")
    assert "activations" in (STRATEGY.unsupported(MatmulSpec(16, 16, None, a8), SM_80) or "")
    assert "rotate" in (STRATEGY.unsupported(MatmulSpec(16, 16, None, None, 16), SM_80) or "")


def test_features_count_padding():
    tile = STRATEGY.features(MatmulSpec(100, 130, None, None), SCHEDULES[-1], 70)
    assert tile.blocks == 4 and tile.f32_ops == 2 * 128 * 128 * 144
    row = STRATEGY.features(MatmulSpec(100, 130, None, None), SCHEDULES[0], 1)
    assert row.blocks == 7 and row.weight_bytes == 100 * 132 * 4


@pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
@pytest.mark.parametrize("arch", gpu_kernels.SAMPLE, ids=lambda arch: arch.name)
def test_no_spills(arch):
    spec = MatmulSpec(100, 130, None, None)
    assert not gpu_kernels.spills(arch, *(STRATEGY.kernel(spec, s) for s in SCHEDULES))
