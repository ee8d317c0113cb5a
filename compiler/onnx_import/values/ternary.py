"""Float weights each of whose rows holds but -s, 0 and s: ternary codes, found and kept.

So are the weights of BitNet b1.58 (Ma et al. 2024) and of MatMul-free language models (Zhu et al.
2024) exported. Every number is the code times the scale, to the bit.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from .constants import HALVES, Constant, QuantizedConstant, from_array
from .quantized import dequantized

CHUNK = 1 << 20  # weights that are looked at at a time


def as_ternary(constant: Constant) -> Constant | None:
    """The same values, which know their codes; None where they are not ternary.

    The first axis counts rows. Floats of 16 and 32 bits are looked at.
    """
    if constant.elem_type not in (TensorProto.FLOAT, *HALVES) or not constant.size:
        return None
    rows = constant.shape[0]
    scale = _scales(constant.load().reshape(rows, -1))
    if scale is None:
        return None
    load = constant.load

    def codes() -> np.ndarray:
        return np.sign(load().astype(np.float32)).astype(np.int8)

    name = constant.name or (constant.base.name if constant.base is not None else "")
    source = QuantizedConstant(
        Constant(constant.shape, TensorProto.INT8, codes, name=name),
        from_array(scale.reshape(rows, *[1] * (len(constant.shape) - 1))),
        found=True,
    )
    return dequantized(source, constant.shape, constant.elem_type)


def _scales(weight: np.ndarray) -> np.ndarray | None:
    """The one magnitude of each row of [N, K] but 0, f32 [N], 1 for rows of zeros; None where a row
    has several. Most weights are known by their first row."""
    found = []
    step = 1
    begin = 0
    while begin < len(weight):
        magnitude = np.abs(weight[begin : begin + step].astype(np.float32))
        largest = magnitude.max(axis=1)
        if not np.isfinite(largest).all():
            return None
        if not ((magnitude == largest[:, None]) | (magnitude == 0)).all():
            return None
        found.append(np.where(largest > 0, largest, np.float32(1)))
        begin += step
        step = max(1, CHUNK // weight.shape[1])
    return np.concatenate(found)
