"""Hadamard matrices and transforms."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from abqc.dialects import hadamard
from abqc.dialects.hadamard_bases import base_matrix

SIZES = (1, 2, 4, 12, 20, 24, 28, 36, 40, 44, 64, 72, 112, 128, 144, 172, 240, 336)


@pytest.mark.parametrize("order", hadamard.BASES)
def test_base_matrices_are_hadamard(order: int) -> None:
    h = base_matrix(order).astype(int)
    assert (np.abs(h) == 1).all()
    np.testing.assert_array_equal(h @ h.T, order * np.eye(order, dtype=int))


@pytest.mark.parametrize("block", SIZES)
def test_block_matrices_are_hadamard(block: int) -> None:
    h = hadamard.matrix(block).astype(int)
    np.testing.assert_array_equal(h @ h.T, block * np.eye(block, dtype=int))


@pytest.mark.parametrize("block", SIZES)
@pytest.mark.parametrize("blocks", [1, 3])
def test_transform_is_the_matrix(block: int, blocks: int) -> None:
    """On integers the sums are exact, so only the last multiplication rounds."""
    rng = np.random.default_rng(block)
    x = rng.integers(-100, 100, (2, 5, blocks, block))
    expected = (x @ hadamard.matrix(block).astype(np.int64).T).astype(np.float32)
    expected *= np.float32(1 / np.sqrt(block))
    y = hadamard.transform(x.reshape(2, 5, -1).astype(np.float32), block)
    np.testing.assert_array_equal(y, expected.reshape(2, 5, -1))


def test_index_is_base_row_times_power_plus_butterfly() -> None:
    """The order that kernels follow: H_base (x) H_2^k."""
    h = hadamard.matrix(24)
    base = base_matrix(12)
    for i in range(24):
        for j in range(24):
            assert h[i, j] == base[i // 2, j // 2] * (-1 if i % 2 and j % 2 else 1)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((37, 48))
    whole = hadamard.transform(x, 24)
    monkeypatch.setattr(hadamard, "CHUNK_ELEMENTS", 100)
    np.testing.assert_array_equal(hadamard.transform(x, 24), whole)


@pytest.mark.parametrize("k", [384, 576, 1536, 11008, 96])
def test_folding_keeps_the_product(k: int) -> None:
    rng = np.random.default_rng(k)
    x, w = rng.standard_normal((4, k)), rng.standard_normal((3, k))
    block = hadamard.block_size(k)
    rotated = hadamard.transform(x, block) @ hadamard.fold(w, block).T
    np.testing.assert_allclose(rotated, x @ w.T, atol=1e-10)


def test_transform_leaves_its_argument_and_keeps_the_norm() -> None:
    x = np.random.default_rng(1).standard_normal((4, 576)).astype(np.float32)
    before = x.copy()
    y = hadamard.transform(x, 576)
    np.testing.assert_array_equal(x, before)
    assert y.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)


def test_an_outlier_is_spread() -> None:
    x = np.zeros((1, 384), np.float32)
    x[0, 77] = 100
    y = hadamard.transform(x, 384)
    np.testing.assert_allclose(np.abs(y), 100 / np.sqrt(384), rtol=1e-6)


@pytest.mark.parametrize(
    ("k", "block"),
    [
        (384, 384), (576, 576), (768, 768), (1536, 1536), (4096, 4096), (14336, 14336),
        (3584, 3584), (28672, 28672), (29568, 29568), (11008, 11008), (8960, 8960), (44, 44),
        (13696, 128), (75 * 4, 100), (27, 1), (1, 1),
    ],
)  # fmt: skip
def test_block_sizes(k: int, block: int) -> None:
    assert hadamard.block_size(k) == block


def test_the_largest_dividing_size_is_taken() -> None:
    sizes = hadamard.supported_sizes(600)
    assert {384, 576, 20, 28, 36, 44, 400, 512} <= set(sizes) and not {3, 6, 188, 600} & set(sizes)
    for k in range(1, 600):
        assert hadamard.block_size(k) == max(size for size in sizes if k % size == 0)


def test_sizes_are_made_of_the_cheapest_bases() -> None:
    assert hadamard.split_block(576) == ((36,), 16)  # one small base before cheaper products
    assert hadamard.split_block(8960) == ((28, 20), 16)
    assert hadamard.split_block(60) == ((60,), 1)
    assert hadamard.split_block(240) == ((60,), 4)  # runs of 1 would fill no vector
    assert hadamard.split_block(29568) == ((84, 44), 8)
    assert hadamard.split_block(4096) == ((), 4096)


def test_matrices_stay_as_they_are() -> None:
    """Codes of rotated weights depend on them."""
    digests = {
        24: "911488297b4cacf8",
        56: "420a03c76a326b3a",
        144: "f5196bac92c7a680",
        576: "4fc7e4b139b25575",
        1536: "cfab86945d864db6",
    }
    for block, digest in digests.items():
        assert hashlib.sha256(hadamard.matrix(block).tobytes()).hexdigest()[:16] == digest


def test_sizes_without_a_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match="no Hadamard matrix of size 6"):
        hadamard.transform(np.zeros((2, 6)), 6)
    with pytest.raises(ValueError, match="do not divide"):
        hadamard.transform(np.zeros((2, 6)), 4)
