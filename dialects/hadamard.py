"""Hadamard transforms of 2^k times 1, 12, 20, 28 or 36 elements.

    y[i] = sum over j of H[i, j] * x[j] / sqrt(n)        H is n x n of +-1, H H^T = n I

A block of n = base * 2^k elements has H = H_base (x) H_2^k (Kronecker product; element b * 2^k + j
belongs to row b of the base): Sylvester butterflies inside each run of 2^k elements, then the base
matrix across the runs, then one multiplication by f32(1 / sqrt(n)).

Base matrices are Paley's (R. E. A. C. Paley, "On orthogonal matrices", 1933). A length that has no
matrix of its own is transformed in equal blocks (`block_size`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BASES = (1, 12, 20, 28, 36)
CHUNK_ELEMENTS = 1 << 18  # transform this many elements at a time: they stay in the cache


def split_block(block: int) -> tuple[int, int]:
    """`(base, 2^k)` with `base * 2^k == block`. Raises ValueError for sizes without a matrix."""
    for base in BASES:
        power, rest = divmod(block, base)
        if rest == 0 and power > 0 and power & (power - 1) == 0:
            return base, power
    raise ValueError(f"no Hadamard matrix of size {block}; sizes are 2^k times one of {BASES}")


def is_supported(block: int) -> bool:
    """Whether there is one matrix of this size."""
    try:
        split_block(block)
    except ValueError:
        return False
    return True


def supported_sizes(limit: int) -> list[int]:
    """All sizes up to and including `limit`."""
    return [size for size in range(1, limit + 1) if is_supported(size)]


def block_size(k: int) -> int:
    """The largest supported size that divides `k`: `k` itself if possible, 1 if `k` is odd."""
    candidates = (base << shift for base in BASES for shift in range(k.bit_length()))
    return max(size for size in candidates if k % size == 0)


@lru_cache
def base_matrix(order: int) -> NDArray[np.int8]:
    """H_base: order x order of +-1, read-only."""
    if order == 1:
        matrix = np.ones((1, 1), np.int8)
    elif order in (12, 20):
        matrix = _paley_1(order - 1)
    elif order in (28, 36):
        matrix = _paley_2(order // 2 - 1)
    else:
        raise ValueError(f"{order} is none of the base orders {BASES}")
    matrix.flags.writeable = False
    return matrix


def matrix(block: int) -> NDArray[np.int8]:
    """H of a block, +-1 and not normalised: what `transform` multiplies by, times sqrt(block)."""
    base, power = split_block(block)
    sylvester = np.ones((1, 1), np.int8)
    for _ in range(power.bit_length() - 1):
        sylvester = np.kron(np.array([[1, 1], [1, -1]], np.int8), sylvester)
    return np.kron(base_matrix(base), sylvester)


def transform(x: np.ndarray, block: int) -> np.ndarray:
    """`x` with every run of `block` elements of its last axis transformed; f32, or f64 for f64.

    `block` divides the last axis and is a supported size.
    """
    base, power = split_block(block)
    if x.shape[-1] % block:
        raise ValueError(f"blocks of {block} do not divide an axis of {x.shape[-1]}")
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    y: np.ndarray = np.array(x, dtype, order="C").reshape(-1, base, power)
    h = base_matrix(base).astype(dtype)
    norm = 1 / math.sqrt(block)  # numpy rounds it to the array's type
    step = max(1, CHUNK_ELEMENTS // block)
    for begin in range(0, len(y), step):
        part = y[begin : begin + step]
        _butterflies(part)
        if base > 1:
            part[...] = np.matmul(h, part)
        part *= norm
    return y.reshape(x.shape)


def fold(w: np.ndarray, block: int) -> np.ndarray:
    """`W H^T`, the weight [N, K] for rotated activations: `(x H^T)(W H^T)^T == x W^T`."""
    return transform(w, block)


def _butterflies(x: np.ndarray) -> None:
    """Multiply the last axis, 2^k long, by Sylvester's matrix, in place."""
    power = x.shape[-1]
    half = 1
    while half < power:
        pairs = x.reshape(-1, 2, half)
        difference = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = difference
        half *= 2


def _jacobsthal(q: int) -> NDArray[np.int8]:
    """Q[i, j] = 1 where j - i is a square modulo the prime q, -1 where it is none, 0 for i = j."""
    character = np.full(q, -1, np.int8)
    character[[i * i % q for i in range(1, q)]] = 1
    character[0] = 0
    i = np.arange(q)
    return character[(i[None, :] - i[:, None]) % q]


def _paley_1(q: int) -> NDArray[np.int8]:
    """Order q + 1 for a prime q = 3 mod 4: I + S with S skew."""
    s = np.ones((q + 1, q + 1), np.int8)
    s[1:, 0] = -1
    s[0, 0] = 0
    s[1:, 1:] = _jacobsthal(q)
    return s + np.eye(q + 1, dtype=np.int8)


def _paley_2(q: int) -> NDArray[np.int8]:
    """Order 2 (q + 1) for a prime q = 1 mod 4: a symmetric conference matrix, doubled."""
    c = np.ones((q + 1, q + 1), np.int8)
    c[0, 0] = 0
    c[1:, 1:] = _jacobsthal(q)
    zero_becomes = np.array([[1, -1], [-1, -1]], np.int8)
    one_becomes = np.array([[1, 1], [1, -1]], np.int8)
    return np.kron(np.eye(q + 1, dtype=np.int8), zero_becomes) + np.kron(c, one_becomes)
