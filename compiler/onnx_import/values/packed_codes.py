"""Codes of fewer than 8 bits that share bytes, as com.microsoft's operators store weights."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from .constants import Constant

UNSIGNED = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes of bytes along the last axis, those in the low bits of a byte first (uint8)."""
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(*packed.shape[:-1], packed.shape[-1] * len(shifts))


def codes_of(packed: Constant, bits: int, shape: tuple[int, ...]) -> Constant:
    """A constant of bytes as one of codes of `shape`; each row may have codes beyond, as padding.

    The bytes are divided evenly among the rows (all axes of `shape` but the last).
    """
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    load = packed.load

    def codes() -> np.ndarray:
        stored = np.asarray(load()).view(np.uint8).reshape(rows, -1)
        return np.ascontiguousarray(unpack(stored, bits)[:, : shape[-1]]).reshape(shape)

    return Constant(shape, UNSIGNED[bits], codes, name=packed.name, origin=packed)
