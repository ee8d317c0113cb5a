"""CUDA C whose threads work together: shared memory, shuffles, votes, atomics; against numpy."""

from __future__ import annotations

import numpy as np
from cuda_c import N, floats, integers, output


def test_block_sum(collective, rng) -> None:
    x = floats(rng, N)
    sums = collective("block_sum", 2, 256, x, output(2), N)
    np.testing.assert_allclose(sums, [x[:256].sum(), x[256:].sum()], rtol=1e-5, atol=1e-5)


def test_warp_sum(collective, rng) -> None:
    x = floats(rng, 256)
    sums = collective("warp_sum", 2, 128, x, output(8))
    np.testing.assert_allclose(sums, x.reshape(8, 32).sum(1), rtol=1e-5, atol=1e-5)


def test_inclusive_scan(collective, rng) -> None:
    x = integers(rng, -50, 50, 200)
    y = collective("inclusive_scan", 1, 256, x, output(200, dtype=np.int32), 200, shared_bytes=2048)
    np.testing.assert_array_equal(y, np.cumsum(x))


def test_histogram(collective, rng) -> None:
    data = integers(rng, 0, 256, 1000, dtype=np.uint8)
    _, bins = collective("histogram", 3, 96, data, np.zeros(64, np.uint32), 1000)
    np.testing.assert_array_equal(bins, np.bincount(data & 63, minlength=64))


def test_softmax(collective, rng) -> None:
    x = floats(rng, 3, 75) * 4
    y = collective("softmax", 3, 64, x, output(3, 75), 75)
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-5, atol=1e-7)


def test_layer_norm(collective, rng) -> None:
    x, gain, bias = floats(rng, 3, 75), floats(rng, 75), floats(rng, 75)
    y = collective("layer_norm", 3, 64, x, gain, bias, output(3, 75), 75, 1e-5)
    centred = x - x.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * gain + bias
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_bitonic_sort(collective, rng) -> None:
    keys = integers(rng, -1000, 1000, 2, 128)
    (result,) = collective("bitonic_sort", 2, 128, keys)
    np.testing.assert_array_equal(result, np.sort(keys, 1))


def test_divergent_prefix(collective, rng) -> None:
    x = integers(rng, -300, 1000, 128)
    y = collective("divergent_prefix", 2, 64, x, output(128, dtype=np.int32))
    expected = np.zeros(128, np.int32)
    for i in range(128):
        upto = x[i & ~31 : i + 1]
        large = np.flatnonzero(upto > 900)
        counted = upto[: large[0]] if large.size else upto
        expected[i] = counted[counted >= 0].sum()
    np.testing.assert_array_equal(y, np.roll(expected.reshape(4, 32), -1, axis=1).ravel())


def test_compact_positive(collective, rng) -> None:
    x = integers(rng, -100, 100, N)
    _, kept, count = collective(
        "compact_positive", 3, 128, x, np.zeros(N, np.int32), np.zeros(1, np.int32), N
    )
    positive = x[x > 0]
    assert count == positive.size
    np.testing.assert_array_equal(np.sort(kept[: positive.size]), np.sort(positive))


def test_atomic_largest(collective, rng) -> None:
    x = np.abs(floats(rng, N))
    _, largest = collective("atomic_largest", 3, 128, x, np.zeros(1, np.int32), N)
    assert largest.view(np.float32) == x.max()


def test_atomic_operations(collective, rng) -> None:
    x = integers(rng, -1000, 1000, N)
    cells = np.array([-5000, 5000, 0, 0, -1, 1000, 0], np.int32)
    result, _, total, wide = collective(
        "atomic_operations", 3, 128, cells, x, np.zeros(1, np.float32), np.zeros(1, np.uint64), N
    )
    bits = int(np.bitwise_or.reduce(np.uint32(1) << (x & 31).astype(np.uint32)))
    expected = [x.max(), x.min(), bits, np.bitwise_xor.reduce(x), -1 << 16, 400, N % 10]
    np.testing.assert_array_equal(result, np.array(expected, np.int64).astype(np.int32))
    assert total == N / 2
    assert wide == N << 33


def test_warp_votes(collective, rng) -> None:
    x = integers(rng, -20, 1000, 64)
    rows = collective("warp_votes", 1, 64, x, output(64, 8, dtype=np.int32))
    for i in range(64):
        lane, warp = i % 32, x[i // 32 * 32 : i // 32 * 32 + 32]
        same = sum(1 << j for j in range(32) if warp[j] & 3 == x[i] & 3)
        expected = [
            (warp > 900).any(),
            (warp > -10).all(),
            warp.sum(),
            warp.max(),
            warp[lane - 3] if lane >= 3 else x[i],
            warp[lane ^ 5],
            same - (1 << 32) if same >> 31 else same,
            warp[8 + (lane + 1) % 12] if 8 <= lane < 20 else -1,
        ]
        np.testing.assert_array_equal(rows[i], expected)


def test_sum_in_one_launch(collective, rng) -> None:
    x = integers(rng, -1000, 1000, 5 * 128)
    total = output(1, dtype=np.int32)
    _, result, _ = collective("sum_in_one_launch", 5, 128, x, output(5, dtype=np.int32), total)
    assert result == x.sum()
