"""Products with rows of quantized caches on a CPU, against what numpy decodes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from abqc.codegen.cpu.float_products.batch_matmul import batch_matmul_kernels
from abqc.codegen.cpu.float_products.cache_rows import CacheRows
from abqc.codegen.isa import Isa
from abqc.dialects.cache_formats import parse_cache_format
from kernel_cases import ISAS, Kernels, compile_jit

# The format, elements of a row: 16 of them fill a register, or do not.
ROWS = [
    CacheRows(parse_cache_format(text), columns)
    for text, columns in [
        ("kv8", 24), ("kv5", 33), ("kv4:g16", 48), ("kv-bfp6", 64),
    ]
]  # fmt: skip
SIZES = [(1, 1, 1, 1), (2, 1, 70, 2), (6, 3, 50, 3), (1, 130, 17, 1), (2, 2, 0, 1)]


@cache
def jit(isa: Isa, rows: CacheRows) -> Kernels:
    variants = [v for t in (False, True) for v in batch_matmul_kernels(t, rows)]
    return compile_jit(isa, [variant.kernel for variant in variants])


def cached(rows: CacheRows, shared: int, length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows of caches with room behind, whose bytes must not be read; their values; the pitch."""
    rng = np.random.default_rng(length)
    floats = rng.standard_normal((shared, length, rows.columns)).astype(np.float32)
    stored = rows.format.encode(floats)
    pitch = length * rows.row_bytes + 12
    buffer = np.full((shared, pitch), 255, np.uint8)
    buffer[:, : length * rows.row_bytes] = stored.reshape(shared, -1)
    return buffer.reshape(-1), rows.format.decode_stored(stored, rows.columns), pitch


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: rows.name)
def test_rows_are_decoded(isa: Isa, rows: CacheRows, sizes: tuple[int, int, int, int]) -> None:
    batch, m, length, group = sizes
    buffer, values, pitch = cached(rows, -(-batch // group), length)
    values = np.repeat(values, group, axis=0)[:batch].astype(np.float64)
    rng = np.random.default_rng(m)
    for transposed in (False, True):
        k, n = (rows.columns, length) if transposed else (length, rows.columns)
        a = rng.standard_normal((batch, m, k)).astype(np.float32)
        y = np.full(batch * m * n + 16, np.nan, np.float32)
        variants = batch_matmul_kernels(transposed, rows)
        kernel = next(v.kernel for v in variants if v.covers(m))
        arguments = [a.reshape(-1), buffer.view(np.int8), y[:-16], m, n, k, group, pitch]
        jit(isa, rows).run(kernel.name, kernel.grid(batch, m, n), arguments)
        assert np.isnan(y[-16:]).all()
        matrix = values.swapaxes(1, 2) if transposed else values
        error = np.abs(y[:-16].reshape(batch, m, n) - a.astype(np.float64) @ matrix)
        assert (error <= 1e-6 * (np.abs(a).astype(np.float64) @ np.abs(matrix)) + 1e-9).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_group_that_is_not_finite_is_nan(isa: Isa) -> None:
    for rows in (ROWS[2], ROWS[-1]):
        floats = np.ones((3, rows.columns), np.float32)
        floats[1, 5] = np.inf
        buffer = replace(rows.format, channels="plain").encode(floats).reshape(-1)
        y = np.zeros(3, np.float32)
        kernel = batch_matmul_kernels(True, rows)[0].kernel
        x, k = np.ones(rows.columns, np.float32), rows.columns
        arguments = [x, buffer.view(np.int8), y, 1, 3, k, 1, buffer.size]
        jit(isa, rows).run(kernel.name, kernel.grid(1, 1, 3), arguments)
        assert np.isnan(y[1]) and np.array_equal(y[[0, 2]], [k, k])
