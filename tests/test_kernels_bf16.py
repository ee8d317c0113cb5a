"""Strategy `bf16` against f64 numpy, on every ISA and with tile registers in memory."""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.bf16.strategy import Bf16Strategy
from abqc.codegen.cpu.bf16.weights import bf16_bits
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import parse_scheme, quantize_weight
from kernel_cases import Kernels, compile_jit

STRATEGY = Bf16Strategy()
ISAS = (
    *isas.available(),
    *(isa for isa in isas.extending() if isa.adds == "bf16"),
    isas.tiled()[0],
)
each_isa = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


@cache
def jit(isa: Isa, spec: MatmulSpec) -> Kernels:
    pack = STRATEGY.pack_kernel(spec)
    assert pack is not None
    return compile_jit(isa, [pack, *(v.kernel for v in STRATEGY.matmul_kernels(spec))])


def run(isa: Isa, spec: MatmulSpec, x: np.ndarray, blob: np.ndarray, bias: np.ndarray):
    """y, after checking that nothing behind it was written."""
    m, n = len(x), spec.n
    pack = STRATEGY.pack_kernel(spec)
    assert pack is not None
    kernel = next(v.kernel for v in STRATEGY.matmul_kernels(spec) if v.covers(m))
    code = jit(isa, MatmulSpec(1, spec.k, spec.weight, None, half="bf16"))
    q = np.full(m * STRATEGY.row_bytes(spec), 0x55, np.uint8)
    code.run(pack.name, pack.grid(m), [x.reshape(-1), q, m])
    y = np.full(m * n + 16, 7, np.float32)
    code.run(kernel.name, kernel.grid(m, n), [q, blob, bias, y[:-16], m, n])
    assert (y[-16:] == 7).all()
    return y[:-16].reshape(m, n)


def check(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> None:
    """Within the bound of docs/numerics.md."""
    x, k = rounded(x), x.shape[1]
    terms = np.abs(x) @ np.abs(w).T + np.abs(bias)
    assert (np.abs(y - (x @ w.T + bias)) <= (k + 2) * 2.0**-24 * terms).all()


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


SHAPES = [(1, 1), (1, 77), (2, 5), (5, 48), (7, 100), (16, 33), (33, 49), (131, 130)]


@each_isa
@pytest.mark.parametrize("k", [1, 7, 32, 100, 384, 2100])
def test_floats(isa, k):
    rng = np.random.default_rng(k)
    for m, n in SHAPES:
        x, w, bias = random(rng, m, k), random(rng, n, k), random(rng, n)
        spec = MatmulSpec(n, k, None, None, half="bf16")
        check(run(isa, spec, x, STRATEGY.pack_weight(spec, w), bias), x, rounded(w), bias)


@each_isa
@pytest.mark.parametrize("m", [1, 6, 20])
def test_nan_and_infinity_stay_in_their_row_and_column(isa, m):
    rng = np.random.default_rng(0)
    x, w, bias = random(rng, m, 33), random(rng, 50, 33), random(rng, 50)
    w[49, 32], w[48, 1] = np.nan, np.inf
    x[m - 1, 0] = np.inf
    spec = MatmulSpec(50, 33, None, None, half="bf16")
    y = run(isa, spec, x, STRATEGY.pack_weight(spec, w), bias)
    assert np.isnan(y[:, 49]).all()
    assert not np.isfinite(y[:, 48]).any()
    assert np.isinf(y[m - 1, :48]).all()
    check(y[: m - 1, :48], x[: m - 1], rounded(w[:48]), bias[:48])


@each_isa
def test_rows_are_rounded_to_nearest_even(isa):
    tie = np.float32(1 + 2**-8)
    x = np.array([tie, 1 + 3 * 2**-8, np.nextafter(tie, 2), -tie, 1e-40, np.inf], np.float32)
    x = np.concatenate([x, [np.float32(3.4e38), np.nan]]).astype(np.float32)[None]
    spec = MatmulSpec(1, x.size, None, None, half="bf16")
    pack = STRATEGY.pack_kernel(spec)
    q = np.full(STRATEGY.row_bytes(spec), 0x55, np.uint8)
    jit(isa, spec).run(pack.name, pack.grid(1), [x.reshape(-1), q, 1])
    found = q.view(np.uint16)
    np.testing.assert_array_equal(found[: x.size - 1], bf16_bits(x[0])[:-1])
    assert np.isnan(found[x.size - 1 : x.size].view(ml_dtypes.bfloat16)).all()
    assert not found[x.size :].any()
    expected = x[0].astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(bf16_bits(x[0])[:-1], expected[:-1])


def check_codes(isa: Isa, text: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(m)
    x, w, bias = random(rng, m, k), random(rng, n, k), random(rng, n)
    scheme = parse_scheme(text)
    quantized = quantize_weight(w, scheme)
    spec = MatmulSpec(n, k, scheme, None, half="bf16")
    values = quantized.dequantize().astype(np.float64)
    if scheme.format.table is not None:  # rounded to bf16 itself
        table = rounded(np.array(scheme.format.table, np.float32))
        scales = np.repeat(quantized.scale, scheme.group_size or k, axis=1)[:, :k]
        values = table[quantized.codes] * scales
    y = run(isa, spec, x, STRATEGY.pack_weight(spec, quantized), bias)
    check(y, x, values, bias)


FORMATS = ("w1", "w2*", "wt", "wt5:g80", "w3:g33", "w4", "w4:g32:asym", "w5:g7", "w8", "w8:asym")
FORMATS += ("wmxfp4", "wnvfp4", "wnf4", "wfp8", "wfp6e3m2:g100", "w2v", "w4v:g100", "w3v:g33")


# How codes are decoded is tested with every instruction set in test_kernels_dequantize.py: here
# with those that have products of bf16 pairs, and one format of each kind with the others.
KINDS = ("wt5:g80", "w3:g33", "w4:g32:asym", "wnvfp4", "w3v:g33")
OF_PAIRS = [isa for isa in ISAS if isa.adds == "bf16"] or [ISAS[0]]
PAIRS = [
    pytest.param(
        isa,
        text,
        marks=() if text in KINDS or isa in (*OF_PAIRS, ISAS[-1]) else pytest.mark.slow,
        id=f"{text}-{isa.name}",
    )
    for isa in ISAS
    for text in FORMATS
]


@pytest.mark.parametrize(("isa", "text"), PAIRS)
def test_codes(isa, text):
    for m, n, k in ((1, 20, 300), (3, 50, 300), (21, 33, 75)):
        check_codes(isa, text, m, n, k)


@each_isa
def test_codes_in_several_segments_of_a_group(isa):
    check_codes(isa, "w2:channel", 1, 17, 33000)
    check_codes(isa, "w2:channel", 2, 17, 33000)


def test_infinities_count_for_their_group_alone():
    """Groups of odd length: a pair never has terms of two."""
    x = np.ones((2, 66), np.float32)
    x[0, 33] = np.inf
    spec = MatmulSpec(16, 66, parse_scheme("w4:g33"), None, half="bf16")
    quantized = quantize_weight(np.ones((16, 66), np.float32), spec.weight)
    y = run(ISAS[0], spec, x, STRATEGY.pack_weight(spec, quantized), np.zeros(16, np.float32))
    assert (y[0] == np.inf).all() and np.isfinite(y[1]).all()


def test_the_strategy_says_what_it_cannot_do():
    assert "ask for bf16" in (STRATEGY.unsupported(MatmulSpec(16, 16, None, None)) or "")
    a8 = MatmulSpec(16, 16, parse_scheme("w4"), parse_scheme("a8"), half="bf16")
    assert "ask for bf16" in (STRATEGY.unsupported(a8) or "")
    assert "rotate" in (STRATEGY.unsupported(MatmulSpec(16, 16, None, None, 16, half="bf16")) or "")
    assert STRATEGY.unsupported(MatmulSpec(16, 16, None, None, half="bf16")) is None
