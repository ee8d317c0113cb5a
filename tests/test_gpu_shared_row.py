"""Several blocks pack a row together, to the bit as one does; in the PTX machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_80, SM_90A
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.packing.layout import Int8Rows
from abqc.codegen.gpu.packing.pack import fused_pack_kernel, pack_kernel
from abqc.codegen.gpu.packing.shared_row import MAX_ROWS, shared_pack
from abqc.codegen.gpu.planes.layout import PlaneRows
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.epilogue import Epilogue
from abqc.dialects.formats import parse_scheme
from gpu_kernels import output, run, spills, take

needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")

PROLOGUE = Epilogue(
    """module { func.func @f(%x: f32, %y: f32, %c: f32) -> f32 {
      %a = arith.mulf %x, %y : f32
      %z = arith.addf %a, %c : f32
      func.return %z : f32
    } }""",
    ("element", "channel"),
)


def packs(layout: Any, weight: str, activation: str, k: int) -> tuple[Any, Any]:
    spec = MatmulSpec(16, k, parse_scheme(weight), parse_scheme(activation))
    rows = layout.of(spec)
    return rows, pack_kernel(spec, rows)


@pytest.mark.parametrize(
    ("layout", "weight", "activation", "k"),
    [
        (Int8Rows, "w4:g128", "a8", 14336),
        (Int8Rows, "w4:g64:asym", "a5:token:sym", 4160),
        (PlaneRows, "w2:g128:asym", "a3", 4480),
        (Int8Rows, "w8:channel", "a8:token:sym", 20003),
    ],
)
@pytest.mark.parametrize("broken", [False, True])
def test_to_the_bit(layout: Any, weight: str, activation: str, k: int, broken: bool) -> None:
    rows, pack = packs(layout, weight, activation, k)
    m = MAX_ROWS
    rng = np.random.default_rng(k)
    x, y = (rng.standard_normal(m * k, np.float32) for _ in range(2))
    if broken:
        x[3], x[k:] = np.nan, 0
    channels = rng.standard_normal(k, np.float32)
    if broken:
        channels[:] = 0
    shared, alone = shared_pack(pack, PROLOGUE), fused_pack_kernel(pack, PROLOGUE)
    assert shared is not None and shared.max_rows == m
    q = output(m * rows.row_bytes, np.uint8)
    expected = take(run(alone, alone.grid(m), [x, y, channels, q, m], SM_80)[3])
    counters = np.zeros(8 + 1024, np.int32)
    q = output(m * rows.row_bytes, np.uint8)
    done = run(shared.kernel, m * shared.parts, [x, y, channels, q, counters, 8], SM_90A)
    np.testing.assert_array_equal(take(done[3]), expected)
    assert not done[4].any(), "counters are 0 again"


def test_rows_that_one_block_packs() -> None:
    """Short ones, those whose sums of codes have parts of several blocks, and those so long that
    small GPUs could not run all blocks at once, which wait for each other."""
    some = [("w4", "a8", 2048), ("w4:channel:asym", "a8", 8192), ("w4", "a8", 65537)]
    for weight, activation, k in some:
        assert shared_pack(packs(Int8Rows, weight, activation, k)[1], PROLOGUE) is None
    for weight, activation in [("w1", "a1:token:sym"), ("w2:g512:asym", "a2")]:
        assert shared_pack(packs(PlaneRows, weight, activation, 8192)[1], PROLOGUE) is None


@needs_ptxas
def test_no_spills() -> None:
    for layout, k in [(Int8Rows, 14336), (PlaneRows, 28672)]:
        shared = shared_pack(packs(layout, "w4:g128:asym", "a8", k)[1], PROLOGUE)
        assert shared is not None and not spills(SM_90A, shared.kernel)
