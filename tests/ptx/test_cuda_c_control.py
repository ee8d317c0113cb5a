"""CUDA C with loops, jump tables, calls and local arrays; against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx import PtxSyntaxError
from cuda_c import N, integers, output


def test_collatz(control, rng) -> None:
    x = integers(rng, 1, 300, N, dtype=np.uint32)
    steps = control("collatz", 3, 128, x, output(N, dtype=np.int32), N)

    def length(value: int) -> int:
        count = 0
        while value != 1:
            value = 3 * value + 1 if value % 2 else value // 2
            count += 1
        return count

    assert steps.tolist() == [length(int(value)) for value in x]


def test_dispatch(control, rng) -> None:
    operation, x = integers(rng, -1, 10, N), integers(rng, 0, 50, N)
    y = control("dispatch", 3, 128, operation, x, output(N, dtype=np.int32), N)

    def repeated(v: int) -> int:
        for k in range(x[1]):
            v = v * 3 + k
        return v

    choices = {
        0: lambda v: v + 17,
        1: lambda v: v * v - int(x[0]),
        2: lambda v: v ^ 0x5A5A,
        3: lambda v: abs(v - 10) << 3,
        4: lambda v: v << 3,
        5: repeated,
        6: lambda v: v.bit_count(),
        7: lambda v: -v,
    }
    zero = lambda v: 0  # noqa: E731
    expected = [
        choices.get(int(o), zero)(int(v)) & 0xFFFFFFFF for o, v in zip(operation, x, strict=True)
    ]
    assert y.view(np.uint32).tolist() == expected


def test_mandelbrot(control) -> None:
    width, height, limit = 20, 12, 30
    counts = control(
        "mandelbrot", (2, 2), (16, 8), output(height, width, dtype=np.int32), width, height, limit
    )
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    c = (-2 + 2.5 * x / width) + 1j * (-1.25 + 2.5 * y / height)
    z, expected = np.zeros_like(c), np.zeros(c.shape, np.int32)
    for _ in range(limit):
        inside = np.abs(z) < 2
        expected += inside
        z = np.where(inside, z * z + c, z)
    # Rounding may decide a point that comes close to the circle.
    assert (counts == expected).mean() > 0.98


def test_common_divisors(control, rng) -> None:
    a, b = integers(rng, 0, 10000, 2, N, dtype=np.uint32)
    out = control("common_divisors", 3, 128, a, b, output(N, dtype=np.uint32), N)
    np.testing.assert_array_equal(out, np.gcd(a, b))


def test_true_recursion_is_refused(control) -> None:
    """Device functions are inlined: the error names the one that calls itself."""
    with pytest.raises(PtxSyntaxError, match=r"recursion through .*binomial"):
        control("binomials", 1, 32, output(32, dtype=np.int32))


def test_local_array(control, rng) -> None:
    x = integers(rng, 0, 100, N)
    y = control("local_array", 3, 128, x, output(N, dtype=np.int32), N)
    for i in range(N):
        counts = np.bincount(x[(i + np.arange(24) * 7) % N] & 15, minlength=16)
        assert y[i] == counts.argmax() * 100 + counts.max()


def test_first_zero(control, rng) -> None:
    x = integers(rng, 0, 12, 64, 5, 7)
    found = control("first_zero", 1, 64, x, output(64, dtype=np.int32), 5, 7)
    for i in range(64):
        zeros = np.argwhere(x[i] == 0)
        assert found[i] == (zeros[0] @ [1000, 1] if zeros.size else -1)
