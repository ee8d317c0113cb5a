"""Hadamard transforms of 2^k times one or several base orders.

    y[i] = sum over j of H[i, j] * x[j] / sqrt(n)        H is n x n of +-1, H H^T = n I

A block of n = b1 * b2 * .. * 2^k elements has H = H_b1 (x) H_b2 (x) .. (x) H_2^k (Kronecker
products; of a block with one base, element b * 2^k + j belongs to row b of the base): Sylvester
butterflies inside each run of 2^k elements, then the base matrices across the runs, the last base
first, then one multiplication by f32(1 / sqrt(n)).

Base orders are 4 times an odd number and at most MAX_BASE (`hadamard_bases.py`). A base costs as
many additions for each element as its order, where 2^k costs k. A length that has no matrix of its
own is transformed in equal blocks (`block_size`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from .hadamard_bases import base_matrix, orders

MAX_BASE = 256
BASES = orders(MAX_BASE)
SMALL_BASE = 36  # one base up to this is taken alone, whatever products there are
MAX_BASES = 4  # of one block
LANES = 16  # elements of a vector that `split_block` has in mind, whatever the machine has
CHUNK_ELEMENTS = 1 << 18  # transform this many elements at a time: they stay in the cache


@lru_cache
def split_block(block: int) -> tuple[tuple[int, ...], int]:
    """`(bases, 2^k)`, bases descending, whose product is `block`.

    One small base where there is one; else the bases that cost least. Raises ValueError for sizes
    without a matrix.
    """
    odd = block // _two_power(block) if block > 0 else 0
    if odd == 1:
        return (), block
    found = [bases for bases in _all_bases(odd) if block % math.prod(bases) == 0]
    if not found:
        raise ValueError(
            f"no Hadamard matrix of size {block}; sizes are 2^k times products of {BASES[1:6]}, .."
        )
    small = (4 * odd,) if 4 * odd <= SMALL_BASE else None
    bases = min(found, key=lambda bases: (bases != small, _cost(bases, block), len(bases)))
    return bases, block // math.prod(bases)


def _cost(bases: tuple[int, ...], block: int) -> int:
    """Additions for each element, counted in vectors that the runs may not fill."""
    total, inner = 0, block // math.prod(bases)
    for base in reversed(bases):
        total += base * LANES // math.gcd(LANES, inner)
        inner *= base
    return total


@lru_cache
def _all_bases(odd: int) -> list[tuple[int, ...]]:
    """All lists of base orders, descending, whose odd parts multiply to `odd`."""
    usable = [base for base in reversed(BASES[1:]) if odd and odd % (base // 4) == 0]
    return [
        bases
        for count in range(1, MAX_BASES + 1)
        for bases in combinations_with_replacement(usable, count)
        if math.prod(base // 4 for base in bases) == odd
    ]


def _two_power(n: int) -> int:
    """The largest power of 2 that divides n > 0."""
    return n & -n


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


@lru_cache
def block_size(k: int) -> int:
    """The largest supported size that divides `k`: `k` itself if possible, 1 if `k` is odd."""
    power = _two_power(k)
    odd = k // power
    parts = [part for part in range(odd, 0, -1) if odd % part == 0]
    return next(part * power for part in parts if is_supported(part * power))


def matrix(block: int) -> NDArray[np.int8]:
    """H of a block, +-1 and not normalised: what `transform` multiplies by, times sqrt(block)."""
    bases, power = split_block(block)
    sylvester = np.ones((1, 1), np.int8)
    for _ in range(power.bit_length() - 1):
        sylvester = np.kron(np.array([[1, 1], [1, -1]], np.int8), sylvester)
    for base in reversed(bases):
        sylvester = np.kron(base_matrix(base), sylvester)
    return sylvester


def transform(x: np.ndarray, block: int) -> np.ndarray:
    """`x` with every run of `block` elements of its last axis transformed; f32, or f64 for f64.

    `block` divides the last axis and is a supported size.
    """
    bases, power = split_block(block)
    if x.shape[-1] % block:
        raise ValueError(f"blocks of {block} do not divide an axis of {x.shape[-1]}")
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    y: np.ndarray = np.array(x, dtype, order="C").reshape(-1, block // power, power)
    matrices = [base_matrix(base).astype(dtype) for base in bases]
    norm = 1 / math.sqrt(block)  # numpy rounds it to the array's type
    step = max(1, CHUNK_ELEMENTS // block)
    for begin in range(0, len(y), step):
        part = y[begin : begin + step]
        _butterflies(part)
        inner = power
        for h in reversed(matrices):
            runs = part.reshape(-1, len(h), inner)
            runs[...] = np.matmul(h, runs)
            inner *= len(h)
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
