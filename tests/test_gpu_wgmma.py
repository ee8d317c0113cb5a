"""Kernels by wgmma in the PTX machine: accumulators to the bit, floats within the contract."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from functools import partial

import gpu_kernels
import pytest
from abqc.codegen.gpu.arch import ALL, SM_90A
from abqc.codegen.gpu.assembly.compile import disassemble
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.matmul.dequantize import DequantizeMatmul
from abqc.codegen.gpu.matmul.int8 import Int8Matmul
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.wgmma.schedules import plan_of, wgmma_schedules
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.dialects.formats import parse_scheme
from abqc.runtime.ptx import Device, PtxFault
from gpu_kernels import compile_kernel, spills
from gpu_tile_cases import TileCase


def schedule(rows, columns, depth, warpgroups=1, stages=2, split=1, stay=0, boxes=False):
    sizes = (rows, columns, depth, 1, 4 * warpgroups, 1)
    return Schedule("wgmma", *sizes, stages, split, stay, boxes)


ONE = schedule(16, 64, 64)
ONE_K128 = schedule(24, 64, 128)
BOTH = schedule(16, 128, 64)  # both halves of a tile by one warp
BOTH_K128 = schedule(8, 128, 128, stages=3)
TWO = schedule(16, 128, 128, 2, 3)

needs_tools = pytest.mark.skipif(
    find_tool("ptxas") is None or find_tool("nvdisasm") is None, reason="no ptxas or nvdisasm"
)


@pytest.mark.parametrize(
    ("weight", "shape", "schedule"),
    [
        ("w4:channel", (17, 40, 100), ONE),
        ("w4:channel", (9, 140, 200), BOTH),
        ("w4:g32:asym", (20, 70, 100), replace(TWO, boxes=True)),
        ("w3:g96", (7, 100, 300), ONE_K128),  # groups that end in the middle of a stage
        ("w1:channel", (7, 70, 140), BOTH_K128),
        ("w2*:g64", (3, 20, 200), ONE_K128),
        ("w8:g128:asym", (3, 20, 200), ONE),
        ("wt5:tensor", (3, 20, 200), schedule(8, 128, 160, boxes=True)),  # atoms of 64 bytes
        ("w5:g40", (3, 130, 200), BOTH_K128),
        ("wmxfp4", (3, 20, 200), ONE),
        ("wnf4", (3, 20, 200), ONE),
    ],
)
@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_floats(weight, shape, schedule, element):
    TileCase.random(weight, None, shape, schedule, SM_90A, element=element).check()


@pytest.mark.parametrize(
    ("weight", "activation", "shape", "schedule"),
    [
        ("w4:channel", "a8", (17, 40, 100), ONE),
        ("w8:channel", "a8:token:sym", (5, 70, 170), BOTH_K128),
        ("w8:channel:asym", "a8", (16, 8, 64), ONE),
        ("w4:g32:asym", "a8", (20, 70, 100), replace(TWO, boxes=True)),
        ("w2:g128", "a8", (9, 70, 300), TWO),
        ("w3:g96", "a5:token:sym", (7, 20, 300), ONE_K128),
        ("w1:g160", "a1:token:sym", (10, 20, 330), BOTH_K128),
        ("w7:g40:asym", "a4", (3, 20, 200), ONE_K128),
        ("w2*:g64", "a8", (3, 20, 200), ONE_K128),
        ("wt5:tensor", "a8", (3, 20, 200), schedule(8, 128, 160)),  # atoms of 32 bytes
        ("wt5:tensor", "a8", (11, 20, 200), schedule(8, 128, 160, boxes=True)),
        ("wmxfp6", "a8", (3, 20, 200), ONE),
        ("wnf4", "a8", (3, 20, 200), ONE),  # codes less their zero points, in f16
    ],
)
def test_integers_are_exact(weight, activation, shape, schedule):
    TileCase.random(weight, activation, shape, schedule, SM_90A).check()


@pytest.mark.parametrize(
    ("weight", "activation"), [("w4:channel:asym", "a8"), ("w4:g64", "a8"), ("w5:g96:asym", None)]
)
def test_splits_are_reduced(weight, activation):
    block_k = 128 if weight.startswith("w5") else 64
    split = schedule(8, 64, block_k, split=3, boxes=activation is None)
    TileCase.random(weight, activation, (5, 40, 900), split, SM_90A).check()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("weight", ["w8:channel:asym", "w4:g128"])
def test_extreme_codes(weight, sign):
    """All products at the largest magnitudes and of one sign."""
    case = TileCase.random(weight, "a8", (2, 8, 256), ONE_K128, SM_90A)
    format = case.weight.scheme.format
    case.weight.codes[:] = format.qmax if sign > 0 else format.qmin
    if case.weight.zero is not None:
        case.weight.zero[:] = 0 if sign > 0 else format.qmax
    case.x[:] = 1.0
    case.check()


@pytest.mark.parametrize(
    ("weight", "activation", "blocks", "stages", "boxes"),
    [
        ("w4:g32:asym", None, 2, 2, False),
        ("w4:channel", None, 2, 2, True),
        ("w8:channel", "a8", 4, 3, True),
    ],
)
def test_blocks_that_stay(weight, activation, blocks, stages, boxes):
    """Each does several tiles, not all as many; more stages than a tile of few turns has."""
    stay = schedule(16, 64, 128, stages=stages, stay=blocks, boxes=boxes)
    TileCase.random(weight, activation, (40, 70, 200), stay, SM_90A).check()


def test_boxes_give_what_single_copies_give():
    case = TileCase.random("w4:g64:asym", None, (21, 70, 200), TWO, SM_90A)
    boxes = replace(case, schedule=replace(TWO, boxes=True))
    assert (case.result() == boxes.result()).all()


@pytest.mark.parametrize(
    ("pattern", "planted", "fault"),
    [
        (r"(expect_tx\S* _, \[\S+\]), \S+;", r"\1, 2048;", "expect_tx is missing or too small"),
        (r"(expect_tx\S* _, \[\S+\]), \S+;", r"\1, 8192;", "nothing can go on"),
        (r"@complete bra done", "bra done", "race in shared memory"),
    ],
)
def test_planted_faults_are_found(pattern, planted, fault, monkeypatch):
    """Boxes that are not counted, or counted twice; barriers that nobody waits for."""
    boxes = schedule(16, 64, 64, boxes=True)
    case = TileCase.random("w4:channel", None, (17, 40, 300), boxes, SM_90A)
    ptx = compile_kernel(SM_90A, case.strategy.kernel(case.spec, boxes))
    text, count = re.subn(pattern, planted, ptx.text)
    assert count and text != ptx.text
    monkeypatch.setattr(gpu_kernels, "compile_kernel", lambda *_: replace(ptx, text=text))
    with pytest.raises(PtxFault, match=fault):
        case.result()


@pytest.mark.parametrize(
    ("weight", "activation", "shape", "schedule"),
    [
        # One tile of three blocks; 4 blocks, of 10 tiles two are whole; all are whole.
        ("w4:channel", "a8", (5, 40, 900), schedule(8, 64, 64, stages=3, split=3, stay=4)),
        ("w4:channel:asym", "a8", (40, 70, 200), schedule(8, 64, 64, 1, 2, 2, 4, True)),
        ("w8:channel", "a8", (30, 20, 100), schedule(16, 64, 64, split=2, stay=2)),
        ("w4:g64:asym", "a8", (20, 140, 400), schedule(16, 128, 128, 2, 3, 2, 3, True)),
        # Groups of K that end in the middle of a stage, and with K in one.
        ("w3:g96", None, (20, 70, 900), schedule(16, 64, 128, split=2, stay=3)),
    ],
)
def test_blocks_share_tiles(weight, activation, shape, schedule):
    """Stream-K: runs of turns that begin and end in the middle of tiles."""
    TileCase.random(weight, activation, shape, schedule, SM_90A).check()


def test_no_block_waits_for_one_that_has_not_begun(monkeypatch):
    """One block after the other, in the order of their numbers: each comes to its end."""
    monkeypatch.setattr(gpu_kernels, "Device", partial(Device, batch_lanes=1))
    shares = schedule(8, 64, 64, stages=3, split=3, stay=4)
    TileCase.random("w4:channel", "a8", (20, 70, 300), shares, SM_90A).check()


@pytest.mark.parametrize(
    ("line", "instead", "match"),
    [
        ("ld.acquire.gpu", "ld.relaxed.gpu", "race in global memory"),
        ("st.release.gpu", "st.relaxed.gpu", "race in global memory"),
        ("@!given bra", "// @!given bra", "race in global memory"),
        ("st.release.gpu", "// st.release.gpu", "nothing can go on"),
    ],
)
def test_sums_that_are_not_handed_over_properly(line, instead, match, monkeypatch):
    shares = schedule(8, 64, 64, split=2, stay=2)
    case = TileCase.random("w4:channel", "a8", (5, 40, 200), shares, SM_90A)
    kernel = case.strategy.kernel(case.spec, shares)
    ptx = compile_kernel(SM_90A, kernel)
    assert ptx.text.count(line) == 1
    wrong = replace(ptx, text=ptx.text.replace(line, instead))
    monkeypatch.setitem(gpu_kernels._compiled, (SM_90A.name, kernel.name), wrong)
    with pytest.raises(PtxFault, match=match):
        case.check()


def test_rows_packed_on_the_device():
    """The packing kernel writes what the matmul reads."""
    case = TileCase.random("w4:g64:asym", "a8", (5, 40, 200), ONE, SM_90A)
    assert (case.result(on_device=True) == case.result()).all()


def test_a_stage_is_not_deeper_than_twice_the_weight():
    spec = MatmulSpec(82, 28, parse_scheme("w8:g64"), None)
    problems = [plan_of(spec, schedule(48, 64, k, 1, 3), "f16").problem(SM_90A) for k in (64, 128)]
    assert problems == [None, "more than half of the stages is padding"]


def test_products_under_way_have_their_registers():
    """ptxas has products of 2 x 192 rows wait for each other, with two warpgroups."""
    spec = MatmulSpec(4096, 4096, parse_scheme("w8:channel"), parse_scheme("a8"))
    problem = plan_of(spec, schedule(192, 256, 128, 2, 4), "int8").problem(SM_90A)
    assert problem is not None and "registers" in problem


def test_codes_of_several_parts_have_their_registers():
    """With as many rows as codes of 2 and 4 bits have, w3 spills in every turn."""
    problems = {}
    for weight in ("w2", "w3", "w4"):
        spec = MatmulSpec(4096, 4096, parse_scheme(weight), parse_scheme("a8"))
        plan = plan_of(spec, schedule(80, 256, 128, 2, 6, 1, 132, True), "int8")
        problems[weight] = plan.problem(SM_90A)
    assert problems == {"w2": None, "w3": "about 244 registers", "w4": None}


@pytest.mark.parametrize("activation", ["a8", None])
def test_only_where_wgmma_is_native(activation):
    a_scheme = None if activation is None else parse_scheme(activation)
    for weight in ("w4", "w7:g33:asym", "w1:channel"):
        for n, k in ((1, 1), (8, 100), (4096, 4096)):
            spec = MatmulSpec(n, k, parse_scheme(weight), a_scheme)
            strategy = Int8Matmul() if a_scheme else DequantizeMatmul()
            for arch in ALL:
                schedules = wgmma_schedules(spec, arch, strategy.activation)
                assert bool(schedules) == bool(arch.wgmma)
                assert len(set(schedules)) == len(schedules)
                for s in schedules:
                    features = strategy.features(spec, s, 5)
                    assert features.blocks >= 1 and features.launches == 1 + (s.grid_split > 1)


def kinds(target, rows):
    spec = MatmulSpec(4096, 4096, parse_scheme("w4"), None)
    strategy = next(s for s in target.strategies if s.unsupported(spec) is None)
    return {strategy.best(spec, rows, rows).schedule.kind}


def test_chosen_for_many_rows_on_that_target_alone():
    one, both = CudaTarget.named("sm_90a"), CudaTarget.named("sm_80,sm_90a")
    assert one is not None and both is not None
    assert kinds(one, 1) == {"rows"} and kinds(one, 4096) == {"wgmma"}
    assert kinds(both, 4096) == {"tile"}


@needs_tools
@pytest.mark.parametrize(
    ("weight", "activation", "schedule", "instruction"),
    [
        ("w4", None, schedule(64, 256, 128, 2, 4, 4, 132, True), "HGMMA.64x64x16.F32"),
        ("w2", "a8", schedule(128, 128, 256, 2, 4, 2, 132, True), "IGMMA.64x128x32.S8.U8"),
        ("w3", "a8", schedule(64, 256, 128, 2, 4), "IGMMA.64x64x32.S8.U8"),
    ],
)
def test_machine_code(weight, activation, schedule, instruction, tmp_path):
    """The intended instructions, nothing spilled, and no product that waits for the one before:
    ptxas would say so."""
    a_scheme = None if activation is None else parse_scheme(activation)
    spec = MatmulSpec(4096, 4096, parse_scheme(weight), a_scheme)
    strategy = Int8Matmul() if a_scheme else DequantizeMatmul()
    assert plan_of(spec, schedule, strategy.activation).problem(SM_90A) is None
    kernel = strategy.kernel(spec, schedule)
    source, cubin = tmp_path / "k.ptx", tmp_path / "k.cubin"
    source.write_text(compile_kernel(SM_90A, kernel).text)
    command = [str(find_tool("ptxas")), "-v", "-arch=sm_90a", str(source), "-o", str(cubin)]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "warning" not in log and "erializ" not in log
    assert "0 bytes spill stores, 0 bytes spill loads" in log
    text = disassemble(cubin.read_bytes())[kernel.name]
    products = [line for line in text if "GMMA" in line]
    assert products and all(instruction in line for line in products)
    assert any("UBLKCP" in line for line in text)
    assert any("UTMALDG.2D" in line for line in text) == schedule.boxes
    assert any("LDG.E.STRONG.GPU" in line for line in text) == schedule.stream_k


@pytest.mark.slow
@needs_tools
@pytest.mark.parametrize("weight", ["w4", "w8:channel", "w3", "w4:g64:asym", "w1:g32", "wt5"])
@pytest.mark.parametrize("activation", ["a8", None])
def test_nothing_spills(weight, activation):
    """The schedules that take most registers, of each number of warpgroups, and with blocks that
    share tiles."""
    a_scheme = None if activation is None else parse_scheme(activation)
    spec = MatmulSpec(4096, 4096, parse_scheme(weight), a_scheme)
    strategy = Int8Matmul() if a_scheme else DequantizeMatmul()
    largest = {}
    for s in wgmma_schedules(spec, SM_90A, strategy.activation):
        registers = plan_of(spec, s, strategy.activation).registers
        kind = s.warps_n, s.stream_k
        if s.grid_split == 1 and registers > largest.get(kind, (0, None))[0]:
            largest[kind] = (registers, s)
    assert not spills(SM_90A, *(strategy.kernel(spec, s) for _, s in largest.values()))
