"""Normalization kernels in the PTX machine, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_75, SM_80, SM_120A, GpuArch
from abqc.codegen.gpu.assembly.compile import Ptx, assemble, compile_ptx
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.rows.norm import norm_kernel
from abqc.codegen.gpu.rows.softmax import softmax_kernel
from abqc.codegen.strategy import Kernel
from abqc.dialects.mlir import ir
from abqc.dialects.norm_spec import NormSpec
from abqc.runtime.ptx import run_kernel

EPSILON = 1e-5
SPECS = (
    NormSpec("layer", 384, bias=True),
    NormSpec("layer", 51, weight=False),
    NormSpec("layer", 1090, bias=True, residual=True),
    NormSpec("rms", 576, residual=True, keeps_sum=True),
    NormSpec("rms", 2048),
)


def compiled(kernel: Kernel, arch: GpuArch = SM_80) -> Ptx:
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        kernel.emit(module, arch)
        return compile_ptx(module, arch)


def launch(kernel: Kernel, grid: int, arguments: list) -> list[np.ndarray]:
    ptx = compiled(kernel)
    shape = ptx.kernels[kernel.name]
    return run_kernel(
        ptx.text, kernel.name, grid, shape.threads, arguments, shared_bytes=shape.shared
    )


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_against_float64(spec: NormSpec) -> None:
    rows = 5
    x, residual = normal(rows, spec.columns) + 3, normal(rows, spec.columns, seed=1)
    weight, bias = normal(spec.columns, seed=2), normal(spec.columns, seed=3)
    y = np.zeros_like(x)
    arguments = [x]
    arguments += [residual] if spec.residual else []
    arguments += [weight] if spec.weight else []
    arguments += [bias] if spec.bias else []
    place = len(arguments)
    arguments += [y, np.zeros_like(x)] if spec.keeps_sum else [y]
    kernel = norm_kernel(spec)
    outputs = launch(kernel, kernel.grid(rows), [*arguments, rows, EPSILON])
    total = x + residual if spec.residual else x
    if spec.keeps_sum:
        np.testing.assert_array_equal(outputs[place + 1], total)
    exact = total.astype(np.float64)
    if spec.kind == "layer":
        exact = exact - exact.mean(axis=1, keepdims=True)
    exact = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + EPSILON)
    exact = exact * (weight if spec.weight else 1) + (bias if spec.bias else 0)
    np.testing.assert_allclose(outputs[place], exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("columns", [1, 37, 300])
def test_softmax(columns: int) -> None:
    x = normal(4, columns) * 10
    x[1, 0] = -np.inf
    x[2] = -np.inf
    x[3, -1] = np.nan
    (_, y, *_) = launch(softmax_kernel(), 4, [x, np.zeros_like(x), columns])
    with np.errstate(invalid="ignore"):
        p = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
        want = p / p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
@pytest.mark.parametrize("arch", [SM_75, SM_80, SM_120A], ids=lambda arch: arch.name)
def test_targets_assemble_without_spills(arch: GpuArch) -> None:
    for kernel in (norm_kernel(NormSpec("layer", 16384, bias=True, residual=True)),
                   norm_kernel(SPECS[1]), softmax_kernel()):  # fmt: skip
        resources = assemble(compiled(kernel, arch).text, arch).resources
        assert all(used.spill_stores == 0 for used in resources.values()), resources
