"""Planes by wgmma b1 in the PTX machine: to the bit against numpy."""

from __future__ import annotations

import subprocess

import pytest
from abqc.codegen.gpu.arch import ALL, SM_90A
from abqc.codegen.gpu.assembly.compile import disassemble
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.planes.chain import Chain
from abqc.codegen.gpu.planes.schedules import plan_of
from abqc.codegen.gpu.planes.signed_runs import SignedRuns
from abqc.codegen.gpu.planes.wgmma_plan import WgmmaPlanesPlan
from abqc.codegen.gpu.planes.wgmma_schedules import wgmma_planes_schedules
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.dialects.formats import parse_scheme
from gpu_kernels import compile_kernel, spills
from gpu_planes_case import STRATEGY, Case
from kernel_cases import all_pairs

needs_tools = pytest.mark.skipif(
    find_tool("ptxas") is None or find_tool("nvdisasm") is None, reason="no ptxas or nvdisasm"
)


def schedule(rows, columns, depth, warpgroups=1, stages=2, split=1, stay=0):
    return Schedule("wgmma", rows, columns, depth, 1, 4 * warpgroups, 1, stages, split, stay)


@pytest.mark.parametrize(
    ("weight", "activation", "shape", "schedule"),
    [
        ("w1:channel", "a1:token:sym", (17, 40, 300), schedule(16, 64, 512)),
        ("w2:channel", "a2", (9, 70, 1100), schedule(8, 64, 512)),
        ("w2:channel:asym", "a2:token:sym", (30, 130, 1500), schedule(24, 128, 1024, 2)),
        ("wt:channel", "a4", (5, 20, 520), schedule(16, 128, 512, stages=3)),
        ("w1:channel", "a8", (3, 20, 200), schedule(16, 64, 512)),
        ("w2:g128", "a2", (20, 70, 700), schedule(16, 128, 512)),
        ("w3:g64:asym", "a2", (5, 33, 520), schedule(24, 64, 512)),
        ("w2:g512:asym", "a3:token:sym", (10, 130, 1200), schedule(16, 128, 1024, 2, 3)),
        ("w1:g33", "a2", (4, 20, 300), schedule(16, 64, 512)),
        ("w1:g256", "a4", (10, 40, 1500), schedule(32, 64, 512, split=2)),
        ("w4:channel", "a1:token:sym", (10, 40, 1500), schedule(48, 64, 512, 1, 3, 3)),
        ("w2:channel", "a2", (40, 70, 1100), schedule(16, 64, 512, stages=3, stay=4)),
        ("w1:g256", "a2:token:sym", (20, 70, 700), schedule(16, 64, 512, stay=1)),
        ("w2:channel", "a2", (20, 70, 1500), schedule(16, 64, 512, stages=3, split=2, stay=3)),
        ("w1:g256", "a2:token:sym", (5, 40, 1500), schedule(16, 64, 512, split=3, stay=4)),
    ],
)
def test_products_are_exact(weight, activation, shape, schedule):
    case = Case(weight, activation, *shape).on(SM_90A)
    assert plan_of(case.spec, schedule).problem(SM_90A) is None
    case.check(schedule)


@pytest.mark.parametrize("high", [True, False])
@pytest.mark.parametrize(
    ("weight", "activation"), [("w2:g256:asym", "a4"), ("w1:channel", "a1:token:sym")]
)
def test_extreme_codes(weight, activation, high):
    """All products at the largest magnitudes, with zero points at the other end."""
    case = Case(weight, activation, 5, 20, 512).on(SM_90A)
    formats = case.weight.scheme.format, case.spec.activation.format
    for codes, format in zip((case.weight.codes, case.codes), formats, strict=True):
        codes[:] = format.qmax if high else format.qmin
    if case.weight.zero is not None:
        case.weight.zero[:] = 0 if high else formats[0].qmax
    if not case.spec.activation.symmetric:
        case.zero[:] = 0 if high else formats[1].qmax
    case.check(schedule(16, 64, 512))


@pytest.mark.parametrize(("weight", "activation"), all_pairs())
def test_signed_runs_are_all_products_of_planes(weight, activation):
    """Each pair once, for the product of what its planes count for."""
    spec = MatmulSpec(64, 512, parse_scheme(weight), parse_scheme(activation))
    plan = WgmmaPlanesPlan(spec, schedule(8, 64, 512))
    runs, scale = plan.sums_of_pairs.runs, plan.sums_of_pairs.scale
    values = {}
    for number, run in enumerate(runs):
        values = {pair: value * run.factor for pair, value in values.items()} if number else {}
        assert not values.keys() & set(run.pairs)
        values |= dict.fromkeys(run.pairs, 1)
    assert {pair: value * scale for pair, value in values.items()} == {
        (plane, row_plane): value * of_row
        for plane, value in enumerate(plan.weight_weights)
        for row_plane, of_row in enumerate(plan.row_weights)
    }


def test_a_sum_that_begins_negative():
    runs = SignedRuns.of(Chain({0: [(0, 0)]}, {2: [(1, 1)]}))
    assert [run.factor for run in runs.runs] == [1, -4] and runs.scale == 1


def test_only_where_wgmma_is_native_and_planes_are_few():
    few = MatmulSpec(4096, 4096, parse_scheme("w2"), parse_scheme("a2"))
    many = MatmulSpec(4096, 4096, parse_scheme("w4"), parse_scheme("a4"))
    for arch in ALL:
        schedules = wgmma_planes_schedules(few, arch)
        assert bool(schedules) == ("b1" in arch.wgmma)
        assert len(set(schedules)) == len(schedules)
        assert not wgmma_planes_schedules(many, arch)
        for s in schedules[::50]:
            features = STRATEGY.features(few, s, 5)
            assert features.blocks >= 1 and features.launches == 1 + (s.grid_split > 1)


def test_chosen_for_many_rows():
    target = CudaTarget.named("sm_90a")
    spec = MatmulSpec(4096, 4096, parse_scheme("w2:channel"), parse_scheme("a2"))
    best = {
        rows: min(
            (s.best(spec, rows, rows) for s in target.strategies if s.unsupported(spec) is None),
            key=lambda candidate: candidate.score,
        ).schedule
        for rows in (1, 4096)
    }
    assert best[1].kind != "wgmma"
    assert isinstance(plan_of(spec, best[4096]), WgmmaPlanesPlan)
    assert best[4096].block_k >= 512  # planes, not bytes


def log_of(kernel, folder):
    """What ptxas says, and the machine code."""
    source, cubin = folder / "k.ptx", folder / "k.cubin"
    source.write_text(compile_kernel(SM_90A, kernel).text)
    command = [str(find_tool("ptxas")), "-v", "-arch=sm_90a", str(source), "-o", str(cubin)]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return log, disassemble(cubin.read_bytes())[kernel.name]


@needs_tools
@pytest.mark.parametrize(
    ("weight", "activation", "schedule", "instruction"),
    [
        ("w2:channel", "a2:token:sym", schedule(192, 128, 1024, 2, 2), "BGMMA.64x192x256.AND.POPC"),
        ("w1:channel", "a1:token:sym", schedule(176, 256, 1024, 2, 4), "BGMMA.64x176x256.AND.POPC"),
        ("w2:g128", "a2", schedule(96, 128, 512, 2, 4), "BGMMA.64x96x256.AND.POPC"),
    ],
)
def test_machine_code(weight, activation, schedule, instruction, tmp_path):
    """The intended instruction, nothing spilled, and no product that waits for the one before:
    ptxas would say so."""
    spec = MatmulSpec(4096, 4096, parse_scheme(weight), parse_scheme(activation))
    assert plan_of(spec, schedule).problem(SM_90A) is None
    log, text = log_of(STRATEGY.kernel(spec, schedule), tmp_path)
    assert "warning" not in log and "erializ" not in log
    assert "0 bytes spill stores, 0 bytes spill loads" in log
    products = [line for line in text if "GMMA" in line]
    assert products and all(instruction in line for line in products)
    assert any("UBLKCP" in line for line in text)


def test_shared_tiles_of_many_groups_are_none():
    """Of rows with zero points: they spill."""
    spec = MatmulSpec(4096, 4096, parse_scheme("w1:g128"), parse_scheme("a1"))
    problems = [
        plan_of(spec, schedule(128, 128, depth, 2, stages, 2, 132)).problem(SM_90A)
        for depth, stages in ((512, 6), (1024, 4))
    ]
    assert problems == [None, "not enough registers"]


@pytest.mark.parametrize(("k", "problem"), [(4096, None), (11008, "not enough registers")])
def test_a_last_stage_of_fewer_groups_takes_registers(k, problem):
    spec = MatmulSpec(4096, k, parse_scheme("w1:g128"), parse_scheme("a1"))
    plan = plan_of(spec, schedule(128, 128, 1024, 2, 4, 1, 132))
    assert plan.groups_beyond == (problem is not None) and plan.problem(SM_90A) == problem


@pytest.mark.slow
@needs_tools
@pytest.mark.parametrize("weight", ["w1:channel", "w2:channel", "w2:g128:asym", "w1:g64", "w1:g32"])
@pytest.mark.parametrize("activation", ["a1:token:sym", "a2", "a4"])
def test_nothing_spills_or_waits(weight, activation, tmp_path):
    """The schedules that take most registers, of each number of warpgroups and halves, and with
    blocks that share tiles. K has no whole number of stages."""
    spec = MatmulSpec(4096, 11008, parse_scheme(weight), parse_scheme(activation))
    largest = {}
    for s in wgmma_planes_schedules(spec, SM_90A):
        plan = plan_of(spec, s)
        kind = plan.consumers, plan.halves, s.stream_k
        if s.grid_split == 1 and plan.registers > largest.get(kind, (0, None))[0]:
            largest[kind] = (plan.registers, s)
    for _, s in largest.values():
        kernel = STRATEGY.kernel(spec, s)
        log, _ = log_of(kernel, tmp_path)
        assert "erializ" not in log, s.name
        assert not spills(SM_90A, kernel), s.name
