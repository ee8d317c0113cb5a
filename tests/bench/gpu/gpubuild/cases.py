"""Test cases: small ragged matmuls for every kernel, and what numpy makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from abqc.codegen.gpu.packing.layout import FloatRows, Int8Rows
from abqc.codegen.gpu.planes.layout import PlaneRows
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import formats, hadamard, reference
from abqc.dialects.formats import QuantizedTensor
from gpukit.kit import CheckCase
from gpukit.operands import activations, digests

from .matmuls import Chosen
from .plan import Plan

# Of the largest output. Activations are multiples of 1/32, whose products with codes have exact
# sums: what is left is rounding of scaled sums. A rotation in another order changes a code now and
# then.
FLOAT_TOLERANCE, ROTATED_TOLERANCE = 1e-5, 1e-2
FEW_ROWS = 8


def check_cases(plan: Plan, chosen: Sequence[Chosen], folder: Path) -> list[CheckCase]:
    """One case for each matmul kernel; writes their operands to `folder`/cases."""
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    by_kernel = {c.kernel.name: c for c in chosen}
    files: dict[tuple[str, int, str], tuple[str, str]] = {}
    cases = []
    for name, c in by_kernel.items():
        k, n = c.spec.k, plan.check_columns(c.spec.k)
        key = (c.format, k, c.strategy.name)
        if key not in files:
            files[key] = _write(plan, replace(c.spec, n=n), c, folder)
        file, digest = files[key]
        m = min(_ragged_rows(c.schedule.block_m), plan.check_rows)
        own = replace(c, spec=replace(c.spec, n=n))
        cases.append(
            CheckCase(
                f"{name} M={m} N={n}",
                *(c.format, c.strategy.name, c.schedule.name),
                *(m, n, k, file, digest[: 8 * m], own.launches(m, n)),
            )
        )
    return cases


def _ragged_rows(block_m: int) -> int:
    """Part of a block of few rows, else a whole block and part of another."""
    if block_m <= FEW_ROWS:
        return max(1, block_m - block_m // 3)
    return block_m + 3


def _write(plan: Plan, spec: MatmulSpec, c: Chosen, folder: Path) -> tuple[str, str]:
    """The file of a matmul's operands and results; the digests of its packed rows."""
    rng = np.random.default_rng(spec.k)
    assert spec.weight is not None
    dense = rng.standard_normal((spec.n, spec.k), np.float32)
    weight = formats.quantize_weight(dense, spec.weight)
    bias = rng.standard_normal(spec.n, np.float32)
    x = activations(plan.check_rows, spec.k)
    y, allowed, rows = expected(spec, c.strategy.name, x, weight, bias)
    file = f"{c.format}_k{spec.k}_{c.strategy.name}.npz"
    blob = c.strategy.pack_weight(spec, weight)
    path = folder / "cases" / file
    np.savez_compressed(path, weight=blob, bias=bias, y=y, allowed=_short(allowed))
    return file, digests(rows)


def _short(allowed: np.ndarray) -> np.ndarray:
    """f32 of 6 bits of mantissa, which compress well: at most 2 % less is allowed."""
    return (allowed.astype(np.float32).view(np.uint32) & np.uint32(0xFFFE0000)).view(np.float32)


def expected(
    spec: MatmulSpec, strategy: str, x: np.ndarray, weight: QuantizedTensor, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, how far from it a kernel may be (0: to the bit), and the packed rows; none where these
    need not be the same to the bit."""
    if spec.activation is None:
        y = reference.matmul_float(x, weight, bias)
        allowed = np.full(y.shape, FLOAT_TOLERANCE * np.abs(y).max())
        return y, allowed, FloatRows.of(spec, spec.half).pack_reference(x)
    if spec.hadamard_block:
        x = hadamard.transform(x, spec.hadamard_block)
    codes, scale, zero = formats.quantize_activation(x, spec.activation)
    acc = reference.accumulate(codes, zero, weight.codes, weight.zero, weight.scheme)
    y = reference.scale_accumulators(acc, scale, weight.scale, bias)
    layout = PlaneRows.of(spec) if strategy == "planes" else Int8Rows.of(spec)
    rows = layout.pack_reference(codes, scale, zero)
    if spec.hadamard_block:
        return y, np.full(y.shape, ROTATED_TOLERANCE * np.abs(y).max()), rows[:0]
    return y, reference.tolerance(acc, scale, weight.scale, bias), rows
