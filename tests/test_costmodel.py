"""The analytic cost model: orders of magnitude, choices that must hold, files."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abqc.codegen import isa as isas
from abqc.codegen.builder import buffer, function
from abqc.codegen.codes.bit_parts import StoredValue
from abqc.codegen.cpu.int8.layout import value_quads
from abqc.codegen.cpu.int8.units import load_unit, unit_quad
from abqc.costmodel import kernel_text
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.cpu_arithmetic import unpacking
from abqc.costmodel.interface import MatmulFeatures, Sample
from abqc.costmodel.shortlist import shortlist
from abqc.dialects.mlir import ir
from abqc.errors import ArtifactError, CompileError


def matmul(strategy: str, m: int, n: int, k: int, p: int, q: int, **rest: object) -> MatmulFeatures:
    return replace(
        MatmulFeatures(strategy, m, n, k, p, q, weight_bytes=n * k * p // 8 + 2 * n), **rest
    )


def pick(m: int, n: int, k: int, p: int, q: int, **rest: object) -> str:
    pair = [matmul(s, m, n, k, p, q, **rest) for s in ("int8", "bitplane")]
    return AnalyticModel().rank(pair)[0].strategy


def test_large_float_matmul_runs_near_peak():
    f = matmul("float", 128, 1536, 384, 32, 32)
    seconds = AnalyticModel().predict(f)
    assert 60e9 < 2 * f.m * f.n * f.k / seconds < 110e9


def test_one_row_of_a_large_model_is_memory_bound():
    f = matmul("float", 1, 4096, 4096, 32, 32, threads=2, working_set=2**30)
    estimate = AnalyticModel().estimate(f)
    assert estimate.bound == "DRAM-bound"
    assert estimate.seconds == pytest.approx(4096 * 4096 * 4 / 39e9, rel=0.05)


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_few_bits_take_planes_and_many_take_int8(isa):
    assert pick(128, 1536, 384, 1, 1, isa=isa) == "bitplane"
    assert pick(128, 1536, 384, 8, 8, isa=isa) == "int8"


@pytest.mark.parametrize("strategy", ["float", "dequantize", "int8", "bitplane"])
def test_cost_grows_with_every_dimension_and_falls_with_threads(strategy):
    model, base = AnalyticModel(), matmul(strategy, 64, 512, 512, 4, 4)
    for larger in (replace(base, m=128), replace(base, n=1024), replace(base, k=1024)):
        assert model.predict(larger) > model.predict(base)
    assert model.predict(replace(base, threads=2)) < model.predict(base)


def test_explanation_names_the_cheapest_first():
    pair = [matmul(s, 128, 1536, 384, 8, 8) for s in ("bitplane", "int8")]
    text = AnalyticModel().explain(pair)
    assert text.startswith("int8: ") and "; bitplane: " in text and "compute-bound" in text


def test_fit_recovers_a_factor_and_survives_a_file(tmp_path):
    model = AnalyticModel()
    features = [matmul("int8", m, 512, 512, 4, 8) for m in (1, 16, 128)]
    model.fit([Sample(f, 3 * AnalyticModel().predict(f)) for f in features])
    model.save(tmp_path / "model.json")
    loaded = AnalyticModel.load(tmp_path / "model.json")
    assert loaded.predict(features[0]) == pytest.approx(3 * AnalyticModel().predict(features[0]))


@pytest.mark.parametrize("text", ["", "{}", '{"format": "other", "cpu": "Zen 4", "factors": []}'])
def test_foreign_files_are_refused(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ArtifactError, match="no cost model"):
        AnalyticModel.load(tmp_path / "model.json")


def test_unknown_strategies_and_forms_are_named():
    with pytest.raises(CompileError, match="'nonsense'"):
        AnalyticModel().predict(matmul("nonsense", 1, 1, 1, 1, 1))
    with pytest.raises(CompileError, match="'sse9'"):
        AnalyticModel().predict(matmul("int8", 1, 1, 1, 1, 1, isa="sse9"))


def scheduled(strategy: str, m: int, p: int, tile: tuple[int, int], **rest: object) -> float:
    """Seconds of a 4096 x 4096 matmul under a schedule."""
    base = {"schedule": "a", "tile_m": tile[0], "tile_n": tile[1], "chains": 1, "prefetch": 1}
    blocks = {"block_m": 128, "block_n": 64, **base, **rest}
    return AnalyticModel().predict(matmul(strategy, m, 4096, 4096, p, 8, **blocks))


def test_larger_tiles_and_decoding_once_save_decoding():
    small, large = (scheduled("int8", 128, 7, tile) for tile in ((2, 64), (8, 32)))
    assert large < scheduled("int8", 128, 7, (2, 64), decode_once=True) < 0.9 * small
    assert scheduled("int8", 128, 8, (4, 64)) == pytest.approx(
        scheduled("int8", 128, 8, (8, 32)), rel=0.03
    )


def test_rows_of_a_tile_that_are_not_there_cost_as_much():
    assert scheduled("int8", 5, 4, (8, 32)) > 0.9 * scheduled("int8", 8, 4, (8, 32))
    assert scheduled("int8", 2, 4, (8, 32)) > 1.5 * scheduled("int8", 2, 4, (2, 64))


def test_rows_of_a_tile_whose_addresses_fit_no_register_are_loaded_more_often():
    """Loads then take longer than products: 12 rows of 16 columns, 24 more so; 8 rows do not."""
    eight, twelve, most = (scheduled("int8", 120, 8, (rows, 16)) for rows in (8, 12, 24))
    assert 1.1 * eight < twelve and 1.1 * twelve < most


def test_the_parts_of_an_estimate_add_up():
    f = matmul("int8", 128, 4096, 4096, 4, 8, schedule="a", tile_m=8, tile_n=32, chains=1)
    e = AnalyticModel().estimate(replace(f, block_m=128, block_n=64, decode_once=True))
    memory = ("weights", "ends", "again", "across", "activations")
    assert sum(e.terms[part] for part in memory) == pytest.approx(e.memory)
    alone = ("stored", "scaling", "packing", "calls", "waits")
    rest = e.compute - sum(e.terms[part] for part in alone)
    assert e.terms["products"] <= rest <= e.terms["products"] + e.terms["loads"]
    assert e.terms["stored"] > 0 == e.terms["decode"]


def test_one_row_needs_independent_sums():
    one = {"block_m": 1, "prefetch": 0}
    assert scheduled("int8", 1, 1, (1, 16), chains=4, **one) < 0.6 * scheduled(
        "int8", 1, 1, (1, 16), **one
    )


def test_columns_first_where_weights_do_not_stay_in_a_cache():
    """1024 rows are 8 blocks, which read all weights each, or 64 columns of them at a time."""
    model = AnalyticModel()
    f = matmul("int8", 1024, 4096, 4096, 8, 8, schedule="a", tile_m=4, tile_n=64, block_m=128)
    rows = replace(f, block_n=64, working_set=1 << 30)
    memory = [model.estimate(replace(rows, by_columns=each)).memory for each in (False, True)]
    assert memory[1] < memory[0]


def test_a_shortlist_has_the_best_of_each_kind_first():
    base = matmul("int8", 128, 512, 512, 4, 8, tile_m=4, tile_n=64)
    other = replace(base, tile_m=8, tile_n=32)
    candidates = [base, replace(base, by_columns=True), replace(base, prefetch=1), other]
    seconds = [1.0, 0.9, 1.2, 1.1]
    assert shortlist(candidates, seconds, 3) == [1, 3, 2]
    assert shortlist(candidates, seconds, 9) == [1, 3, 2, 0]


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpacking_is_counted_as_it_is_emitted(bits):
    """Shifts, masks and what joins pieces, of 8 vectors of codes."""
    value = StoredValue(bits, 1, 0, bits == 8)
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        with function(module, isas.AVX512, "unpack", [buffer("i8")]) as (b, at, codes):
            unit = load_unit(b, codes, at, value)
            for quad in range(value_quads(value)):
                b.store_as(unit_quad(b, unit, quad, value), codes, at)
        counts = dict(kernel_text.operations(str(module)))
    emitted = sum(counts.get(f"arith.{name}", 0) for name in ("shrui", "shli", "andi", "ori"))
    assert emitted * 8 / value_quads(value) == unpacking(bits)
