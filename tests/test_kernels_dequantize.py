"""Strategy `dequantize` against f64 numpy: weight formats, groups, ragged shapes, every ISA."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.float_products.dequantize import Dequantize
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import QuantizedTensor, parse_scheme, quantize_weight
from kernel_cases import compile_jit

TOLERANCE = 2.0**-20  # of the sum of |terms|, docs/numerics.md
ISAS = [pytest.param(isa, id=isa.name) for isa in isas.available()]
STRATEGY = Dequantize()


class Compiled:
    """The kernels for one scheme and K."""

    def __init__(self, isa: Isa, text: str, k: int, scale_bits: int = 16) -> None:
        self.scheme, self.k, self.scale_bits = parse_scheme(text), k, scale_bits
        self.variants = STRATEGY.matmul_kernels(self.spec(1))
        self.jit = compile_jit(isa, [variant.kernel for variant in self.variants])

    def spec(self, n: int) -> MatmulSpec:
        return MatmulSpec(n, self.k, self.scheme, None, scale_bits=self.scale_bits)

    def run(self, x: np.ndarray, weight: QuantizedTensor, bias: np.ndarray) -> np.ndarray:
        m, n = len(x), len(bias)
        kernel = next(v.kernel for v in self.variants if v.covers(m))
        y = np.full(m * n + 16, 7, np.float32)
        packed = STRATEGY.pack_weight(self.spec(n), weight)
        self.jit.run(kernel.name, kernel.grid(m, n), [x.reshape(-1), packed, bias, y[:-16], m, n])
        assert (y[-16:] == 7).all()
        return y[:-16].reshape(m, n)


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def check(y: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    terms = np.abs(x) @ np.abs(weight.T) + np.abs(bias)
    assert (np.abs(y - (x @ weight.T + bias)) <= TOLERANCE * terms).all()


SCHEMES = [
    *(f"w{bits}:channel:{kind}" for bits in range(1, 9) for kind in ("sym", "asym")),
    *("w2*:channel", "wt:channel", "w8:g32", "w4:g128:asym", "w3:g16", "w5:g7:asym", "w1:g48"),
]
FEW = [("w4", 1), ("w4", 300), ("w8:channel", 100), ("w3:g16:asym", 100)]
SHAPES = [(1, 1), (1, 77), (2, 5), (7, 100), (131, 50)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_ragged_shapes(isa, case):
    text, k = case
    rng, compiled = np.random.default_rng(k), Compiled(isa, text, k)
    for m, n in SHAPES:
        x, bias = random(rng, m, k), random(rng, n)
        weight = quantize_weight(random(rng, n, k), compiled.scheme)
        check(compiled.run(x, weight, bias), x, weight.dequantize(), bias)


@pytest.mark.parametrize("text", SCHEMES)
def test_every_format(text):
    rng, compiled = np.random.default_rng(1), Compiled(isas.PLAIN, text, 100)
    weight = quantize_weight(random(rng, 33, 100), compiled.scheme)
    for m in (1, 9):
        x, bias = random(rng, m, 100), random(rng, 33)
        check(compiled.run(x, weight, bias), x, weight.dequantize(), bias)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("text", SCHEMES)
def test_every_format_with_every_isa(isa, text):
    for k in (1, 50, 300):
        rng, compiled = np.random.default_rng(k), Compiled(isa, text, k)
        for m, n in SHAPES:
            x, bias = random(rng, m, k), random(rng, n)
            weight = quantize_weight(random(rng, n, k), compiled.scheme)
            check(compiled.run(x, weight, bias), x, weight.dequantize(), bias)


def test_f32_scales():
    rng, compiled = np.random.default_rng(2), Compiled(isas.PLAIN, "w4:g32:asym", 96, 32)
    weight = quantize_weight(random(rng, 20, 96), compiled.scheme)
    weight = QuantizedTensor(
        weight.codes, weight.scale.astype(np.float32) / 3, weight.zero, compiled.scheme
    )
    for m in (1, 3):
        x, bias = random(rng, m, 96), random(rng, 20)
        check(compiled.run(x, weight, bias), x, weight.dequantize(), bias)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m", [1, 3])
def test_nan_stays_in_its_row(isa, m):
    rng, compiled = np.random.default_rng(3), Compiled(isa, "w4:g32", 50)
    weight = quantize_weight(random(rng, 20, 50), compiled.scheme)
    x, bias = random(rng, m, 50), random(rng, 20)
    x[m - 1, 49] = np.nan
    y = compiled.run(x, weight, bias)
    assert np.isnan(y[m - 1]).all() and np.isfinite(y[: m - 1]).all()


def test_strategy_says_what_it_cannot_do():
    w4, a8 = parse_scheme("w4"), parse_scheme("a8")
    assert STRATEGY.unsupported(MatmulSpec(16, 16, w4, None)) is None
    assert "weights" in (STRATEGY.unsupported(MatmulSpec(16, 16, None, None)) or "")
    assert "activations" in (STRATEGY.unsupported(MatmulSpec(16, 16, w4, a8)) or "")
    assert "rotate" in (STRATEGY.unsupported(MatmulSpec(16, 16, w4, None, 16)) or "")
