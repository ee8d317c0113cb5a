"""Packed pairs: two elements in one register, the first in the low half."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..types import TYPES, ScalarType


def by_halves(function: Callable, type: ScalarType) -> Callable:
    """A function of elements, on both halves of packed pairs."""
    dtype = type.element.dtype
    shift = type.dtype.type(type.element.bits)
    word = TYPES[f"u{type.element.bits}"].dtype

    def split(pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return pair.astype(word).view(dtype), (pair >> shift).astype(word).view(dtype)

    def on_pairs(*sources: np.ndarray) -> np.ndarray:
        lows, highs = zip(*(split(source) for source in sources), strict=True)
        low, high = (np.asarray(function(*half), dtype).view(word) for half in (lows, highs))
        return low.astype(type.dtype) | high.astype(type.dtype) << shift

    return on_pairs
