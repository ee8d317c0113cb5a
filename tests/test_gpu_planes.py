"""Strategy `planes`: packed operands and kernels, in the PTX machine, against numpy to the bit."""

from __future__ import annotations

import gpu_kernels
import numpy as np
import pytest
from abqc.codegen.gpu.arch import ALL, SM_75, SM_80, SM_100A, GpuArch
from abqc.codegen.gpu.assembly.compile import assemble, disassemble
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.planes.layout import PlaneRows
from abqc.codegen.gpu.planes.plan import PlanesPlan
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import formats, reference
from abqc.dialects.formats import parse_scheme
from abqc.runtime.ptx.counters import Counters
from gpu_planes_case import STRATEGY, Case, compiled, launch
from kernel_cases import all_pairs

needs_tools = pytest.mark.skipif(
    find_tool("ptxas") is None or find_tool("nvdisasm") is None, reason="no ptxas, nvdisasm"
)
NATIVE = [arch for arch in ALL if arch.has("b1.m16n8k256")]


def schedules_of(spec: MatmulSpec, arch: GpuArch = SM_80) -> list[Schedule]:
    return list(STRATEGY.schedules(spec, arch))


def some_schedule(case: Case, seed: int) -> Schedule:
    """A small schedule for the case's rows, drawn by chance."""
    able = [s for s in schedules_of(case.spec) if s.block_m <= 2 * case.m + 8 and s.threads <= 256]
    return able[np.random.default_rng(seed).integers(len(able))]


PAIRS = all_pairs()


@pytest.mark.parametrize("number", range(0, len(PAIRS), 5))
def test_pairs_are_exact(number: int) -> None:
    weight, activation = PAIRS[number]
    rng = np.random.default_rng(number)
    m, n, k = rng.integers(1, 20), rng.integers(1, 40), rng.integers(1, 300)
    case = Case(weight, activation, int(m), int(n), int(k), number)
    case.check(some_schedule(case, number))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PAIRS)))
@pytest.mark.parametrize("seed", range(20))
def test_all_pairs_are_exact(number: int, seed: int) -> None:
    weight, activation = PAIRS[number]
    rng = np.random.default_rng(100 * number + seed)
    group = ("channel", "g33", "g128", "g16", "g64", "g256", "g300")[seed % 7]
    weight = ":".join([weight.split(":")[0], group, *weight.split(":")[2:]])
    m, n, k = rng.integers(1, 70), rng.integers(1, 90), rng.integers(1, 900)
    case = Case(weight, activation, int(m), int(n), int(k), seed)
    if not schedules_of(case.spec):
        # Too much code: targets refuse groups of 16 codes of many bits, and those that end within
        # a block of K where there are few columns.
        assert group == "g16" or (group == "g300" and n <= 32)
        return
    case.check(some_schedule(case, seed))


TILE = {"block_m": 8, "block_n": 32, "block_k": 256, "warps_n": 2, "stages": 2}
SCHEDULES = [
    ("w2:channel", "a8", 1, 40, 1000, Schedule("tile", 1, 16, 1024, 1, 1, 4, 2)),
    ("w4:channel:asym", "a4", 2, 40, 1000, Schedule("tile", 2, 32, 512, 1, 2, 2, 3)),
    ("w4:g128", "a8", 1, 33, 1000, Schedule("tile", 1, 16, 1024, 1, 1, 4, 2)),
    ("w4:g128:asym", "a3", 4, 33, 900, Schedule("tile", 4, 32, 512, 1, 2, 1, 2)),
    ("w2:g32", "a2", 3, 20, 300, Schedule("tile", 4, 16, 512, 1, 1, 2, 2)),
    ("w3:g512:asym", "a5", 9, 20, 1200, Schedule("tile", 16, 32, 256, 1, 2, 1, 3)),
    ("w3:g512:asym", "a5", 9, 20, 1200, Schedule("tile", 8, 16, 1024, 1, 1, 2, 2)),
    ("w1:g64", "a1:token:sym", 17, 50, 333, Schedule("tile", 16, 32, 256, 1, 2, 1, 2)),
    ("w2:channel", "a2", 40, 70, 520, Schedule("tile", 32, 64, 256, 2, 2, 1, 4)),
    ("w2:channel:asym", "a8", 3, 40, 1500, Schedule("tile", 4, 16, 512, 1, 1, 2, 2, 2)),
    ("w4:g128:asym", "a8", 3, 40, 1500, Schedule("tile", 4, 16, 512, 1, 1, 2, 2, 2)),
    ("w4:g512", "a8", 3, 40, 2000, Schedule("tile", 4, 16, 256, 1, 1, 1, 2, 2)),
]


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda c: f"{c[0]}-{c[1]}-{c[5].name}")
def test_schedules_are_exact(case) -> None:
    weight, activation, m, n, k, schedule = case
    made = Case(weight, activation, m, n, k)
    assert PlanesPlan(made.spec, schedule).problem(SM_80) is None
    made.check(schedule)


@pytest.mark.parametrize(("weight", "activation"), all_pairs())
@pytest.mark.parametrize("tokens", [1, 8])
def test_chains_are_all_products_of_planes(weight: str, activation: str, tokens: int) -> None:
    """Each pair of planes, for the product of what they count for, however it is added up."""
    spec = MatmulSpec(16, 256, parse_scheme(weight), parse_scheme(activation))
    plan = PlanesPlan(spec, Schedule("tile", tokens, 16, 256, stages=2))
    expected = {
        (plane, tile): value * (plan.row_weights[tile] if plan.bits == 1 else 1)
        for plane, value in enumerate(plan.weight_weights)
        for tile in range(plan.bit_tiles)
    }
    for chains in (plan.chains, [chain.by_four() for chain in plan.chains]):
        values: dict[tuple[int, int], int] = dict.fromkeys(expected, 0)
        for chain in chains:
            for sign, pairs in ((1, chain.positive), (-1, chain.negative)):
                for power, of in pairs.items():
                    for pair in of:
                        values[pair] += sign << power
        assert values == expected


@pytest.mark.parametrize("high", [True, False])
@pytest.mark.parametrize(
    ("weight", "activation"),
    [("w4:g128:asym", "a8"), ("w4:g128", "a8:token:sym"), ("w1:g128", "a1"), ("w8:g128", "a8")],
)
def test_extreme_codes(weight: str, activation: str, high: bool) -> None:
    """Sums of whole groups at the ends of their range, with zero points at the other end."""
    case = Case(weight, activation, 9, 20, 512)
    formats_of = case.weight.scheme.format, case.spec.activation.format
    for codes, format in zip((case.weight.codes, case.codes), formats_of, strict=True):
        codes[:] = format.qmax if high else format.qmin
    if case.weight.zero is not None:
        case.weight.zero[:] = 0 if high else formats_of[0].qmax
    if not case.spec.activation.symmetric:
        case.zero[:] = 0 if high else formats_of[1].qmax
    case.check(Schedule("tile", 16, 32, 256, 1, 2, 1, 2))


def test_rows_are_packed_multiplied_and_scaled() -> None:
    m, n, k = 5, 24, 200
    rng = np.random.default_rng(1)
    x = rng.standard_normal((m, k), np.float32)
    x[3, 7] = np.nan
    weight = formats.quantize_weight(
        rng.standard_normal((n, k), np.float32), parse_scheme("w3:channel")
    )
    spec = MatmulSpec(n, k, weight.scheme, parse_scheme("a6"))
    pack = STRATEGY.pack_kernel(spec)
    assert pack is not None and spec.activation is not None
    q = np.zeros(m * STRATEGY.row_bytes(spec), np.uint8)
    q = launch(pack, pack.grid(m), [x, q, m])[1]
    kernel = STRATEGY.kernel(spec, Schedule("tile", 8, 32, 256, 1, 2, 1, 2))
    bias = rng.standard_normal(n, np.float32)
    w = STRATEGY.pack_weight(spec, weight)
    y = np.zeros((m, n), np.float32)
    y = launch(kernel, kernel.grid(m, n), [q, w, bias, y, m, n])[3]
    codes, scale, zero = formats.quantize_activation(x, spec.activation)
    expected = reference.matmul(codes, scale, zero, weight, bias)
    assert np.isnan(y[3]).all()
    keep = [0, 1, 2, 4]
    np.testing.assert_array_equal(y[keep], expected[keep])


def test_targets_without_binary_tensor_cores_are_refused() -> None:
    spec = MatmulSpec(16, 64, parse_scheme("w2"), parse_scheme("a8"))
    for arch in (SM_75, SM_100A):
        assert "binary mma.sync" in (STRATEGY.unsupported(spec, arch) or "")
    assert STRATEGY.unsupported(spec, SM_80) is None


def test_sums_beyond_32_bits_are_refused() -> None:
    spec = MatmulSpec(16, 40000, parse_scheme("w8:channel:asym"), parse_scheme("a8"))
    assert "32 bits" in (STRATEGY.unsupported(spec, SM_80) or "")


def test_rows_beyond_the_last_are_not_read() -> None:
    """Tokens that are missing cost no bytes: all blocks would ask for the same line of L2."""
    kernel = STRATEGY.kernel(Case("w1:g128", "a1", 1, 1, 512).spec, Schedule("tile", **TILE))
    loaded = []
    for m in (1, 8):
        case = Case("w1:g128", "a1", m, 32, 512)
        q = PlaneRows.of(case.spec).pack_reference(case.codes, case.scale, case.zero)
        w, counters = STRATEGY.pack_weight(case.spec, case.weight), Counters()
        y = np.zeros(m * 32, np.float32)
        gpu_kernels.run(kernel, 1, [q, w, case.bias, y, m, 32], counters=counters)
        loaded.append(counters.counts().loads["global"].bytes)
    assert loaded[1] - loaded[0] >= 7 * 512 // 8


@needs_tools
@pytest.mark.parametrize("arch", NATIVE, ids=lambda arch: arch.name)
def test_machine_code_has_binary_products_and_no_spills(arch: GpuArch) -> None:
    for weight, activation, _, n, k, schedule in SCHEDULES[::3]:
        spec = MatmulSpec(n, k, parse_scheme(weight), parse_scheme(activation))
        kernel = STRATEGY.kernel(spec, schedule)
        code = assemble(compiled(kernel, arch).text, arch)
        assert code.resources[kernel.name].spill_stores == 0
        text = "\n".join(disassemble(code.cubin)[kernel.name])
        assert "BMMA" in text and "IMMA" not in text


@pytest.mark.slow
@needs_tools
@pytest.mark.parametrize("arch", NATIVE, ids=lambda arch: arch.name)
@pytest.mark.parametrize("weight", ["w1", "w2", "w3:g64", "w4:g128:asym", "w2:g32", "w5", "w8"])
def test_nothing_spills(arch: GpuArch, weight: str) -> None:
    """The schedules that take most registers, and most code, of every width of activations."""
    for bits in range(1, 9):
        spec = MatmulSpec(4096, 4096, parse_scheme(weight), parse_scheme(f"a{bits}"))
        plans = [PlanesPlan(spec, s) for s in schedules_of(spec, arch) if s.split == 1]
        for plan in (
            max(plans, key=lambda plan: (plan.registers, plan.instructions)),
            max(plans, key=lambda plan: (plan.instructions, plan.registers)),
        ):
            kernel = STRATEGY.kernel(spec, plan.schedule)
            used = assemble(compiled(kernel, arch).text, arch).resources[kernel.name]
            assert used.spill_stores == 0, f"{kernel.name}: {used}"
