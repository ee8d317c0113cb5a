"""Memory of numpy's that begins where kernels load and store whole cache lines."""

from __future__ import annotations

from math import prod

import numpy as np

from .dlpack import data_address

ALIGNMENT = 64  # bytes, of memory that a run makes an output in (`ABQC_ALIGNMENT`)


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that is not initialized. numpy's own begin 16 bytes behind a page if they are large:
    each load of a vector would be one from two cache lines."""
    memory = np.empty(prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, memory, -data_address(memory) % ALIGNMENT)
