"""Strategies trellis and trellis-float against numpy: every rate, ISA and ragged shape."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.float_products.dequantize import Dequantize
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.panels.bitplane import BitplaneStrategy
from abqc.codegen.cpu.trellis.float_strategy import TrellisFloatStrategy
from abqc.codegen.cpu.trellis.kernels import MAX_K
from abqc.codegen.cpu.trellis.strategy import TrellisStrategy
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import kernel_assembly
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import trellis
from abqc.dialects.context import make_context
from abqc.dialects.formats import parse_scheme, quantize_weight
from abqc.dialects.mlir import ir
from kernel_cases import (
    DOT_ISAS,
    ISAS,
    Case,
    check_broken_rows,
    check_measured_scales,
    check_rotated_rows,
    compile_jit,
    variant_for,
)

TRELLIS, FLOAT = TrellisStrategy(), TrellisFloatStrategy()
TOLERANCE = 2.0**-20  # of the sum of |terms|, docs/numerics.md
each_isa = pytest.mark.parametrize("isa", DOT_ISAS, ids=lambda isa: isa.name)


@each_isa
@pytest.mark.parametrize(
    ("weight", "activation", "m", "n", "k"),
    [
        ("w2v", "a8", 1, 40, 70),
        ("w2v", "a8", 60, 576, 50),
        ("w3v:g33", "a8:token:sym", 11, 300, 97),
        ("w1v", "a4", 3, 17, 33),
        ("w4v:g64", "a1", 2, 260, 130),
        ("w5v", "a8", 5, 300, 37),
        ("w6v:g20", "a4", 2, 35, 70),
        ("w3v:tensor", "a2", 9, 1, 5),
    ],
)
def test_exact(isa: Isa, weight: str, activation: str, m: int, n: int, k: int) -> None:
    case = Case.random(TRELLIS, isa, weight, activation, m, n, k)
    case.check_accumulators()
    case.check_result()


@pytest.mark.parametrize("m", [1, 2])
def test_sums_that_need_64_bits(m: int) -> None:
    Case.random(TRELLIS, ISAS[0], "w2v", "a8", m, 5, 32780).check_result()


@pytest.mark.slow
@each_isa
@pytest.mark.parametrize("rate", trellis.RATES)
def test_exact_everywhere(isa: Isa, rate: int) -> None:
    rng = np.random.default_rng(rate)
    for bits in (3, 7):
        n, k = (int(x) for x in rng.integers(1, 600, 2))
        for m in (1, 50):
            case = Case.random(TRELLIS, isa, f"w{rate}v", f"a{bits}", m, n, k)
            case.check_accumulators()


@each_isa
def test_rows_are_packed_as_for_int8(isa: Isa) -> None:
    check_broken_rows(TRELLIS, isa, "a8", weight="w2v:g32")
    check_measured_scales(TRELLIS, isa, "a8:image", weight="w2v:g32")
    check_rotated_rows(TRELLIS, isa, 144, 144, weight="w2v")


def float_matmul(
    isa: Isa, text: str, m: int, n: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y of the kernel, the exact one, and the sums of |terms|."""
    rng, scheme = np.random.default_rng(k), parse_scheme(text)
    w, x = (rng.standard_normal((rows, k)).astype(np.float32) for rows in (n, m))
    bias = rng.standard_normal(n).astype(np.float32)
    weight, spec = quantize_weight(w, scheme), MatmulSpec(n, k, scheme, None)
    kernel = variant_for(FLOAT.matmul_kernels(spec), m)
    y = np.full(m * n + 16, 7, np.float32)
    arguments = [x.reshape(-1), FLOAT.pack_weight(spec, weight), bias, y[:-16], m, n]
    compile_jit(isa, [kernel]).run(kernel.name, kernel.grid(m, n), arguments)
    assert (y[-16:] == 7).all()
    exact, values = x.astype(np.float64), weight.dequantize().astype(np.float64)
    terms = np.abs(exact) @ np.abs(values.T) + np.abs(bias)
    return y[:-16].reshape(m, n), exact @ values.T + bias, terms


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("text", "m", "n", "k"),
    [
        ("w2v", 1, 70, 300),
        ("w2v", 5, 280, 301),
        ("w3v:g50", 1, 20, 130),
        ("w3v:g50", 2, 20, 130),
        ("w1v", 1, 300, 7),
        ("w4v", 130, 33, 20),
        ("w5v:g16", 2, 270, 40),
        ("w6v", 9, 20, 33),
    ],
)
def test_float_activations(isa: Isa, text: str, m: int, n: int, k: int) -> None:
    y, exact, terms = float_matmul(isa, text, m, n, k)
    assert (np.abs(y - exact) <= TOLERANCE * terms).all()


def test_true_bits_of_a_weight() -> None:
    scheme = parse_scheme("w2v")
    w = np.random.default_rng(0).standard_normal((576, 1024)).astype(np.float32)
    blob = TRELLIS.pack_weight(
        MatmulSpec(576, 1024, scheme, parse_scheme("a8")), quantize_weight(w, scheme)
    )
    assert 2 + 16 / 1024 < blob.size * 8 / w.size < 2 + 17 / 1024


def test_who_takes_what() -> None:
    vector, scalar = parse_scheme("w2v"), parse_scheme("w2")
    a8 = parse_scheme("a8")
    for strategy in (Int8Strategy(), BitplaneStrategy(), Dequantize()):
        for activation in (a8, None):
            assert strategy.unsupported(MatmulSpec(32, 64, vector, activation))
    assert TRELLIS.unsupported(MatmulSpec(32, 64, vector, a8)) is None
    assert FLOAT.unsupported(MatmulSpec(32, 64, vector, None)) is None
    for strategy in (TRELLIS, FLOAT):
        assert strategy.unsupported(MatmulSpec(32, 64, scalar, a8))
    assert FLOAT.unsupported(MatmulSpec(32, 64, vector, None, hadamard_block=64))
    assert "stack" in str(TRELLIS.unsupported(MatmulSpec(32, MAX_K + 1, vector, a8)))


@pytest.mark.parametrize("isa", isas.ALL, ids=lambda isa: isa.name)
def test_every_form_is_emitted(isa: Isa) -> None:
    """Also those that this machine cannot run."""
    spec = MatmulSpec(40, 64, parse_scheme("w2v"), parse_scheme("a8"))
    (few, _) = TRELLIS.matmul_kernels(spec)
    with make_context(), ir.Location.unknown():
        module = ir.Module.create()
        few.kernel.emit(module, isa)
        assert few.kernel.name in kernel_assembly(module, isa, [few.kernel.name])
