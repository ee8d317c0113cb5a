"""Attention by `wgmma` in the PTX machine: cases of attention, compiled for sm_90a."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import test_gpu_attention as attention
from abqc.codegen.gpu.arch import SM_90A
from abqc.codegen.gpu.assembly.compile import compile_ptx
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.attention.kernels import AttentionSpec, attention_kernels
from abqc.codegen.gpu.attention.stored_rows import Stored
from abqc.codegen.strategy import Kernel, MaskKind
from abqc.codegen.targets.cuda import CudaTarget
from abqc.dialects.mlir import ir
from abqc.runtime.ptx.errors import PtxFault
from test_gpu_attention import Case, needs_ptxas

Spec = AttentionSpec
CASES = (
    (Case(Spec(64, 64, "none", "f16"), 70, 70, heads=1), 1e-3),
    (Case(Spec(64, 48, "add", "bf16x3"), 130, 140, heads=2, group=2, mask_axes="mt"), 2e-5),
    (Case(Spec(96, 128, "add", "f16", keys="f16", values="f16"), 65, 150, heads=1, room=3), 1e-3),
    (
        Case(Spec(48, 64, "add", "f16", keys="f16", values="f16"), 65, 70, 2, rows_first=True),
        1e-3,
    ),
    (Case(Spec(50, 33, "replace", "bf16x3"), 66, 30, rows_first=True), 2e-5),
)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases are those of sm_90a alone."""
    monkeypatch.setattr(attention, "attention_kernels", partial(attention_kernels, wgmma_rows=65))
    monkeypatch.setattr(attention, "SM_80", SM_90A)
    attention.compiled.cache_clear()


@pytest.mark.parametrize(
    ("case", "tolerance"), CASES, ids=[f"{c.spec.precision}-{c.spec.name}" for c, _ in CASES]
)
def test_against_softmax_in_float64(case: Case, tolerance: float) -> None:
    assert "wgmma" in attention.variant_of(case.spec, case.rows).kernel.name
    attention.check(case, tolerance)


def test_bases_rise_where_they_must() -> None:
    """In the third tile, too."""
    attention.check_rising(Case(Spec(40, 40, "none", "f16"), 66, 260, heads=1), 0.4, 2e-2)


@pytest.mark.parametrize("kind", ["causal", "with holes", "some rows see nothing"])
def test_hidden_tiles_are_not_read(kind: str) -> None:
    """Keys and values of tiles that no row of a block sees are NaN."""
    case = Case(Spec(64, 64, "add", "bf16x3"), 70, 200, heads=1, mask_axes="mt")
    q, k, v, _ = attention.inputs(case)
    row, key = np.arange(70)[:, None], np.arange(200)
    hidden = np.broadcast_to(attention.MASKS[kind](row, key), (70, 200))
    mask = np.where(hidden, np.finfo(np.float32).min, np.float32(0))[None, None]
    want = attention.expected(case, q, k, v, mask, 0.3)
    if kind == "causal":
        k[:, :, 192:] = v[:, :, 192:] = np.nan
    y = attention.run(case, q, k, v, mask, 0.3)
    assert np.abs(y - want).max() <= 2e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (r"wgmma\.wait_group\.sync\.aligned 0;", "is in flight"),
        (r"wgmma\.fence\.sync\.aligned;", "fence is missing"),
        (r"@complete bra done", "race in shared memory"),
        (r"bar\.arrive", "never completes"),
    ],
)
def test_planted_faults_are_found(
    pattern: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products that nobody waits for or orders; barriers that nobody waits for; no turns."""
    case = Case(Spec(64, 64, "none", "f16"), 70, 150, heads=1)
    ptx = attention.compiled(case.spec, SM_90A, (65,))
    planted = {"@complete bra done": "bra done", r"bar\.arrive": "//"}.get(pattern, "")
    text, count = re.subn(pattern, planted, ptx.text)
    assert count > 1
    monkeypatch.setattr(attention, "compiled", lambda *_: replace(ptx, text=text))
    with pytest.raises(PtxFault, match=fault):
        attention.check(case, 1e-3)


def test_chosen_for_prompts_on_that_target_alone() -> None:
    for targets, columns, taken in (
        ("sm_90a", 64, True),
        ("sm_80,sm_90a", 64, False),
        ("sm_90a", 256, False),
        ("sm_90a", 16, False),
    ):
        target = CudaTarget.named(targets)
        assert target is not None
        variants = target.attention(columns, columns, "add", half=True)
        for rows in (9, 64, 65, 4096):
            (found,) = [variant for variant in variants if variant.covers(rows)]
            assert ("wgmma" in found.kernel.name) == (taken and rows > 64)


@needs_ptxas
@pytest.mark.parametrize(
    ("precision", "stored", "columns"),
    [
        ("f16", "f16", 64),
        ("f16", "f16", 128),
        ("f16", "f32", 64),
        ("f16", "f32", 128),
        ("bf16x3", "f32", 128),
    ],
)
def test_machine_code(
    precision: attention.Precision, stored: Stored, columns: int, tmp_path: Path
) -> None:
    """With boxes and without, with every kind of mask: nothing spilled, no product serialized, no
    fence injected: ptxas would say so."""
    kernels: list[Kernel | None] = []
    for mask in get_args(MaskKind):
        spec = Spec(columns, columns, mask, precision, keys=stored, values=stored)
        variant = attention_kernels(spec, wgmma_rows=65)[-1]
        kernels.append(variant.kernel)
        if mask == "add":
            kernels += [variant.prepare, variant.limits]
    made = [kernel for kernel in kernels if kernel is not None]
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        for kernel in made:
            kernel.emit(module, SM_90A)
        text = compile_ptx(module, SM_90A).text
    source = tmp_path / "k.ptx"
    source.write_text(text)
    command = [
        str(find_tool("ptxas")),
        "-v",
        "-arch=sm_90a",
        str(source),
        "-o",
        str(tmp_path / "k"),
    ]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "warning" not in log and "erializ" not in log and "(C75" not in log
    assert log.count(" 0 bytes spill stores, 0 bytes spill loads") == len(made)
    # With fewer at the start, warps that ask for more later would wait for ever.
    assert log.count("Used 168 registers") == text.count(".maxnreg 168") > 0
