"""Selections of the largest and smallest in the PTX machine."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.gpu.lines.top_k import top_k_kernels
from gpu_kernels import output, run, take

DTYPES = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "i8": np.int8, "i64": np.int64}


def reference(x: np.ndarray, k: int, *, largest: bool) -> np.ndarray:
    """The places: x is outer x n x inner, NaN larger than any number."""
    order = np.argsort(x, axis=1, kind="stable")
    if largest:
        mirrored = np.argsort(x[:, ::-1], axis=1, kind="stable")[:, ::-1]
        order = x.shape[1] - 1 - mirrored
    return order[:, :k]


def check(x: np.ndarray, k: int, element: str, *, largest: bool, variant: int = 0) -> None:
    outer, n, inner = x.shape
    kernel = top_k_kernels(element, largest=largest)[variant].kernel
    count = outer * k * inner
    values, indices = output(count, x.dtype.type), output(count, np.int64)
    arguments = [x.reshape(-1), values, indices, n, k, inner]
    (_, values, indices, *_) = run(kernel, outer * inner, arguments)
    want = reference(x, k, largest=largest)
    np.testing.assert_array_equal(take(indices).reshape(outer, k, inner), want)
    got = take(values).reshape(outer, k, inner)
    np.testing.assert_array_equal(got, np.take_along_axis(x, want, 1))


def values(shape: tuple[int, ...], element: str, levels: int) -> np.ndarray:
    """So few different values that there are ties, or all bits."""
    random, dtype = np.random.default_rng(sum(shape) + levels), DTYPES[element]
    if element.startswith("i"):
        info = np.iinfo(dtype)
        return random.integers(info.min, info.max, shape, dtype) // dtype(max(1, 100 // levels))
    return np.round(random.standard_normal(shape) * levels).astype(dtype) / dtype(levels)


@pytest.mark.parametrize("element", DTYPES)
def test_against_numpy(element: str) -> None:
    for n, k, inner, levels in ((1, 1, 1, 4), (37, 5, 1, 2), (300, 300, 1, 50), (700, 3, 2, 1000)):
        x = values((2, n, inner), element, levels)
        check(x, k, element, largest=bool(n % 2))


def test_ragged_lengths_and_ties() -> None:
    random = np.random.default_rng(0)
    for largest in (True, False):
        for _ in range(4):
            n = int(random.integers(2, 600))
            k = int(random.integers(0, n + 1))
            check(values((1, n, 1), "f32", 1), k, "f32", largest=largest)


def test_long_lines() -> None:
    """More elements than threads, and more threads."""
    check(values((1, 9000, 1), "f32", 30), 70, "f32", largest=True, variant=1)


def test_signs_of_zero_infinities_and_nan() -> None:
    nan, inf = np.nan, np.inf
    x = np.array([0.0, -0.0, nan, -inf, inf, -nan, 1e-45, -1e-45, 0.0, inf], np.float32)
    for largest in (True, False):
        for k in (3, 7, 10):
            check(x.reshape(1, -1, 1), k, "f32", largest=largest)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_lines(seed: int) -> None:
    random = np.random.default_rng(seed)
    element = random.choice(list(DTYPES))
    n, inner = int(random.integers(1, 5000)), int(random.integers(1, 3))
    k = int(random.integers(0, n + 1))
    x = values((1, n, inner), element, int(10 ** random.integers(0, 4)))
    check(x, k, element, largest=bool(seed % 2), variant=int(random.integers(2)))
