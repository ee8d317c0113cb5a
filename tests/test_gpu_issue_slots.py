"""What machine code issues: the reader of main loops, and that the cost model counts as much."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from abqc.codegen.gpu.arch import SM_90A
from abqc.codegen.gpu.assembly.compile import assemble, disassemble
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.attention.features import (
    tile_features,
    wgmma_features,
)
from abqc.codegen.gpu.attention.halves import TileShape
from abqc.codegen.gpu.attention.mma import THREADS, mma_kernel
from abqc.codegen.gpu.attention.spec import AttentionSpec
from abqc.codegen.gpu.attention.swizzled import SwizzledShape
from abqc.codegen.gpu.attention.wgmma import CONSUMER_WARPS, wgmma_kernel
from abqc.codegen.gpu.matmul.dequantize import DequantizeMatmul
from abqc.codegen.gpu.matmul.int8 import Int8Matmul
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.planes.strategy import Planes
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import parse_scheme
from gpu_kernels import compile_kernel

sys.path.insert(0, str(Path(__file__).parent / "bench" / "gpu"))

import issue_slots
from gpubuild.machine_loops import main_loop, shortest_turn

LISTING = """
MOV R1, c[0x0][0x28]
.L_x_0:
LDG.E.NA.128 R4, desc[UR4][R2.64]
@P0 BRA `(.L_x_1)
.L_x_2:
LDSM.16.M88.4 R8, [R0]
LDS.128 R12, [R0+0x10]
@!P1 LDGSTS.E.BYPASS.128 [R3], desc[UR4][R6.64]
IMMA.16832.S8.S8 R16, R8.ROW, R12.COL, R16
IMAD R20, R21, R22, R23
LOP3.LUT R24, R25, 0xf, RZ, 0xc0, !PT
BAR.SYNC.DEFER_BLOCKING 0x0
@P2 BRA `(.L_x_2)
.L_x_1:
@P3 BRA `(.L_x_0)
.L_x_3:
BRA `(.L_x_3)
"""


needs_tools = pytest.mark.skipif(
    find_tool("ptxas") is None or find_tool("nvdisasm") is None, reason="no ptxas, nvdisasm"
)


def test_the_main_loop_is_the_innermost_one_with_mmas():
    turn = main_loop(LISTING.split("\n")[1:-1])
    assert turn is not None and turn.issued == 8
    assert (turn.of("mma"), turn.of("shared"), turn.of("copy"), turn.of("barrier")) == (1, 2, 1, 1)
    assert turn.mma_operations == 2 * 16 * 8 * 32
    assert turn.shared_bytes == 3 * 512
    assert turn.cycles("alu") == turn.cycles("fma") == 2.0


def test_code_without_a_loop():
    assert main_loop(["MOV R1, R2", "EXIT"]) is None


@needs_tools
def test_a_line_of_one_row(monkeypatch, capsys):
    """It is multiplied on CUDA cores: there is no MMA whose operands could be counted."""
    monkeypatch.setattr(sys, "argv", ["issue_slots.py", "--formats", "W8A8", "--rows", "1"])
    assert issue_slots.main() == 0
    assert "| 1 | W8A8 | int8 | rows" in capsys.readouterr().out


@needs_tools
@pytest.mark.parametrize(
    ("strategy", "weight", "activation", "schedule"),
    [
        (Int8Matmul(), "w4", "a8", Schedule("tile", 128, 64, 128, 2, 2, 1, 3)),
        (DequantizeMatmul(), "w4", None, Schedule("tile", 64, 128, 128, 1, 4, 1, 3)),
        (Planes(), "w2", "a4", Schedule("tile", 32, 64, 256, 2, 2, 1, 3)),
        (Int8Matmul(), "w4", "a8", Schedule("rows", 8, 128, 32, 1, 4, 1, 4)),
        (DequantizeMatmul(), "w4", None, Schedule("rows", 1, 128, 32, 1, 4, 1, 4)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_cost_model_counts_what_is_issued(strategy, weight, activation, schedule):
    """A whole launch, from the main loop's turns, to a fifth."""
    a_scheme = parse_scheme(activation) if activation else None
    spec = MatmulSpec(4096, 4096, parse_scheme(weight), a_scheme)
    kernel = strategy.kernel(spec, schedule)
    code = assemble(compile_kernel(SM_90A, kernel).text, SM_90A)
    turn = main_loop(disassemble(code.cubin, labels=True)[kernel.name])
    assert turn is not None
    m = schedule.block_m
    features = strategy.features(spec, schedule, m)
    if schedule.kind == "rows":
        turns = spec.n * spec.k * features.weight_bits / 8 / turn.streamed_bytes
    else:
        turns = features.blocks * schedule.threads / 32 * spec.k / schedule.block_k
    assert features.issued == pytest.approx(32 * turns * turn.issued, rel=0.2)


@needs_tools
@pytest.mark.parametrize(
    ("precision", "head", "mask"),
    [("f16", 64, "add"), ("f16", 128, "add"), ("bf16x3", 64, "none")],
)
@pytest.mark.parametrize(
    ("features", "kernel", "shape", "warps"),
    [
        (tile_features, mma_kernel, TileShape, THREADS // 32),
        (wgmma_features, wgmma_kernel, SwizzledShape, CONSUMER_WARPS),
    ],
    ids=["mma", "wgmma"],
)
def test_it_counts_what_attention_issues(features, kernel, shape, warps, precision, head, mask):
    """A tile of keys of one block, but for what most tiles jump over, to a tenth."""
    spec = AttentionSpec(head, head, mask, precision)
    made = kernel(spec)
    code = assemble(compile_kernel(SM_90A, made).text, SM_90A)
    turn = shortest_turn(disassemble(code.cubin, labels=True)[made.name])
    assert turn is not None
    block = features(spec, SM_90A, 1, shape(spec).keys, 1)
    assert block.f16_ops + block.wgmma_f16_ops == warps * turn.mma_operations
    assert block.issued == pytest.approx(32 * warps * turn.issued, rel=0.1)
