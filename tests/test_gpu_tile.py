"""Tile kernels in the PTX machine: accumulators to the bit, float results within the contract."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from abqc.codegen.gpu.arch import ALL, SM_75, SM_80, SM_90A, SM_120A, by_name
from abqc.codegen.gpu.assembly.compile import assemble, disassemble
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.matmul.dequantize import DequantizeMatmul
from abqc.codegen.gpu.matmul.int8 import Int8Matmul
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.tiles.schedules import plan_of, tile_schedules
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import parse_scheme
from gpu_kernels import compile_kernel, spills
from gpu_tile_cases import INT8, TileCase

SMALL = Schedule("tile", 16, 64, 64, 1, 2, 1, 2)
SMALL_K128 = Schedule("tile", 16, 64, 128, 1, 2, 1, 2)
WIDE = Schedule("tile", 32, 64, 64, 2, 1, 1, 3)
TWO_ROWS = Schedule("tile", 64, 64, 128, 2, 2, 1, 3)

needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
needs_nvdisasm = pytest.mark.skipif(find_tool("nvdisasm") is None, reason="no nvdisasm")


@pytest.mark.parametrize(
    ("weight", "activation", "shape", "schedule"),
    [
        ("w4:channel", "a8", (17, 40, 100), SMALL),
        ("w8:channel", "a8:token:sym", (5, 33, 70), SMALL),
        ("w8:channel:asym", "a8", (16, 8, 64), SMALL),
        ("w4:g32:asym", "a8", (20, 30, 100), WIDE),
        ("w2:g128", "a8", (9, 70, 300), TWO_ROWS),
        ("w3:g96", "a5:token:sym", (7, 20, 300), SMALL_K128),  # groups of 3 units, stages of 4
        ("w1:g160", "a1:token:sym", (10, 20, 330), SMALL_K128),
        ("w7:g40:asym", "a4", (3, 20, 200), SMALL_K128),
        ("w2*:g64", "a8", (3, 20, 200), SMALL_K128),
        ("wt:tensor", "a8", (3, 20, 200), SMALL),
    ],
)
def test_integers_are_exact(weight, activation, shape, schedule):
    TileCase.random(weight, activation, shape, schedule).check()


@pytest.mark.parametrize(
    ("weight", "shape", "schedule"),
    [
        ("w4:channel", (17, 40, 100), SMALL),
        ("w4:g32:asym", (20, 30, 100), WIDE),
        ("w3:g96", (7, 20, 300), SMALL_K128),
        ("w1:channel", (7, 20, 140), SMALL_K128),
        ("w2*:g64", (3, 20, 200), SMALL_K128),
        ("w8:g128:asym", (3, 20, 200), SMALL),
    ],
)
@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_floats(weight, shape, schedule, element):
    TileCase.random(weight, None, shape, schedule, element=element).check()


@pytest.mark.parametrize(
    ("weight", "activation"),
    [("w4:channel:asym", "a8"), ("w4:g64", "a8"), ("w5:g96:asym", None), ("w4:channel", None)],
)
@pytest.mark.parametrize("split", [2, 3])
def test_splits_are_reduced(weight, activation, split):
    block_k = 128 if weight.startswith("w5") else 64
    schedule = Schedule("tile", 16, 64, block_k, 1, 2, 1, 2, split)
    TileCase.random(weight, activation, (5, 40, 900), schedule).check()


@pytest.mark.parametrize(
    ("weight", "activation", "schedule"),
    [("w4:g32:asym", "a8", SMALL), ("w3:channel", "a8", SMALL_K128), ("w4:g64:asym", None, SMALL)],
)
def test_without_cp_async_and_by_smaller_forms(weight, activation, schedule):
    TileCase.random(weight, activation, (9, 40, 200), schedule, SM_75).check()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("weight", ["w8:channel", "w8:channel:asym", "w8:g128", "w4:g128:asym"])
def test_extreme_codes(weight, sign):
    """All products at the largest magnitudes and of one sign."""
    case = TileCase.random(weight, "a8", (2, 8, 256), SMALL)
    format = case.weight.scheme.format
    case.weight.codes[:] = format.qmax if sign > 0 else format.qmin
    if case.weight.zero is not None:
        case.weight.zero[:] = 0 if sign > 0 else format.qmax
    case.x[:] = 1.0
    case.check()


def test_long_sums_are_added_in_64_bits():
    """Sums of the largest magnitudes that do not fit 32 bits."""
    schedule = Schedule("tile", 16, 64, 128, 1, 2, 1, 2, 2)
    case = TileCase.random("w8:channel:asym", "a8", (2, 3, 40_001), schedule)
    assert INT8.unsupported(case.spec, SM_80) is None
    assert schedule in INT8.schedules(case.spec, SM_80)
    assert all(s.split > 1 for s in INT8.schedules(case.spec, SM_80))
    case.weight.codes[:] = 255
    assert case.weight.zero is not None
    case.weight.zero[:] = 0
    case.x[:] = 1.0
    case.check()


def test_rows_that_are_not_finite():
    """NaN in one row's scale: that row is NaN, the others are not."""
    case = TileCase.random("w4:g64", "a8", (4, 16, 128), SMALL)
    case.x[2, 5] = np.nan
    y = case.result()
    assert np.isnan(y[2]).all() and np.isfinite(y[[0, 1, 3]]).all()


@pytest.mark.parametrize("n", [39, 40])
def test_columns_by_pairs_or_alone(n):
    """Rows of an odd number of columns are not aligned for stores of pairs."""
    TileCase.random("w4:g64", "a8", (3, n, 128), SMALL).check()


@pytest.mark.parametrize(("weight", "activation"), [("w4:g64:asym", "a8"), ("w4", None)])
def test_rows_packed_on_the_device(weight, activation):
    """The packing kernel writes what the matmul reads."""
    case = TileCase.random(weight, activation, (5, 40, 200), SMALL)
    np.testing.assert_array_equal(case.result(on_device=True), case.result())


@pytest.mark.parametrize("block_k", [64, 128])
@pytest.mark.parametrize(("weight", "activation"), [("w4:channel", "a8"), ("w2:channel", None)])
def test_shared_memory_has_no_bank_conflicts(weight, activation, block_k):
    schedule = Schedule("tile", 32, 64, block_k, 1, 2, 1, 2)
    case = TileCase.random(weight, activation, (32, 64, 512), schedule)
    counts = case.counts()
    assert counts.bank_conflicts == 0
    assert counts.shared_phases > 0
    (work,) = counts.tensor.values()
    assert work.operations == 2 * 32 * 64 * 512


def test_what_is_refused():
    w4, a8 = parse_scheme("w4"), parse_scheme("a8")
    assert INT8.unsupported(MatmulSpec(8, 64, w4, a8), SM_80) is None
    assert INT8.unsupported(MatmulSpec(8, 64, w4, None), SM_80)
    assert INT8.unsupported(MatmulSpec(8, 64, None, a8), SM_80)
    long = MatmulSpec(8, 300_000, parse_scheme("w8:channel"), a8)
    assert "32768" in (INT8.unsupported(long, SM_80) or "")
    grouped = MatmulSpec(8, 80_000, parse_scheme("w8:g40000"), a8)
    assert "32768" in (INT8.unsupported(grouped, SM_80) or "")
    assert DequantizeMatmul().unsupported(MatmulSpec(8, 64, w4, None), SM_75) is None
    assert DequantizeMatmul("bf16").unsupported(MatmulSpec(8, 64, w4, None), SM_75)
    assert DequantizeMatmul().unsupported(MatmulSpec(8, 64, w4, a8), SM_80)


@pytest.mark.parametrize("arch", ALL, ids=lambda arch: arch.name)
@pytest.mark.parametrize("activation", ["a8", None])
def test_every_target_has_schedules(arch, activation):
    """Down to one column and one term."""
    for weight in ("w4", "w7:g33:asym", "w1:channel"):
        for n, k in ((1, 1), (8, 100), (4096, 4096)):
            a_scheme = None if activation is None else parse_scheme(activation)
            spec = MatmulSpec(n, k, parse_scheme(weight), a_scheme)
            strategy = INT8 if a_scheme else DequantizeMatmul()
            schedules = tile_schedules(spec, arch, strategy.activation)
            assert len(set(schedules)) == len(schedules) > 0
            for schedule in schedules:
                assert plan_of(spec, schedule, strategy.activation).shared_bytes > 0
                features = strategy.features(spec, schedule, 5)
                assert features.blocks >= 1 and features.launches == 1 + (schedule.split > 1)


def test_kernels_do_not_depend_on_n():
    names = {
        INT8.kernel(MatmulSpec(n, 64, parse_scheme("w4"), parse_scheme("a8")), SMALL).name
        for n in (3, 1000)
    }
    assert len(names) == 1


@needs_ptxas
@needs_nvdisasm
@pytest.mark.parametrize(
    ("arch", "weight", "activation", "mma"),
    [
        (SM_75, "w4", "a8", "IMMA.8816"),
        (SM_80, "w3:asym", "a8", "IMMA.16832"),
        (SM_80, "w4", None, "HMMA.16816"),
        (SM_90A, "w4", None, "HMMA.16816"),
        (SM_120A, "w8", "a8", "IMMA.16832"),
    ],
)
def test_machine_code(arch, weight, activation, mma):
    """The intended instructions, 16-byte copies and loads, and no spills."""
    a_scheme = None if activation is None else parse_scheme(activation)
    spec = MatmulSpec(4096, 4096, parse_scheme(weight), a_scheme)
    strategy: Int8Matmul | DequantizeMatmul = INT8 if a_scheme else DequantizeMatmul()
    schedule = Schedule("tile", 64, 128, 128, 2, 2, 1, 2)
    kernel = strategy.kernel(spec, schedule)
    code = assemble(compile_kernel(arch, kernel).text, arch)
    used = code.resources[kernel.name]
    assert used.spill_stores == used.spill_loads == used.stack == 0
    text = disassemble(code.cubin)[kernel.name]
    assert any(mma in line for line in text)
    assert any("LDSM" in line for line in text)
    assert any("LDS.128" in line or "LDS.U.128" in line for line in text)
    copy = "LDGSTS" if arch.cp_async else "STS.128"
    assert any(copy in line and "128" in line for line in text)
    assert not any("LDL" in line or "STL" in line for line in text)


WIDTHS = (*range(1, 9), "2*", "t")
GROUPS = ("tensor", "channel", "g32", "g33", "g64", "g96", "g128", "g7")
PAIRS = [(w, a) for w in WIDTHS for a in (*range(1, 9), None)]
SHAPES_OF_A_PAIR = 20


def check_random(width, a_bits, seed):
    """A random target, group, shape and schedule for one pair of widths."""
    rng = np.random.default_rng([seed, len(str(width)) * 100 + ord(str(width)[0]), a_bits or 0])
    arch = by_name(str(rng.choice(["sm_75", "sm_80", "sm_90a", "sm_100a"])))
    symmetry = ":asym" if isinstance(width, int) and rng.integers(2) else ""
    weight = f"w{width}:{rng.choice(GROUPS)}{symmetry}"
    activation = None if a_bits is None else f"a{a_bits}" + str(rng.choice(["", ":token:sym"]))
    shape = (int(rng.integers(1, 70)), int(rng.integers(1, 140)), int(rng.integers(1, 500)))
    a_scheme = None if activation is None else parse_scheme(activation)
    spec = MatmulSpec(shape[1], shape[2], parse_scheme(weight), a_scheme)
    schedules = tile_schedules(spec, arch, "int8" if a_scheme else "f16")
    schedule = schedules[int(rng.integers(len(schedules)))]
    TileCase.random(weight, activation, shape, schedule, arch, seed).check()


@pytest.mark.parametrize(("width", "a_bits"), PAIRS[::10])
def test_some_pairs(width, a_bits):
    check_random(width, a_bits, seed=100)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "a_bits"), PAIRS)
def test_all_pairs(width, a_bits):
    for seed in range(SHAPES_OF_A_PAIR):
        check_random(width, a_bits, seed)


@pytest.mark.slow
@needs_ptxas
@pytest.mark.parametrize("arch", ALL, ids=lambda arch: arch.name)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_spills(arch, width):
    """The schedules of every format that take most registers, on every target."""
    symmetries = (":asym",) if isinstance(width, int) else ("",)
    for activation in ("a8", None):
        a_scheme = None if activation is None else parse_scheme(activation)
        for group, symmetry in product(("g128", "channel"), symmetries):
            scheme = f"w{width}:{group}{symmetry}"
            spec = MatmulSpec(4096, 4096, parse_scheme(scheme), a_scheme)
            strategy: Int8Matmul | DequantizeMatmul = INT8 if a_scheme else DequantizeMatmul()
            schedules = tile_schedules(spec, arch, strategy.activation)
            largest = max(
                (s for s in schedules if s.split == 1),
                key=lambda s: plan_of(spec, s, strategy.activation).registers,
            )
            kernel = strategy.kernel(spec, largest)
            assert not spills(arch, kernel)


def test_two_turns_are_the_loop_of_many():
    def products(k: int) -> int:
        spec = MatmulSpec(64, k, parse_scheme("w4:channel"), parse_scheme("a8"))
        text = compile_kernel(SM_80, Int8Matmul().kernel(spec, SMALL)).text
        assert '.pragma "nounroll"' in text
        return text.count("mma.sync")

    assert products(128) == products(4096)
