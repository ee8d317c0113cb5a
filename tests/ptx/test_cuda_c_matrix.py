"""CUDA C on matrices: tiles, asynchronous copies, tensor cores; against numpy."""

from __future__ import annotations

import numpy as np
from cuda_c import floats, from_bfloat16, integers, output, to_bfloat16


def test_tiled_matmul(matrix, rng) -> None:
    m, n, k = 21, 37, 45
    a, b = floats(rng, m, k), floats(rng, k, n)
    c = matrix("tiled_matmul", (3, 2), (16, 16), a, b, output(m, n), m, n, k)
    np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-4)


def test_transpose(matrix, rng) -> None:
    x = floats(rng, 45, 70)
    y = matrix("transpose", (3, 2), (32, 4), x, output(70, 45), 45, 70)
    np.testing.assert_array_equal(y, x.T)


def test_stencil(matrix, rng) -> None:
    x = floats(rng, 20, 37)
    y = matrix("stencil", (3, 3), (16, 8), x, output(20, 37), 37, 20)
    p = np.pad(x, 1)
    around = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]
    np.testing.assert_allclose(y, 0.5 * x + 0.125 * around, rtol=1e-5, atol=1e-6)


def test_pipelined_sum(matrix, rng) -> None:
    x = floats(rng, 2, 5, 64, 4)
    sums = matrix("pipelined_sum", 2, 64, x, output(2, 64), 5)
    expected = (x.sum(1) @ np.arange(1, 5, dtype=np.float32))[:, ::-1]
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-4)


def test_copy_with_zeros(matrix, rng) -> None:
    x = integers(rng, -100, 100, 54)
    y = matrix("copy_with_zeros", 1, 32, x, output(128, dtype=np.int32), 54)
    np.testing.assert_array_equal(y, np.roll(np.pad(x, (0, 74)), -1))


def test_mma_b1(matrix, rng) -> None:
    a, b = (
        integers(rng, 0, 256, 16, 64, dtype=np.uint8),
        integers(rng, 0, 256, 8, 64, dtype=np.uint8),
    )
    c = matrix("mma_b1", 1, 32, a, b, output(16, 8, dtype=np.int32), 2)
    np.testing.assert_array_equal(c, np.unpackbits(a[:, None] & b[None], axis=2).sum(2))


def test_mma_s4(matrix, rng) -> None:
    a, b = integers(rng, -8, 8, 16, 128), integers(rng, 0, 16, 8, 128)

    def pack(codes: np.ndarray) -> np.ndarray:
        return (codes[:, ::2] & 15 | (codes[:, 1::2] & 15) << 4).astype(np.uint8)

    c = matrix("mma_s4", 1, 32, pack(a), pack(b), output(16, 8, dtype=np.int32), 2)
    np.testing.assert_array_equal(c, a @ b.T)


def test_mma_s8(matrix, rng) -> None:
    a = integers(rng, 0, 256, 16, 96, dtype=np.uint8)
    b = integers(rng, -128, 128, 8, 96, dtype=np.int8)
    c = matrix("mma_s8", 1, 32, a, b, output(16, 8, dtype=np.int32), 3)
    np.testing.assert_array_equal(c, a.astype(np.int32) @ b.T.astype(np.int32))


def test_mma_f16(matrix, rng) -> None:
    a, b = floats(rng, 16, 48).astype(np.float16), floats(rng, 8, 48).astype(np.float16)
    c = matrix("mma_f16", 1, 32, a, b, output(16, 8), 3)
    np.testing.assert_allclose(c, a.astype(np.float64) @ b.T, rtol=1e-5, atol=1e-5)


def test_mma_bf16(matrix, rng) -> None:
    a, b = to_bfloat16(floats(rng, 16, 48)), to_bfloat16(floats(rng, 8, 48))
    c = matrix("mma_bf16", 1, 32, a, b, output(16, 8), 3)
    np.testing.assert_allclose(c, from_bfloat16(a) @ from_bfloat16(b).T, rtol=1e-5, atol=1e-5)


def test_mma_tf32(matrix, rng) -> None:
    a, b = floats(rng, 16, 24), floats(rng, 8, 24)
    c = matrix("mma_tf32", 1, 32, a, b, output(16, 8), 3)
    a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
    np.testing.assert_allclose(c, a @ b.T, rtol=1e-5, atol=1e-5)


def test_mma_through_shared(matrix, rng) -> None:
    a, b = floats(rng, 16, 16).astype(np.float16), floats(rng, 16, 8).astype(np.float16)
    c = matrix("mma_through_shared", 1, 32, a, b, output(16, 8))
    np.testing.assert_allclose(c, a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5)
