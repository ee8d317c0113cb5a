"""ArgMax and ArgMin of rows in the PTX machine."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.gpu.lines.arg_extreme import arg_extreme_kernels
from gpu_kernels import output, run, take

DTYPES = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "i8": np.int8, "i64": np.int64}


def check(x: np.ndarray, element: str, *, largest: bool, variant: int) -> None:
    rows, n = x.shape
    kernel = arg_extreme_kernels(element, largest=largest)[variant].kernel
    arguments = [x.reshape(-1), output(rows, np.int64), rows, n]
    _, places = run(kernel, kernel.grid(rows), arguments)[:2]
    want = x.argmax(axis=1) if largest else x.argmin(axis=1)
    np.testing.assert_array_equal(take(places), want)


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("variant", [0, 1], ids=["warp", "block"])
def test_against_numpy(element: str, variant: int) -> None:
    """Many elements are equal."""
    random = np.random.default_rng(variant)
    for rows, n in ((1, 1), (9, 40), (3, 700), (2, 4500 * variant + 3)):
        x = random.integers(-9, 9, (rows, n)).astype(DTYPES[element])
        for largest in (True, False):
            check(x, element, largest=largest, variant=variant)


def test_infinities_zeros_and_extremes() -> None:
    inf = np.inf
    x = np.array([[-0.0, 0.0, -1], [-inf, -inf, -inf], [inf, 3, inf], [2, -inf, -inf]], np.float32)
    smallest = np.full((2, 5), np.iinfo(np.int64).min)
    for largest in (True, False):
        for variant in (0, 1):
            check(x, "f32", largest=largest, variant=variant)
            check(smallest, "i64", largest=largest, variant=variant)
    x[:, 1] = np.nan
    check(x, "f32", largest=True, variant=0)
