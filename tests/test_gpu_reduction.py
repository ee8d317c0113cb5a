"""The reduction of a split: parts are added in order, whatever the number of columns."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.builder import Value
from abqc.codegen.gpu.arch import SM_80
from abqc.codegen.gpu.assembly.compile import compile_ptx
from abqc.codegen.gpu.builder import GpuBuilder
from abqc.codegen.gpu.matmul.reduction import COLUMNS, THREADS, Finish, emit_reduction
from abqc.dialects.mlir import ir
from abqc.runtime.ptx import run_kernel

SPLIT = 3


def with_bias(b: GpuBuilder, _q: Value, _w: Value, bias: Value, _m: Value, _n: Value) -> Finish:
    return lambda total, _row, column: total + b.load(bias, "f32", b.wide(column) * 4)


@pytest.fixture(scope="module")
def text() -> str:
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        emit_reduction("add", SPLIT, "f32", with_bias, module, SM_80)
        return compile_ptx(module, SM_80).text


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 10), (2, 516), (2, 515), (1, 1028)])
def test_parts_are_added_in_order(text: str, m: int, n: int) -> None:
    rng = np.random.default_rng(n)
    parts = (rng.standard_normal((SPLIT, m, n)) * 1e4).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    y = np.full(m * n, np.nan, np.float32)
    operands = [parts.reshape(-1), np.zeros(4, np.uint8), np.zeros(4, np.uint8), bias, y, m, n]
    made = run_kernel(text, "add", m * -(-n // COLUMNS), THREADS, operands)[4]
    expected = (parts[0] + parts[1]) + parts[2] + bias
    np.testing.assert_array_equal(made.reshape(m, n), expected)
