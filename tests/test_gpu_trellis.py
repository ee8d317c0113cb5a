"""The GPU strategy trellis in the PTX machine, against numpy."""

from __future__ import annotations

import gpu_kernels
import numpy as np
import pytest
from abqc.codegen.gpu.arch import ALL, SM_75, SM_80, SM_90A, GpuArch
from abqc.codegen.gpu.packing.layout import Int8Rows, round_to
from abqc.codegen.gpu.trellis.layout import TrellisLayout
from abqc.codegen.gpu.trellis.strategy import SCHEDULES, TrellisMatmul
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.dialects import reference
from abqc.dialects.formats import parse_scheme, quantize_activation, quantize_weight

STRATEGY = TrellisMatmul()
TOLERANCE = 2.0**-20  # of the sum of |terms|, docs/numerics.md


def operands(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(k)
    w, x, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, k), (m, k), n))
    return w, x + np.float32(0.3), bias


def run(
    spec: MatmulSpec, arch: GpuArch, rows: np.ndarray, blob: np.ndarray, bias: np.ndarray, m: int
) -> np.ndarray:
    schedule = SCHEDULES[0] if m <= SCHEDULES[0].block_m else SCHEDULES[1]
    kernel = STRATEGY.kernel(spec, schedule)
    y = gpu_kernels.output(m * spec.n)
    arguments = [rows, blob, bias, y, m, spec.n]
    y = gpu_kernels.run(kernel, kernel.grid(m, spec.n), arguments, arch)[3]
    return gpu_kernels.take(y).reshape(m, spec.n)


@pytest.mark.parametrize(
    ("weight", "activation", "m", "n", "k", "arch"),
    [
        ("w2v", "a8", 1, 70, 70, SM_75),
        ("w2v", "a8:token:sym", 5, 300, 33, SM_90A),
        ("w3v:g33", "a8", 2, 40, 97, SM_80),
        ("w1v", "a4", 3, 17, 20, SM_80),
        ("w4v:g64", "a1", 1, 260, 70, SM_80),
        ("w5v", "a8", 3, 35, 50, SM_80),
        ("w6v:g20", "a4", 2, 260, 30, SM_80),
    ],
)
def test_exact(weight: str, activation: str, m: int, n: int, k: int, arch: GpuArch) -> None:
    spec = MatmulSpec(n, k, parse_scheme(weight), parse_scheme(activation))
    w, x, bias = operands(m, n, k)
    assert spec.weight is not None and spec.activation is not None
    q = quantize_weight(w, spec.weight)
    codes, scale, zero = quantize_activation(x, spec.activation)
    rows = Int8Rows.of(spec).pack_reference(codes, scale, zero)
    y = run(spec, arch, rows, STRATEGY.pack_weight(spec, q), bias, m)
    acc = reference.accumulate(codes, zero, q.codes, None, spec.weight)
    expected = reference.scale_accumulators(acc, scale, q.scale, bias)
    assert (np.abs(y - expected) <= reference.tolerance(acc, scale, q.scale, bias)).all()


@pytest.mark.parametrize(
    ("weight", "half", "m", "n", "k"),
    [
        ("w2v", "f16", 1, 70, 50),
        ("w3v:g20", "bf16", 3, 20, 70),
        ("w1v", "f16", 4, 260, 9),
        ("w5v", "f16", 2, 260, 20),
    ],
)
def test_float_activations(weight: str, half: str, m: int, n: int, k: int) -> None:
    spec = MatmulSpec(n, k, parse_scheme(weight), None, half=half)  # type: ignore[arg-type]
    w, x, bias = operands(m, n, k)
    assert spec.weight is not None
    q = quantize_weight(w, spec.weight)
    y = run(spec, SM_80, x, STRATEGY.pack_weight(spec, q), bias, m)
    rounded = round_to(x, spec.half)
    if half == "bf16":
        rounded = (rounded.astype(np.uint32) << 16).view(np.float32)
    exact, values = rounded.astype(np.float64), q.dequantize().astype(np.float64)
    terms = np.abs(exact) @ np.abs(values.T) + np.abs(bias)
    assert (np.abs(y - (exact @ values.T + bias)) <= TOLERANCE * terms).all()


def test_the_size_of_a_packed_weight_is_known() -> None:
    for n, k in ((576, 100), (17, 9), (300, 64)):
        spec = MatmulSpec(n, k, parse_scheme("w3v:g32"), parse_scheme("a8"))
        assert spec.weight is not None
        blob = STRATEGY.pack_weight(spec, quantize_weight(operands(1, n, k)[0], spec.weight))
        assert blob.size == TrellisLayout.of(spec).nbytes(n)


@pytest.mark.parametrize("activation", ["a8", None])
def test_it_is_the_only_strategy(activation: str | None) -> None:
    target = CudaTarget.named("cuda")
    assert target is not None
    a_scheme = parse_scheme(activation) if activation else None
    spec = MatmulSpec(64, 128, parse_scheme("w2v"), a_scheme)
    (choice,) = target.choose([spec], nodes=["n"])
    assert choice.strategy.name == "trellis"
    assert [variant.max_rows for variant in choice.strategy.matmul_kernels(spec)][-1] is None
    scalar = MatmulSpec(64, 128, parse_scheme("w2"), a_scheme)
    assert STRATEGY.unsupported(scalar, ALL[0])
