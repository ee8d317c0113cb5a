"""Constants that a model holds as integers with scales; their codes are kept as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.dialects.formats import Scheme, parse_scheme
from onnx import TensorProto, helper

from .constants import Constant, QuantizedConstant

BITS = {
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT4: 4, TensorProto.UINT4: 4,
    TensorProto.INT2: 2, TensorProto.UINT2: 2,
}  # fmt: skip
SIGNED = {TensorProto.INT8, TensorProto.INT4, TensorProto.INT2}


@dataclass(frozen=True)
class Codes:
    """A quantized matrix as the weight store takes it: N x K codes, N x groups scales and zeros."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    scheme: Scheme


def dequantized_constant(
    codes: Constant,
    scale: Constant,
    zero: Constant | None,
    *,
    axis: int,
    block: int = 0,
    elem_type: int = TensorProto.FLOAT,
) -> Constant | None:
    """What DequantizeLinear makes of constants; None where the parts do not fit."""
    spread = along_axis(scale, codes.shape, axis, block)
    spread_zero = along_axis(zero, codes.shape, axis, block) if zero is not None else None
    if spread is None or (zero is not None and spread_zero is None):
        return None
    source = QuantizedConstant(codes, spread, spread_zero, block)
    return dequantized(source, codes.shape, elem_type)


def dequantized(
    source: QuantizedConstant, shape: tuple[int, ...], elem_type: int = TensorProto.FLOAT
) -> Constant:
    """scale * (code - zero), computed in f32, with `source` remembered."""
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)

    def load() -> np.ndarray:
        values = source.codes.load().astype(np.float32)
        if source.zero is not None:
            values -= _spread(source.zero.load().astype(np.float32), shape, source.block)
        if source.scale is not None:
            with np.errstate(over="ignore"):  # codes of a mask's -3.4e38 mean -inf
                values *= _spread(source.scale.load().astype(np.float32), shape, source.block)
        return values.astype(dtype, copy=False)

    return Constant(shape, elem_type, load, quantized=source, name=source.codes.name)


def quantized_constant(
    values: Constant,
    scale: Constant,
    zero: Constant | None,
    elem_type: int,
    *,
    axis: int,
    block: int = 0,
) -> Constant | None:
    """The integers that QuantizeLinear makes of constants; None where the parts do not fit."""
    spread = along_axis(scale, values.shape, axis, block)
    spread_zero = along_axis(zero, values.shape, axis, block) if zero is not None else None
    if spread is None or (zero is not None and spread_zero is None):
        return None
    bits, lowest = BITS[elem_type], -(1 << (BITS[elem_type] - 1)) if elem_type in SIGNED else 0
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)

    def load() -> np.ndarray:
        step = _spread(spread.load().astype(np.float32), values.shape, block)
        codes = np.rint(values.load().astype(np.float32) / step)
        if spread_zero is not None:
            codes += _spread(spread_zero.load().astype(np.float32), values.shape, block)
        return codes.clip(lowest, lowest + (1 << bits) - 1).astype(np.int16).astype(dtype)

    return Constant(values.shape, elem_type, load, name=values.name)


def as_codes(constant: Constant) -> Codes | None:
    """The codes of a constant whose first axis is N; None where scales vary unevenly along K."""
    source = constant.quantized
    if source is None or source.scale is None or source.codes.elem_type not in BITS:
        return None
    rows = constant.shape[0]
    scale = _per_row(source.scale, constant.shape)
    zero = None if source.zero is None else _per_row(source.zero, constant.shape)
    if scale is None or (source.zero is not None and zero is None):
        return None
    columns = constant.size // rows
    groups = max(scale.shape[1], 1 if zero is None else zero.shape[1])
    size = source.block or -(-columns // groups)
    if groups > 1 and -(-columns // size) != groups:
        return None
    exact = np.float16 if scale.dtype == np.float16 else np.float32
    scale = np.broadcast_to(scale, (rows, groups)).astype(exact)
    bits, signed = BITS[source.codes.elem_type], source.codes.elem_type in SIGNED
    zeros = np.zeros((rows, groups), np.int16)
    if zero is not None:
        zero = zero.astype(np.float32)
        lowest = -(1 << (bits - 1)) if signed else 0
        if not np.all((zero == np.rint(zero)) & (zero >= lowest) & (zero < lowest + (1 << bits))):
            return None  # no kernel has zero points between or beyond the codes
        zeros = np.broadcast_to(zero, (rows, groups)).astype(np.int16)
    sharing = f"g{size}" if groups > 1 else "channel"
    half = 0 if signed else 1 << (bits - 1)
    codes = source.codes.load().astype(np.int16).reshape(rows, columns)
    steps = codes - np.repeat(zeros, size, axis=1)[:, :columns] if groups > 1 else codes - zeros
    if np.abs(steps).max(initial=0) <= 1:
        return Codes(steps.astype(np.int8), scale, None, parse_scheme(f"wt:{sharing}"))
    if np.all(zeros == half):
        return Codes(steps.astype(np.int8), scale, None, parse_scheme(f"w{bits}:{sharing}:sym"))
    shift = 1 << (bits - 1) if signed else 0
    scheme = parse_scheme(f"w{bits}:{sharing}:asym")
    shifted = (codes + shift).astype(np.uint8)
    return Codes(shifted, scale, (zeros + shift).astype(np.uint8), scheme)


def _per_row(part: Constant, shape: tuple[int, ...]) -> np.ndarray | None:
    """Scales or zeros as [N or 1, groups], where the axes behind the first allow it."""
    values = part.load()
    if values.size == 1:
        return values.reshape(1, 1)
    if values.ndim != len(shape):
        return None
    if len(shape) == 2 and values.shape[0] in (1, shape[0]):
        return values if values.shape[1] != shape[1] or shape[1] == 1 else None
    if values.shape[0] == shape[0] and all(size == 1 for size in values.shape[1:]):
        return values.reshape(shape[0], 1)
    return None


def _spread(part: np.ndarray, shape: tuple[int, ...], block: int) -> np.ndarray:
    """Repeats blocks, so that what is left is numpy's broadcasting."""
    if part.ndim != len(shape):
        return part
    for axis, (size, whole) in enumerate(zip(part.shape, shape, strict=True)):
        if size not in (1, whole):
            part = part.repeat(block or -(-whole // size), axis)[
                tuple(slice(whole) if at == axis else slice(None) for at in range(part.ndim))
            ]
    return part


def along_axis(
    part: Constant, shape: tuple[int, ...], axis: int, block: int = 0
) -> Constant | None:
    """A scale or zero of DequantizeLinear with the rank of the codes; None if it does not fit."""
    rank = len(shape)
    if part.size == 1:
        return part.reshaped((1,) * rank)
    if not -rank <= axis < rank:
        return None
    axis %= rank
    if len(part.shape) == 1 and not block:
        if part.shape[0] != shape[axis]:
            return None
        return part.reshaped(tuple(part.shape[0] if at == axis else 1 for at in range(rank)))
    if len(part.shape) != rank:
        return None
    size = block or -(-shape[axis] // max(part.shape[axis], 1))
    wanted = tuple(-(-s // size) if at == axis else s for at, s in enumerate(shape))
    return part if part.shape == wanted else None
