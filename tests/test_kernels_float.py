"""Float matmul kernels against f64 numpy: ragged shapes, every ISA, NaN and infinity."""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.float_products.batch_matmul import batch_matmul_kernels
from abqc.codegen.cpu.float_products.matmul import FloatMatmul
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import Float, parse_scheme
from kernel_cases import Kernels, compile_jit

TOLERANCE = 2.0**-20  # of the sum of |terms|, docs/numerics.md
ISAS = [pytest.param(isa, id=isa.name) for isa in isas.available()]
STRATEGY = FloatMatmul()


DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
ELEMENTS = list(DTYPES)


def element_of(array: np.ndarray) -> Float:
    return next(name for name, dtype in DTYPES.items() if array.dtype == dtype)


@cache
def float_jit(isa: Isa, k: int, element: Float) -> Kernels:
    variants = STRATEGY.matmul_kernels(MatmulSpec(1, k, None, None, weight_float=element))
    return compile_jit(isa, [variant.kernel for variant in variants])


def run_float(isa: Isa, x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """y, after checking that nothing behind it was written."""
    (m, k), n = x.shape, len(w)
    spec = MatmulSpec(n, k, None, None, weight_float=element_of(w))
    kernel = next(v.kernel for v in STRATEGY.matmul_kernels(spec) if v.covers(m))
    y = np.full(m * n + 16, 7, np.float32)
    arguments = [x.reshape(-1), STRATEGY.pack_weight(spec, w), bias, y[: m * n], m, n]
    float_jit(isa, k, element_of(w)).run(kernel.name, kernel.grid(m, n), arguments)
    assert (y[m * n :] == 7).all()
    return y[: m * n].reshape(m, n)


def check(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | float = 0.0) -> None:
    """Within `TOLERANCE` of the f64 result, relative to the sum of the terms' magnitudes."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    exact = x @ np.swapaxes(w, -1, -2) + bias
    terms = np.abs(x) @ np.swapaxes(np.abs(w), -1, -2) + np.abs(bias)
    assert (np.abs(y - exact) <= TOLERANCE * terms).all()


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


SHAPES = [(1, 1), (1, 16), (1, 77), (2, 5), (3, 48), (7, 100), (64, 32), (65, 49), (131, 130)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("k", [1, 7, 8, 33, 384])
def test_float_matmul(isa, k, element):
    rng = np.random.default_rng(k)
    for m, n in SHAPES:
        x, w, bias = random(rng, m, k), random(rng, n, k), random(rng, n)
        w = w.astype(DTYPES[element])
        check(run_float(isa, x, w, bias), x, w, bias)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("m", [1, 5])
def test_nan_and_infinity_stay_in_their_row_and_column(isa, m, element):
    rng = np.random.default_rng(0)
    x, w, bias = random(rng, m, 33), random(rng, 50, 33), random(rng, 50)
    w = w.astype(DTYPES[element])
    w[49, 32], w[48, 1] = np.nan, np.inf
    x[m - 1, 0] = np.inf
    y = run_float(isa, x, w, bias)
    assert np.isnan(y[:, 49]).all()
    assert not np.isfinite(y[:, 48]).any()
    assert np.isinf(y[m - 1, :48]).all()
    check(y[: m - 1, :48], x[: m - 1], w[:48], bias[:48])


def test_float_strategy_says_what_it_cannot_do():
    spec = MatmulSpec(16, 16, None, None)
    assert STRATEGY.unsupported(spec) is None
    w4, a8 = parse_scheme("w4"), parse_scheme("a8")
    assert "weights" in (STRATEGY.unsupported(MatmulSpec(16, 16, w4, None)) or "")
    assert "activations" in (STRATEGY.unsupported(MatmulSpec(16, 16, None, a8)) or "")
    assert "rotate" in (STRATEGY.unsupported(MatmulSpec(16, 16, None, None, 16)) or "")


@cache
def batch_jit(isa: Isa, transposed: bool, element: Float) -> Kernels:
    return compile_jit(isa, [v.kernel for v in batch_matmul_kernels(transposed, element)])


def run_batch(isa: Isa, a: np.ndarray, b: np.ndarray, group: int) -> np.ndarray:
    """`a` [batch, m, k] times `b` [batches of b, n, k], stored as the kernel wants it."""
    y = []
    (batch, m, k), n, element = a.shape, b.shape[1], element_of(b)
    for transposed in (False, True):
        pitch = n * k + 5  # room between the matrices, which holds what must not be read
        stored = np.full((len(b), pitch), np.nan, b.dtype)
        stored[:, : n * k] = (b if transposed else b.swapaxes(1, 2)).reshape(len(b), -1)
        stored = stored.reshape(-1)
        kernel = next(v.kernel for v in batch_matmul_kernels(transposed, element) if v.covers(m))
        out = np.full(batch * m * n + 16, np.nan, np.float32)
        arguments = [a.reshape(-1), stored, out[:-16], m, n, k, group, pitch]
        batch_jit(isa, transposed, element).run(kernel.name, kernel.grid(batch, m, n), arguments)
        assert np.isnan(out[-16:]).all()
        y.append(out[:-16].reshape(batch, m, n))
    return np.stack(y)


BATCHES = [
    # batch, m, n, k, group
    (1, 1, 1, 1, 1),
    (3, 1, 70, 33, 1),
    (4, 1, 64, 300, 2),
    (2, 3, 50, 7, 1),
    (6, 131, 49, 260, 3),
    (2, 130, 130, 32, 1),
    (3, 2, 5, 513, 3),
    (2, 2, 3, 0, 1),
    (2, 1, 3, 0, 1),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_batch_matmul(isa, shape, element):
    batch, m, n, k, group = shape
    rng = np.random.default_rng(m)
    a, b = random(rng, batch, m, k), random(rng, -(-batch // group), n, k)
    b = b.astype(DTYPES[element])
    check(run_batch(isa, a, b, group), a, np.repeat(b, group, axis=0)[:batch])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m", [1, 3])
def test_batch_matmul_keeps_nan_in_its_column(isa, m):
    rng = np.random.default_rng(0)
    a, b = random(rng, 2, m, 40), random(rng, 2, 50, 40)
    b[1, 49, 39] = np.nan
    y = run_batch(isa, a, b, 1)
    assert np.isnan(y[:, 1, :, 49]).all()
    assert np.isfinite(y[:, 0]).all() and np.isfinite(y[:, 1, :, :49]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 100, 1000])
def test_batch_matmul_adds_the_terms_of_every_column_in_one_order(isa, n):
    """The last, partial block of columns too: equal columns of weights give equal results."""
    rng = np.random.default_rng(n)
    a, column = random(rng, 1, 1, 777), random(rng, 777)
    y = run_batch(isa, a, np.broadcast_to(column, (1, n, 777)).copy(), 1)
    assert (y == y[..., :1]).all()
