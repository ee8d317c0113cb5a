"""Linear maps A of the channels of a stream, and what they make of the constants around it.

    v becomes A v           what writes the stream: `produce`
    w becomes A^-T w        what reads it: `consume`, so that w . v stays as it was

Both take arrays whose last axis is one vector of channels, in f64, and give new ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from abqc.dialects import hadamard

CHUNK = 1 << 21  # elements that are computed with in f64 at a time


class ChannelMap(Protocol):
    """A linear map of `width` channels; `tag` names it and all that it depends on."""

    @property
    def tag(self) -> str: ...

    @property
    def width(self) -> int: ...

    def produce(self, v: np.ndarray) -> np.ndarray: ...

    def consume(self, w: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Rotation:
    """H D: signs that a fixed seed draws, then the Hadamard transform in the largest blocks that
    there are (QuaRot's randomized Hadamard, Ashkboos et al., 2024)."""

    width: int

    @property
    def block(self) -> int:
        return hadamard.block_size(self.width)

    @property
    def tag(self) -> str:
        return f"rotated{self.width}"

    def produce(self, v: np.ndarray) -> np.ndarray:
        return hadamard.transform(v * _signs(self.width), self.block)

    consume = produce  # it is orthogonal


@dataclass(frozen=True)
class CentredRotation(Rotation):
    """A rotation of vectors without their mean: layer norms of what it writes are RMS norms.

    What reads it gets vectors without a mean, which need no part of a weight along the mean.
    """

    @property
    def tag(self) -> str:
        return f"centred{self.width}"

    def produce(self, v: np.ndarray) -> np.ndarray:
        return super().produce(v - v.mean(axis=-1, keepdims=True))

    consume = produce


@dataclass(frozen=True)
class Permutation:
    """Channel i becomes what channel `order[i]` was."""

    order: tuple[int, ...]
    tag: str

    @property
    def width(self) -> int:
        return len(self.order)

    def produce(self, v: np.ndarray) -> np.ndarray:
        return v[..., list(self.order)]

    consume = produce  # it is orthogonal


def _signs(width: int) -> np.ndarray:
    """+-1, the bits of SHAKE-256 of a text that names the width."""
    digest = hashlib.shake_256(f"abqc rotation {width}".encode()).digest(-(-width // 8))
    bits = np.unpackbits(np.frombuffer(digest, np.uint8))[:width]
    return 1.0 - 2.0 * bits


def along(
    array: np.ndarray, axis: int, width: int, function: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """`function` (`produce`, `consume`) of each vector of `width` channels along an axis, in f32.

    An axis of several times `width` elements holds as many vectors, one after the other. Computed
    in f64 and rounded once, some vectors at a time.
    """
    before, size = math.prod(array.shape[:axis]), array.shape[axis]
    after = math.prod(array.shape[axis + 1 :])
    result = np.empty(array.shape, np.float32)
    if after == 1:
        _rows(array.reshape(before, size), result.reshape(before, size), width, function)
        return result
    parts = zip(
        array.reshape(before, size, after), result.reshape(before, size, after), strict=True
    )
    for source, target in parts:
        _rows(source.T, target.T, width, function)
    return result


def _rows(
    source: np.ndarray,
    target: np.ndarray,
    width: int,
    function: Callable[[np.ndarray], np.ndarray],
) -> None:
    """`function` of all vectors in the rows of `source`, written to `target`."""
    step = max(1, CHUNK // source.shape[1])
    for begin in range(0, len(source), step):
        part = source[begin : begin + step]
        vectors = part.astype(np.float64).reshape(-1, width)
        target[begin : begin + step] = function(vectors).reshape(part.shape)
