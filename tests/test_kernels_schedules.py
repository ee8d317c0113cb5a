"""Schedules of CPU matmuls: what is enumerated is legal, and changes no result."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.float_products.dequantize import Dequantize
from abqc.codegen.cpu.float_products.matmul import FloatMatmul
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.panels.bitplane import BitplaneStrategy
from abqc.codegen.cpu.schedule import (
    BASE_ISAS,
    FEW_ROWS,
    MANY_ROWS,
    ONE_ROW,
    ROW_RANGES,
    CpuSchedule,
    CpuStrategy,
    RowRange,
    default_schedules,
)
from abqc.codegen.cpu.trellis.float_strategy import TrellisFloatStrategy
from abqc.codegen.cpu.trellis.strategy import TrellisStrategy
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import QuantizedTensor, parse_scheme, quantize_weight
from kernel_cases import ACTIVATIONS, TILED_ISAS, WEIGHTS, Case, compile_jit, on_isa, variant_for

INT8, BITPLANE, TRELLIS = Int8Strategy(), BitplaneStrategy(), TrellisStrategy()
FLOAT, DEQUANTIZE, TRELLIS_FLOAT = FloatMatmul(), Dequantize(), TrellisFloatStrategy()
STRATEGIES = (INT8, BITPLANE, TRELLIS, FLOAT, DEQUANTIZE, TRELLIS_FLOAT)
GROUPS = ("tensor", "channel", "g32", "g48", "g33", "g128", "g7")
ISAS = (*isas.available(), *TILED_ISAS[:1])
each_isa = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)


def spec_of(strategy: CpuStrategy, n: int = 4096, k: int = 4096) -> MatmulSpec:
    weights = {INT8: "w4", BITPLANE: "w2:channel", TRELLIS: "w2v", DEQUANTIZE: "w4"}
    weight = weights.get(strategy, "w2v" if strategy is TRELLIS_FLOAT else "")
    activation = "a8" if strategy in (INT8, BITPLANE, TRELLIS) else ""
    schemes = (parse_scheme(text) if text else None for text in (weight, activation))
    return MatmulSpec(n, k, *schemes)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
@pytest.mark.parametrize("isa", BASE_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("rows", ROW_RANGES, ids=lambda rows: f"from {rows.first}")
def test_blocks_are_whole_tiles(strategy: CpuStrategy, isa: Isa, rows: RowRange) -> None:
    """Else two grid indices would write the same columns."""
    found = strategy.schedules(spec_of(strategy), rows, isa)
    names = [schedule.name for schedule in found]
    assert len(set(names)) == len(names) == len(set(found)) > 0
    for schedule in found:
        assert schedule.block_n % schedule.tile_n == 0
        assert (schedule.block_m == 1) == rows.one


@pytest.mark.parametrize("rows", ROW_RANGES, ids=lambda rows: f"from {rows.first}")
def test_there_is_a_choice(rows: RowRange) -> None:
    assert 6 <= len(INT8.schedules(spec_of(INT8), rows, BASE_ISAS[0])) <= 100


def test_one_row_is_read_as_one_stream_where_it_is_one() -> None:
    """Scales of 13 groups stand behind the codes where blocks of groups would be padding."""

    def streams(weight: str, k: int) -> set[tuple[int, bool]]:
        spec = MatmulSpec(64, k, parse_scheme(weight), parse_scheme("a8"))
        found = INT8.schedules(spec, ONE_ROW, isas.AVX512)
        return {(schedule.panels, schedule.prefetch > 0) for schedule in found}

    assert streams("w4:g128", 4096) == {(1, False)}
    assert streams("w4:g32:asym", 13 * 32) == {(1, True), *product((2, 4), (False, True))}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_defaults_do_not_depend_on_the_channels(strategy: CpuStrategy) -> None:
    """So that matmuls of one K share kernels."""
    few, many = (default_schedules(spec_of(strategy, n), strategy.schedules) for n in (3, 4096))
    assert few == many
    assert [(each.first, each.last) for each in few] == [(1, 1), (2, None)]


def a_case(strategy: CpuStrategy, isa: Isa, seed: int) -> tuple[Case, CpuSchedule]:
    """Random formats, shapes and schedule."""
    rng = random.Random(seed)
    if strategy is TRELLIS:
        weight = f"w{rng.choice((1, 2, 4))}v:{rng.choice(('channel', 'g32'))}"
    else:
        names = [w for w in WEIGHTS if strategy is INT8 or "*" not in w]
        name, _, symmetry = rng.choice(names).partition(":")
        weight = f"{name}:{rng.choice(GROUPS)}" + (f":{symmetry}" if symmetry else "")
    rows = rng.choice(ROW_RANGES)
    m = rng.randint(rows.first, min(rows.last or 150, 150))
    n, k = rng.randint(1, 200), rng.randint(1, 300)
    case = Case.random(strategy, isa, weight, rng.choice(ACTIVATIONS), m, n, k, seed)
    schedules = strategy.schedules(case.spec, rows, _base(isa))
    return case, rng.choice(schedules)


def _base(isa: Isa) -> Isa:
    return next(base for base in BASE_ISAS if base.vector_bits == isa.vector_bits)


@each_isa
@pytest.mark.parametrize(
    ("strategy", "seeds"), [(INT8, range(3)), (BITPLANE, range(2)), (TRELLIS, range(1))]
)
def test_integers_are_exact(isa: Isa, strategy: CpuStrategy, seeds: range) -> None:
    for seed in seeds:
        case, schedule = a_case(strategy, isa, 100 * seed + ISAS.index(isa))
        case.schedules = on_isa(schedule, isa)
        case.check_accumulators()
        case.check_result()


@each_isa
@pytest.mark.parametrize("weight", ["w3:g33:asym", "w4:channel", "w1:g128"])
def test_weights_decoded_once_are_exact(isa: Isa, weight: str) -> None:
    case = Case.random(INT8, isa, weight, "a8", 37, 40, 300)
    found = INT8.schedules(case.spec, MANY_ROWS, _base(isa))
    decoding = next((s for s in found if s.decode_once), None)
    if decoding is None:  # no tile of four rows fits the registers
        assert isa.registers < 32
        decoding = replace(found[0], decode_once=True)
    case.schedules = on_isa(decoding, isa)
    case.check_accumulators()
    case.check_result()


@pytest.mark.parametrize("isa", isas.available(), ids=lambda isa: isa.name)
@pytest.mark.parametrize("strategy", [FLOAT, DEQUANTIZE, TRELLIS_FLOAT], ids=lambda s: s.name)
def test_sums_of_floats_have_one_order(isa: Isa, strategy: CpuStrategy) -> None:
    """The same numbers by all schedules, to the bit."""
    rng, choose = np.random.default_rng(3), random.Random(3)
    n, k = 70, 1601 if strategy is FLOAT else 301
    spec = spec_of(strategy, n, k)
    w = rng.standard_normal((n, k), np.float32)
    weight = w if spec.weight is None else quantize_weight(w, spec.weight)
    blob, bias = strategy.pack_weight(spec, weight), rng.standard_normal(n).astype(np.float32)
    values = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    for rows, m in ((ONE_ROW, 1), (FEW_ROWS, 5), (MANY_ROWS, 150)):
        default, *others = strategy.schedules(spec, rows, isa)
        kernels = [
            variant_for(strategy.matmul_kernels(spec, on_isa(schedule, isa)), m)
            for schedule in (default, *choose.sample(others, min(2, len(others))))
        ]
        jit = compile_jit(isa, kernels)
        x = rng.standard_normal((m, k), np.float32)
        results = []
        for kernel in kernels:
            y = np.zeros(m * n, np.float32)
            jit.run(kernel.name, kernel.grid(m, n), [x.reshape(-1), blob, bias, y, m, n])
            results.append(y)
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)
        np.testing.assert_allclose(results[0].reshape(m, n), x @ values.T + bias, atol=2e-3)
