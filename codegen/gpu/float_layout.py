"""The packed weight of strategy `float`: f32, a row for each column (n) of the product.

Rows of k values are filled up with zeros to whole 16 bytes, [n][padded k].
"""

from __future__ import annotations

import numpy as np

from ..align import align
from .rows_layout import ROW_ALIGNMENT


def float_row_bytes(k: int) -> int:
    """From one row to the next."""
    return align(4 * k, ROW_ALIGNMENT)


def pack_float(weight: np.ndarray) -> np.ndarray:
    """The blob, uint8, of a weight [n, k]."""
    n, k = weight.shape
    padded = np.zeros((n, float_row_bytes(k) // 4), np.float32)
    padded[:, :k] = weight
    return padded.reshape(-1).view(np.uint8)
