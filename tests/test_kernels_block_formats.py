"""CPU kernels of formats of tables and blocks, against the reference: exact, ragged, every ISA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from abqc.codegen.cpu.float_products.dequantize import Dequantize
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.panels.bitplane import BitplaneStrategy
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects import reference
from abqc.dialects.formats import FORMATS, NumberFormat, parse_scheme, round_activation
from kernel_cases import ISAS, Case, compile_jit, variant_for
from test_kernels_dequantize import Compiled, check, random

each_isa = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
# A minifloat of integers for each width, every type of scale, groups with ragged ends.
INTEGERS = ["wmxfp4", "wnvfp4", "wfp4:channel", "wmxfp6", "wbfp3:g48", "wt:g20:e8m0", "w8:g9:e4m3"]
# Short groups have no sums of their codes stored.
SHORT = ["w4:g32", "w3:g33:asym", "w1:g48"]
DIGITS = ["wt5:g33", "wt5"]
FLOATS = ["wmxfp8", "wfp8e5m2", "wfp6e3m2:g16:e4m3", "wnf4", "wnf4:g7:e8m0"]


def each(texts: list[str], few: list[str]) -> list[Any]:
    """The best ISA with every format, the others with a few."""
    pairs = [(isa, text) for isa in ISAS for text in (texts if isa == ISAS[0] else few)]
    return [pytest.param(isa, text, id=f"{text}-{isa.name}") for isa, text in pairs]


@pytest.mark.parametrize(
    ("isa", "text"), each([*INTEGERS, *SHORT, *DIGITS], ["wmxfp6", "w4:g32", "wt5"])
)
def test_integers_are_multiplied_exactly(isa: Isa, text: str) -> None:
    """Both row variants, unsigned codes with zero points and signed ones."""
    for m, activation in ((1, "a8"), (5, "a8:token:sym")):
        case = Case.random(Int8Strategy(), isa, text, activation, m, 37, 150, seed=m)
        case.check_result()
    case.check_accumulators()


@each_isa
def test_every_code_is_looked_up(isa: Isa) -> None:
    for text in ("wfp4:channel", "wfp6:channel"):
        case = Case.random(Int8Strategy(), isa, text, "a8", 3, 16, 64)
        bits = case.weight.scheme.bits
        case.weight.codes[:] = np.arange(16 * 64).reshape(16, 64) % (1 << bits)  # -0 among them
        case.check_accumulators()


@pytest.mark.parametrize("text", ["wbfp3:g48", "w8:g9:e4m3", "w3:g33:asym", "w1:g48"])
def test_planes_take_scales_of_one_byte_and_short_groups(text: str) -> None:
    for m, activation in ((1, "a1:token:sym"), (5, "a4")):
        case = Case.random(BitplaneStrategy(), ISAS[0], text, activation, m, 20, 150)
        case.check_accumulators()
        case.check_result()


@pytest.mark.parametrize(("isa", "text"), each([*INTEGERS, *FLOATS, *DIGITS], ["wnvfp4", "wnf4"]))
def test_float_activations(isa: Isa, text: str) -> None:
    k = 300  # more than a piece that is decoded at once
    compiled = Compiled(isa, text, k)
    rng = np.random.default_rng(3)
    for m in (1, 7):
        x, bias = random(rng, m, k), random(rng, 35)
        case = Case.random(Dequantize(), isa, text, "a8", 1, 35, k, seed=m)
        check(compiled.run(x, case.weight, bias), x, case.weight.dequantize(), bias)


@pytest.mark.parametrize(("isa", "text"), each(["wmxfp8", "wnf4:g7:e8m0"], ["wmxfp8"]))
def test_quantized_activations_of_weights_without_integers(isa: Isa, text: str) -> None:
    """Rows are packed as what their codes stand for; a broken row is NaN."""
    for m in (1, 6):
        case = Case.random(Dequantize(), isa, text, "a8", m, 21, 100)
        codes, scale, zero = case.activation()
        expected = reference.matmul(codes, scale, zero, case.weight, case.bias)
        rounded = (codes.astype(np.float32) - zero[:, None]) * scale[:, None]
        y = case.run(accumulators=False)
        check(y, rounded, case.weight.dequantize(), case.bias)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    case.x[2, 5] = np.nan
    y = case.run(accumulators=False)
    assert np.isnan(y[2]).all() and np.isfinite(np.delete(y, 2, axis=0)).all()


def test_rows_that_share_a_scale() -> None:
    strategy, isa = Dequantize(), ISAS[0]
    case = Case.random(strategy, isa, "wnf4", "a8:tensor", 6, 20, 70)
    codes, scale, zero = case.activation()
    pack = strategy.scaled_pack_kernel(case.spec)
    matmul = variant_for(strategy.matmul_kernels(case.spec), 6)
    jit = compile_jit(isa, [pack, matmul])
    q = np.zeros(6 * strategy.row_bytes(case.spec), np.uint8)
    jit.run(pack.name, pack.grid(6), [case.x.reshape(-1), scale[:1], zero[:1], q, 6, 6])
    y = np.zeros(6 * 20, np.float32)
    blob = strategy.pack_weight(case.spec, case.weight)
    jit.run(matmul.name, matmul.grid(6, 20), [q, blob, case.bias, y, 6, 20])
    expected = reference.matmul(codes, scale, zero, case.weight, case.bias)
    np.testing.assert_allclose(y.reshape(6, 20), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "row", [row for row in FORMATS.values() if row.kind != "trellis"], ids=lambda row: row.name
)
def test_the_target_has_a_strategy_for_every_pair(row: NumberFormat) -> None:
    weight = parse_scheme(f"w{row.width}{'' if row.symmetric else ':asym'}")
    for activation in (None, parse_scheme("a8"), parse_scheme("a1:sym")):
        spec = MatmulSpec(40, 100, weight, activation)
        (choice,) = CpuTarget().choose([spec], nodes=["node"])
        assert choice.strategy.unsupported(spec) is None


BLOCKS = ["abfp8", "abfp3:g64", "amxfp8", "amxfp4", "amxfp6e3m2", "amxfp8e5m2"]


@pytest.mark.parametrize(("isa", "text"), each(BLOCKS, ["amxfp8"]))
def test_blocks_of_activations(isa: Isa, text: str) -> None:
    """What is packed is what the reference rounds to, and it is multiplied as floats are."""
    case = Case.random(Dequantize(), isa, "w4:g40", text, 6, 21, 150)
    case.x[:3] *= np.exp2([[-120], [30], [0]])
    case.x[4, 32:64] = 0
    pack = Dequantize().pack_kernel(case.spec)
    assert pack is not None
    q = np.full(4 * case.x.size, 0x55, np.uint8)
    compile_jit(isa, [pack]).run(pack.name, pack.grid(6), [case.x.reshape(-1), q, 6])
    rounded = round_activation(case.x, parse_scheme(text))
    np.testing.assert_array_equal(q.view(np.float32).reshape(6, 150), rounded)
    check(case.run(accumulators=False), rounded, case.weight.dequantize(), case.bias)
    case.x[2, 5] = np.nan
    y = case.run(accumulators=False)
    assert np.isnan(y[2]).all() and np.isfinite(np.delete(y, 2, axis=0)).all()
