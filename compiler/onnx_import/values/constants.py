"""Tensors known at compile time, read only when their values are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from onnx import TensorProto, helper

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """What a constant was computed from: scale * (codes - zero).

    `scale` and `zero` have the rank of `codes`; an axis of theirs is 1, that of the codes, or
    counts blocks of `block` (0: equal blocks). None stands for 1 and 0. `found`: the model has the
    values themselves, and the codes were found in them.
    """

    codes: Constant
    scale: Constant | None = None
    zero: Constant | None = None
    block: int = 0
    found: bool = False

    def transposed(self, permutation: tuple[int, ...]) -> QuantizedConstant:
        return QuantizedConstant(
            self.codes.transposed(permutation),
            self.scale and self.scale.transposed(permutation),
            self.zero and self.zero.transposed(permutation),
            self.block,
            self.found,
        )


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant tensor of ONNX element type `elem_type`.

    `load()` returns its values, from a memory map where possible, and keeps nothing. A constant
    that only permutes the axes of another remembers that one as `base`, so that a tied weight is
    found to be one array, and one that reads them in another form remembers it as `origin`. `name`
    is that of the initializer with these values, if there is one. `widened_from` is the type of 16
    bits that the values of an f32 constant were cast from, 0 if they were not.
    """

    shape: tuple[int, ...]
    elem_type: int
    load: Callable[[], np.ndarray]
    base: Constant | None = None
    permutation: tuple[int, ...] = ()
    quantized: QuantizedConstant | None = None
    name: str = ""
    origin: Constant | None = None
    widened_from: int = 0

    @property
    def size(self) -> int:
        return prod(self.shape)

    @cached_property
    def dtype(self) -> np.dtype:
        return helper.tensor_dtype_to_np_dtype(self.elem_type)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def is_f32(self) -> bool:
        return self.elem_type == TensorProto.FLOAT

    def transposed(self, permutation: tuple[int, ...]) -> Constant:
        """The same values with axes permuted; permuting back yields the base itself."""
        if self.base is not None:
            composed = tuple(self.permutation[axis] for axis in permutation)
            return self.base.transposed(composed)
        if permutation == tuple(range(len(self.shape))):
            return self
        load = self.load
        return Constant(
            shape=tuple(self.shape[axis] for axis in permutation),
            elem_type=self.elem_type,
            load=lambda: load().transpose(permutation),
            base=self,
            permutation=permutation,
            quantized=self.quantized and self.quantized.transposed(permutation),
            widened_from=self.widened_from,
        )

    def reshaped(self, shape: tuple[int, ...]) -> Constant:
        """The same values, in row-major order, under another shape of equal size."""
        if shape == self.shape:
            return self
        load = self.load
        return Constant(
            shape,
            self.elem_type,
            lambda: load().reshape(shape),
            origin=self,
            widened_from=self.widened_from,
        )

    def cast(self, elem_type: int) -> Constant:
        """The values converted as a run does between integers and floats."""
        if elem_type == self.elem_type:
            return self
        load, dtype = self.load, helper.tensor_dtype_to_np_dtype(elem_type)
        integers = elem_type == TensorProto.FLOAT and self.dtype.kind in "iu"
        widens = elem_type == TensorProto.FLOAT and self.elem_type in HALVES
        return Constant(
            self.shape,
            elem_type,
            lambda: _converted(load(), dtype),
            quantized=QuantizedConstant(self) if integers else None,
            widened_from=self.elem_type if widens else 0,
        )


def _converted(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """As numpy does, whose results differ from build to build for floats that 32 bits without a
    sign do not hold: these are what a CPU's kernels make of them."""
    if array.dtype.kind != "f" or dtype != np.uint32:
        return array.astype(dtype)
    half = np.float32(1 << 31)
    wide = array.astype(np.float32) if array.dtype == np.float16 else array
    with np.errstate(invalid="ignore"):
        big = wide >= half
        low = np.where(big, wide - half, wide).astype(np.int32)
    return np.where(big, low ^ np.int32(-(1 << 31)), low).view(dtype)


def from_array(array: np.ndarray, elem_type: int | None = None) -> Constant:
    """A constant held in memory; meant for small ones."""
    if elem_type is None:
        elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    return Constant(tuple(array.shape), elem_type, lambda: array)
