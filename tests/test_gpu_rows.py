"""GPU kernels for few rows, in the PTX machine, against numpy: exact for every format and shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import gpu_kernels
import numpy as np
import pytest
from abqc.codegen.gpu.arch import ALL, SM_75, SM_80, SM_90A, SM_120A
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.few_rows.plan import RowsPlan
from abqc.codegen.gpu.few_rows.schedules import (
    rows_features,
    rows_kernel,
    rows_reduce_kernel,
    rows_schedules,
)
from abqc.codegen.gpu.weights.layout import WeightLayout
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects.formats import parse_scheme
from gpu_rows import Case, schedule

FORMATS = [
    *(f"w{bits}" for bits in range(1, 9)),
    *(f"w{bits}:asym" for bits in range(1, 9)),
    *("w2*", "wt"),
]
ACTIVATIONS = ["a8", "a8:token:sym", "a4", "a1:token:sym", "f16"]
ROWS = (1, 2, 4, 8)

# Rows of the kernel, warps of N and K, split.
SHAPES = [
    (1, (1, 4), 1),
    (2, (2, 2), 1),
    (4, (1, 1), 1),
    (8, (1, 2), 1),
    (1, (1, 2), 2),
    (8, (2, 1), 3),
]


def with_group(text: str, group: str) -> str:
    name, _, symmetry = text.partition(":")
    return f"{name}:{group}" + (f":{symmetry}" if symmetry else "")


def check_format(number: int, quantized: bool, group: str) -> None:
    activation = ACTIVATIONS[number % 4] if quantized else "f16"
    rows, warps, split = SHAPES[(number + 3 * (group == "g64")) % len(SHAPES)]
    case = Case.random(with_group(FORMATS[number], group), activation, min(rows, 3), 37, 130)
    case.check(schedule(case.spec, rows, warps, split))


@pytest.mark.parametrize("number", range(len(FORMATS)), ids=lambda i: FORMATS[i])
def test_every_format(number):
    check_format(number, True, ("channel", "g64")[number % 2])
    check_format(number, False, ("g64", "channel")[number % 2])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(FORMATS)), ids=lambda i: FORMATS[i])
def test_every_format_with_and_without_groups(number):
    for quantized in (True, False):
        for group in ("channel", "g64"):
            check_format(number, quantized, group)


GROUPS = ("g32", "g7", "g100", "g128", "channel")


def check_shape(shape, activation: str, group: str, weight: str, n: int, k: int) -> None:
    rows, warps, split = shape
    case = Case.random(with_group(weight, group), activation, rows, n, k)
    case.check(schedule(case.spec, rows, warps, split))


@pytest.mark.parametrize("number", range(2 * len(GROUPS)))
def test_groups(number):
    activation, group = ("a8", "f16")[number % 2], GROUPS[number % len(GROUPS)]
    check_shape(SHAPES[number % len(SHAPES)], activation, group, "w4:asym", 50, 333)
    check_shape(SHAPES[(number + 3) % len(SHAPES)], activation, group, "w1", 33, 520)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ["a8", "f16"])
@pytest.mark.parametrize("group", GROUPS)
def test_all_groups_and_shapes(shape, activation, group):
    check_shape(shape, activation, group, "w4:asym", 50, 333)
    check_shape(shape, activation, group, "w1", 33, 520)


def random_case(seed: int) -> tuple[Case, object]:
    rng = np.random.default_rng(seed)
    group = rng.choice(["tensor", "channel", "g32", "g33", "g64", "g100", "g128", "g7", "g256"])
    weight, activation = rng.choice(FORMATS), rng.choice(ACTIVATIONS)
    rows = int(rng.choice(ROWS))
    m, n, k = (int(rng.integers(1, high)) for high in (rows + 1, 140, 700))
    case = Case.random(with_group(weight, group), activation, m, n, k, seed)
    warps = int(rng.choice([1, 2])), int(rng.choice([1, 2, 4]))
    split, stages = int(rng.choice([1, 1, 3])), int(rng.choice([1, 2, 4, 8]))
    return case, schedule(case.spec, rows, warps, split, stages)


def test_turns_that_reach_beyond_k_read_nothing_there():
    """Parts begin amid turns, though K is whole turns; the last row ends its buffer."""
    case = Case.random("w8:channel", "f16", 8, 32, 320)
    made = schedule(case.spec, 8, (1, 4))
    plan = RowsPlan(WeightLayout.of(case.spec), made)
    assert plan.layout.chunks % plan.ahead == 0 and 3 * plan.run + plan.ahead > plan.layout.chunks
    case.check(made)


@pytest.mark.parametrize("rows", ROWS)
def test_accumulators_of_groups(rows):
    """They are exact before they are scaled, also where K is split."""
    weight, group = [("w4:asym", "g32"), ("w1", "g33"), ("w3", "g100"), ("w8:asym", "g64")][
        ROWS.index(rows)
    ]
    case = Case.random(with_group(weight, group), "a8", rows, 35, 300)
    case.check_accumulators(schedule(case.spec, rows, (1, 2), 2))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(FORMATS)), ids=lambda i: FORMATS[i])
def test_accumulators_of_groups_in_every_format(number):
    for group, activation in zip(("g32", "g7", "g100", "g48"), ACTIVATIONS, strict=False):
        for rows, warps, split in SHAPES:
            case = Case.random(with_group(FORMATS[number], group), activation, rows, 35, 150)
            case.check_accumulators(schedule(case.spec, rows, warps, split))


@pytest.mark.parametrize("seed", range(8))
def test_random_shapes(seed):
    case, chosen = random_case(seed)
    case.check(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 200))
def test_many_random_shapes(seed):
    case, chosen = random_case(seed)
    case.check(chosen)


@pytest.mark.parametrize("rows", ROWS)
def test_more_rows_than_a_block_has(rows):
    case = Case.random("w4:g64", "a8", rows + 1, 40, 130)
    case.check(schedule(case.spec, rows, (1, 2)))
    case.check(schedule(case.spec, rows, (1, 2), 2))


@pytest.mark.parametrize("activation", ["a8", "f16"])
def test_smaller_matrix_instructions(activation):
    """sm_75 has m8n8k16 and m16n8k8 only."""
    case = Case.random("w3:g64:asym", activation, 7, 40, 130)
    case.check(schedule(case.spec, 8, (1, 2)), SM_75)


@pytest.mark.parametrize("activation", ["f16", "bf16"])
def test_targets_that_multiply_halves_into_f32(activation):
    """LLVM makes `fma.rn.f32.f16` of them for sm_100 and later."""
    case = Case.random("w4:g64", activation, 1, 40, 130)
    chosen = schedule(case.spec, 1, (1, 2))
    kernel = rows_kernel(case.spec, chosen, activation)
    assert f"fma.rn.f32.{activation}" in gpu_kernels.compile_kernel(SM_120A, kernel).text
    case.check(chosen, SM_120A)


@pytest.mark.parametrize("rows", [2, 8])
@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_codes(rows, bits, sign):
    case = Case.random(f"w{bits}:channel", "a8", rows, 32, 64)
    format = case.weight.scheme.format
    case.weight.codes[:] = format.qmax if sign > 0 else format.qmin
    case.x[:] = 1.0
    case.check(schedule(case.spec, rows, (1, 1)))


@pytest.mark.parametrize("rows", [2, 8])
def test_bf16_activations(rows):
    case = Case.random("w4:g64:asym", "bf16", rows, 40, 130)
    case.check(schedule(case.spec, rows, (1, 2)))


@pytest.mark.parametrize("rows", [1, 8])
def test_f32_scales_of_imported_weights(rows):
    case = Case.random("w8", "a8", rows, 20, 64)
    case = case.with_scales(case.weight.scale * np.float32(1.0001))
    case.check(schedule(case.spec, rows, (1, 2)))


@pytest.mark.parametrize("rows", [1, 8])
def test_large_floats_do_not_overflow(rows):
    case = Case.random("w8", "f16", rows, 20, 64)
    case.x *= 3000
    case.check(schedule(case.spec, rows, (1, 1)))


@pytest.mark.parametrize("rows", [2, 8])
def test_a_broken_row_is_nan_and_the_others_are_not(rows):
    case = Case.random("w4:g32", "a8", 2, 20, 70)
    case.x[1, 69] = np.nan
    y = case.run(schedule(case.spec, rows, (1, 2)))
    assert np.isnan(y[1]).all() and np.isfinite(y[0]).all()


@pytest.mark.parametrize("activation", ["a8", "f16"])
def test_weights_are_streamed_in_whole_sectors(activation):
    case = Case.random("w4", activation, 1, 64, 1024)
    counts = case.count(schedule(case.spec, 1, (1, 4)))
    assert counts.coalescing == 1.0 and counts.bank_conflicts == 0
    assert counts.divergent_branches == 0
    by_mma = case.count(schedule(case.spec, 8, (1, 4)))
    assert by_mma.bank_conflicts == 0 and by_mma.tensor_operations == 2 * 8 * 64 * 1024


def test_runs_of_chunks_cover_k_once():
    for k, text in [(4096, "w4"), (11008, "w2"), (700, "w3:g100"), (64, "w1:channel")]:
        spec = MatmulSpec(64, k, parse_scheme(text), parse_scheme("a8"))
        for chosen in rows_schedules(spec, SM_80, "int8"):
            plan = RowsPlan(WeightLayout.of(spec), chosen)
            assert plan.run * plan.parts >= plan.layout.chunks and plan.run % plan.step == 0
            assert not plan.even or plan.run * plan.parts == plan.layout.chunks


def test_schedules_follow_the_target():
    spec = MatmulSpec(64, 4096, parse_scheme("w4"), None)
    rows = {s.block_m for s in rows_schedules(spec, SM_80, "f16")}
    assert rows == {1, 2, 4, 8}
    assert {s.block_m for s in rows_schedules(spec, SM_75, "bf16")} == {1, 2, 4}


def test_every_shape_has_a_schedule():
    for n, k in ((1, 1), (3, 40), (70, 33), (5000, 64)):
        spec = MatmulSpec(n, k, parse_scheme("w1:channel"), parse_scheme("a8"))
        schedules = rows_schedules(spec, SM_80, "int8")
        assert {s.block_m for s in schedules} == set(ROWS)
        assert len(set(schedules)) == len(schedules)


def test_features_count_padding_and_both_kernels():
    spec = MatmulSpec(100, 4096, parse_scheme("w4"), parse_scheme("a8"))
    features = rows_features(spec, schedule(spec, 2, (1, 4), 2), 1, "int8")
    assert features.blocks == 8 and features.launches == 2
    assert features.dp4a_ops == 2 * 2 * 128 * 4096
    assert features.workspace_bytes == 2 * 100 * 4


def kernels_of(weights: Sequence[str], loads: Sequence[int]) -> Iterator[Kernel]:
    """Those of all numbers of rows; of loads that make the same turns of the loop, one."""
    for weight, activation in product(weights, ("a8", None)):
        a_scheme = parse_scheme(activation) if activation else None
        spec = MatmulSpec(4096, 4096, parse_scheme(weight), a_scheme)
        kind = "int8" if activation else "f16"
        for rows in ROWS:
            chosen = [schedule(spec, rows, (1, 4), 2, stages) for stages in loads]
            turns = {RowsPlan(WeightLayout.of(spec), s).ahead: s for s in chosen}
            yield from (rows_kernel(spec, s, kind) for s in turns.values())
        reduce = rows_reduce_kernel(spec, schedule(spec, 1, (1, 4), 2), kind)
        if reduce is not None:
            yield reduce


@pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
@pytest.mark.parametrize("arch", gpu_kernels.SAMPLE, ids=lambda arch: arch.name)
def test_no_spills(arch):
    weight = ("w1:channel", "w4", "w7:g64:asym")[gpu_kernels.SAMPLE.index(arch)]
    assert not gpu_kernels.spills(arch, *kernels_of([weight], [4]))


@pytest.mark.slow
@pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
@pytest.mark.parametrize("arch", ALL, ids=lambda arch: arch.name)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("group", ["g32", "g128", "channel"])
def test_no_spills_in_any_format(arch, name, group):
    assert not gpu_kernels.spills(arch, *kernels_of([with_group(name, group)], [4, 8]))


@pytest.mark.skipif(
    find_tool("ptxas") is None or find_tool("nvdisasm") is None, reason="no ptxas, nvdisasm"
)
def test_instructions_are_the_intended_ones():
    for activation, kind, expected in (
        ("a8", "int8", ("IDP.4A", "IMMA")),
        (None, "f16", ("FFMA", "HMMA")),
    ):
        a_scheme = parse_scheme(activation) if activation else None
        spec = MatmulSpec(4096, 4096, parse_scheme("w4"), a_scheme)
        for rows, instruction in zip((1, 8), expected, strict=True):
            kernel = rows_kernel(spec, schedule(spec, rows, (1, 4)), kind)
            text = gpu_kernels.machine_code(SM_90A, kernel)
            assert instruction in text and "LDG.E.NA.128" in text


@pytest.mark.skipif(
    find_tool("ptxas") is None or find_tool("nvdisasm") is None, reason="no ptxas, nvdisasm"
)
@pytest.mark.parametrize(
    ("weight", "activation", "rows", "instruction"),
    [("w4:g128", None, 8, "HMMA"), ("w2:g128", "a8", 1, "IDP")],
)
def test_weights_of_the_next_turn_are_loaded_before_products(
    weight: str, activation: str | None, rows: int, instruction: str
) -> None:
    """ptxas likes to move loads to where registers are free, behind what they should overlap."""
    a_scheme = parse_scheme(activation) if activation else None
    spec = MatmulSpec(8192, 8192, parse_scheme(weight), a_scheme)
    kernel = rows_kernel(spec, schedule(spec, rows, (1, 8), 1, 8), "int8" if activation else "f16")
    lines = gpu_kernels.machine_code(SM_90A, kernel).splitlines()
    loads = [i for i, line in enumerate(lines) if "LDG.E.NA.128" in line]
    products = [i for i, line in enumerate(lines) if instruction in line]
    assert len(loads) >= 8 and max(loads) < min(products)
