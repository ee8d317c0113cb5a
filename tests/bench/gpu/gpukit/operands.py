"""Numbers that the builder and the GPU's side must agree on."""

from __future__ import annotations

import zlib

import numpy as np

GOLDEN = 0x9E3779B9
MIX = 0x85EBCA6B


def activations(rows: int, k: int) -> np.ndarray:
    """f32 [rows, k] of multiples of 1/32: every sum of their magnitudes is exact in f32.

    The stream of `RandomState` is the same in all versions of numpy (NEP 19).
    """
    generator = np.random.RandomState(k)
    return (generator.randint(-120, 128, (rows, k)) / 32).astype(np.float32)


def digests(rows: np.ndarray) -> str:
    """CRC-32 of every row of uint8 [m, row_bytes], 8 hexadecimal digits each."""
    return "".join(f"{zlib.crc32(row.tobytes()):08x}" for row in rows)


def hashed(index: np.ndarray) -> np.ndarray:
    """What the kernels make of a word's number: bits that look random, uint32."""
    x = index.astype(np.uint32) * np.uint32(GOLDEN)
    x ^= x >> np.uint32(15)
    x *= np.uint32(MIX)
    return x ^ (x >> np.uint32(13))
