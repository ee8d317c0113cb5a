"""GPU kernels of formats of tables and blocks, in the PTX machine, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from abqc.codegen.gpu.matmul.dequantize import DequantizeMatmul
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.packing.layout import FloatRows
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.dialects.formats import (
    FORMATS,
    NumberFormat,
    parse_scheme,
    quantize_weight,
    round_activation,
)
from gpu_rows import Case, schedule
from gpu_tile_cases import TileCase
from test_gpu_gather import check, check_tied, gather, table, table_layout

TILE = Schedule("tile", 16, 64, 64, 1, 2, 1, 2)
# The width, the mantissa, the type of scales, groups that end in the middle of a tile.
INTEGERS = ["wmxfp4", "wnvfp4", "wmxfp6", "wfp4:channel", "wbfp4:g48", "w8:g9:e4m3"]
DIGITS = ["wt5", "wt5:g33"]
FLOATS = ["wmxfp8", "wfp8e5m2", "wfp6e3m2:g16:e4m3", "wnf4", "wnf4:channel:e8m0"]
TEXTS = [*INTEGERS, *FLOATS, *DIGITS]


@pytest.mark.parametrize("number", range(len(TEXTS)), ids=TEXTS.__getitem__)
def test_tiles(number: int) -> None:
    """Integers are exact, accumulators included; floats within f32 sums of 16-bit products."""
    for activation, element in (("a8", "f16"), (None, ("f16", "bf16")[number % 2])):
        tile = replace(TILE, block_k=160) if TEXTS[number] in DIGITS else TILE
        TileCase.random(TEXTS[number], activation, (17, 66, 100), tile, element=element).check()


@pytest.mark.parametrize("number", range(len(TEXTS)), ids=TEXTS.__getitem__)
def test_few_rows(number: int) -> None:
    """On CUDA cores and split, by `mma.sync`."""
    for activation, rows, warps, split in (
        (("a8", "f16")[number % 2], 1, (1, 2), 2),
        (("bf16", "a5:token:sym")[number % 2], 8, (1, 1), 1),
    ):
        case = Case.random(TEXTS[number], activation, min(rows, 3), 37, 130)
        case.check(schedule(case.spec, rows, warps, split))


@pytest.mark.parametrize("text", ["wmxfp8", "wnf4"])
@pytest.mark.parametrize("activation", ["a8", "a8:token:sym"])
def test_codes_are_packed_as_floats(text: str, activation: str) -> None:
    """What the packing kernel writes gives what rows packed by numpy give."""
    case = TileCase.random(text, activation, (5, 64, 77), TILE)
    np.testing.assert_array_equal(case.result(on_device=True), case.result())


def test_every_code_is_looked_up() -> None:
    for text in ("wfp4:channel", "wfp6:channel"):
        case = TileCase.random(text, "a8:token:sym", (3, 64, 64), TILE)
        bits = case.weight.scheme.bits
        case.weight.codes[:] = np.arange(64 * 64).reshape(64, 64) % (1 << bits)  # -0 among them
        case.check()


@pytest.mark.parametrize("text", ["wmxfp4", "wmxfp6", "wfp8e5m2", "wnvfp4", "wnf4", "wbfp3:g16"])
def test_gathers(text: str) -> None:
    scheme = parse_scheme(text)
    codes = quantize_weight(table(75), scheme)
    check(gather(table_layout(75, scheme), codes), codes.dequantize())
    check_tied(text, "a8" if scheme.format.has_integers else None, 75)


@pytest.mark.parametrize(
    "row", [row for row in FORMATS.values() if row.kind != "trellis"], ids=lambda row: row.name
)
def test_the_target_has_a_strategy_for_every_pair(row: NumberFormat) -> None:
    weight = parse_scheme(f"w{row.width}{'' if row.symmetric else ':asym'}")
    target = CudaTarget.named("sm_80")
    assert target is not None
    for activation in (None, parse_scheme("a8"), parse_scheme("a1:sym")):
        spec = MatmulSpec(40, 100, weight, activation)
        (choice,) = target.choose([spec], nodes=["node"])
        assert choice.strategy.unsupported(spec) is None


@pytest.mark.parametrize("text", ["abfp8", "abfp3:g64", "amxfp8", "amxfp4:sym", "abfp5:g128"])
def test_blocks_of_activations(text: str) -> None:
    """Rows are packed as what the reference rounds to, which bf16 holds exactly."""
    case = TileCase.random("w4:g32", text, (5, 64, 230), TILE)
    case.strategy = DequantizeMatmul("bf16")
    case.x[:3] *= np.exp2([[-100], [30], [0]])
    case.x[4, 32:64] = 0
    values = round_activation(case.x, parse_scheme(text))
    expected = FloatRows.of(case.spec, "bf16").pack_reference(values)
    bits = case._packed().view(np.uint16).astype(np.uint32) << 16
    packed = bits.view(np.float32).reshape(5, -1)[:, :230]
    np.testing.assert_array_equal(packed, values)
    assert expected.nbytes == 2 * bits.size
    weight = case.weight.dequantize().astype(np.float64)
    y = values.astype(np.float64) @ weight.T + case.bias
    error = np.abs(case.result(on_device=True) - y)
    assert (error <= 2.0**-16 * (np.abs(values) @ np.abs(weight).T + np.abs(case.bias))).all()
