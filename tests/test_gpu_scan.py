"""Running sums in the PTX machine."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.gpu.lines.scan import scan_columns_kernel, scan_rows_kernel
from gpu_kernels import output, run, take

DTYPES = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64}
SHAPES = ((3, 5, 1), (2, 2049, 1), (2, 70, 3), (1, 130, 40), (2, 1, 33), (1, 0, 2))


def scan(element: str, x: np.ndarray, *, by_rows: bool) -> np.ndarray:
    outer, n, inner = x.shape
    kernel = scan_rows_kernel(element) if by_rows else scan_columns_kernel(element)
    grid = outer * kernel.grid(inner)
    (_, y, *_) = run(kernel, grid, [x.reshape(-1), output(x.size, x.dtype.type), n, inner])
    return take(y).reshape(x.shape)


def values(shape: tuple[int, ...], element: str) -> np.ndarray:
    random = np.random.default_rng(len(element) + sum(shape))
    if element.startswith("i"):
        info = np.iinfo(DTYPES[element])
        return random.integers(info.min, info.max, shape, DTYPES[element])  # sums wrap around
    return random.standard_normal(shape).astype(DTYPES[element])


@pytest.mark.parametrize("by_rows", [True, False], ids=["rows", "columns"])
@pytest.mark.parametrize("element", DTYPES)
def test_against_numpy(element: str, by_rows: bool) -> None:
    for shape in SHAPES if element in ("f32", "i64") else SHAPES[:3]:
        x = values(shape, element)
        y = scan(element, x, by_rows=by_rows)
        if element.startswith("i"):
            np.testing.assert_array_equal(y, np.cumsum(x, axis=1, dtype=x.dtype))
            continue
        exact = np.cumsum(x.astype(np.float64), axis=1)
        terms = np.cumsum(np.abs(x.astype(np.float64)), axis=1)
        assert (np.abs(y - exact) <= terms * 64 * np.finfo(x.dtype).eps).all()


def test_infinity_and_nan_reach_what_comes_after() -> None:
    x = np.ones((1, 2100, 1), np.float32)
    x[0, 40], x[0, 2060], x[0, 2070] = np.inf, -np.inf, 1
    with np.errstate(invalid="ignore"):
        want = np.cumsum(x, axis=1)
    for by_rows in (True, False):
        np.testing.assert_array_equal(scan("f32", x, by_rows=by_rows), want)
