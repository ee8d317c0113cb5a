"""CPU kernels that take codes as bytes and return accumulators, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from abqc.codegen.cpu.float_products.dequantize import Dequantize
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.panels.bitplane import BitplaneStrategy
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import reference
from abqc.dialects.formats import parse_scheme, quantize_weight
from kernel_cases import ISAS, Case, compile_jit, variant_for


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("strategy", "weight", "activation", "m", "n", "k"),
    [
        (Int8Strategy(), "w8", "a8:tensor", 5, 17, 67),
        (Int8Strategy(), "w4:channel:asym", "a8:tensor:sym", 1, 33, 64),
        (BitplaneStrategy(), "w2:channel", "a3:tensor", 3, 18, 70),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_codes_to_accumulators(isa, strategy, weight, activation, m, n, k) -> None:
    rng = np.random.default_rng(k)
    w_scheme, a_scheme = parse_scheme(weight), parse_scheme(activation)
    spec = MatmulSpec(n, k, w_scheme, a_scheme, stored_codes=True, accumulators=True)
    assert strategy.unsupported(spec) is None
    tensor = quantize_weight(rng.standard_normal((n, k), np.float32), w_scheme)
    low, high = a_scheme.format.qmin, a_scheme.format.qmax
    codes = rng.integers(low, high, (m, k), endpoint=True)
    zero = 0 if a_scheme.symmetric else (low + high) // 3
    pack = strategy.scaled_pack_kernel(spec)
    matmul = variant_for(strategy.matmul_kernels(spec), m)
    jit = compile_jit(isa, [pack, matmul])
    q = np.full(m * strategy.row_bytes(spec), 0x55, np.uint8)
    scales, zeros = np.array([0.1], np.float32), np.array([zero], np.int32)
    x = codes.astype(np.uint8).reshape(-1)
    jit.run(pack.name, pack.grid(m), [x, scales, zeros, q, m, m])
    y = np.zeros(m * n, np.int32)
    blob = strategy.pack_weight(spec, tensor)
    jit.run(matmul.name, matmul.grid(m, n), [q, blob, np.zeros(n, np.float32), y, m, n])
    every = np.full(m, zero, np.int32)
    expected = reference.accumulate(codes, every, tensor.codes, tensor.zero, w_scheme)
    np.testing.assert_array_equal(y.reshape(m, n), expected[:, :, 0])


def test_what_has_no_such_kernel_says_so() -> None:
    static = parse_scheme("a8:tensor")
    grouped = MatmulSpec(8, 256, parse_scheme("w4"), static, accumulators=True)
    assert "one group" in str(Int8Strategy().unsupported(grouped))
    binary = MatmulSpec(8, 64, parse_scheme("w8"), parse_scheme("a1:tensor:sym"), stored_codes=True)
    assert "two bits" in str(Int8Strategy().unsupported(binary))
    floats = replace(grouped, weight=parse_scheme("wnf4"))
    assert "no integers" in str(Dequantize().unsupported(floats))


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("weight", ["w3:g128", "w7:g128:asym", "w8:g128"])
@pytest.mark.parametrize("low", [True, False])
def test_groups_of_words_hold_their_extremes(isa, weight, low):
    """Zero points and sums of rows whose codes are all at one end, but one at the other."""
    case = Case.random(Int8Strategy(), isa, weight, "a8", m=5, n=17, k=256)
    case.x[:] = -1.0 if low else 1.0
    case.x[:, 255] = 1.0 if low else -1.0
    case.weight.codes[:] = case.weight.scheme.format.qmin if low else case.weight.scheme.format.qmax
    case.check_accumulators()
