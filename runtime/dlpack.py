"""DLPack's structures, packed straight into memory, and its types beside numpy's.

Layouts are those of DLPack 1.0 on a 64-bit machine (`shim/abqc.h` has the C side). A run of a
decoder passes over a hundred tensors, so they are packed with `struct`, not set field by field.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CPU = 1
MAX_RANK = 8

# data; device type and id; rank; type code, bits, lanes; shape, strides; byte offset
_TENSOR = struct.Struct("=QiiiBBHQQQ")
# a tensor; manager context, deleter
_MANAGED = struct.Struct("=QiiiBBHQQQQQ")
TENSOR_SIZE = _TENSOR.size
MANAGED_SIZE = _MANAGED.size

_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}
BFLOAT16 = (4, 16, 1)


class DType(NamedTuple):
    """A DLDataType."""

    code: int
    bits: int
    lanes: int


def dtype_of(dtype: np.dtype) -> DType | None:
    """numpy's type as DLPack's; None where there is none (objects, text, foreign byte order)."""
    if dtype.isnative and dtype.kind in _CODES:
        return DType(_CODES[dtype.kind], 8 * dtype.itemsize, 1)
    return DType(*BFLOAT16) if dtype.name == "bfloat16" else None


def dtype_from_name(name: str) -> DType:
    """The type that numpy calls `name`; ValueError where DLPack has none."""
    if name == "bfloat16":
        return DType(*BFLOAT16)
    found = dtype_of(np.dtype(name))
    if found is None:
        raise ValueError(f"DLPack has no type '{name}'")
    return found


def dtype_name(dtype: DType) -> str:
    """numpy's name of a DLDataType."""
    return "bool" if dtype.code == 6 else f"{_KINDS[dtype.code]}{dtype.bits}"


class TensorTable:
    """An array of pointers to DLTensors (or DLManagedTensors) over numpy arrays.

    Entries that are None become NULL. The table owns its structures, not the arrays' memory.
    """

    def __init__(self, arrays: Sequence[np.ndarray | None], *, managed: bool = False) -> None:
        count = len(arrays)
        item = MANAGED_SIZE if managed else TENSOR_SIZE
        dims = sum(2 * array.ndim for array in arrays if array is not None)
        self._memory = bytearray(8 * count + item * count + 8 * dims)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) if count else 0
        tensor_at, dims_at = 8 * count, (8 + item) * count
        for i, array in enumerate(arrays):
            if array is not None:
                struct.pack_into("=Q", self._memory, 8 * i, self.address + tensor_at)
                self._pack(array, tensor_at, dims_at)
                dims_at += 16 * array.ndim
            tensor_at += item

    def _pack(self, array: np.ndarray, tensor_at: int, dims_at: int) -> None:
        rank, size = array.ndim, array.itemsize
        code = dtype_of(array.dtype)
        if code is None:
            raise TypeError(f"DLPack has no type for {array.dtype}")
        strides = [stride // size for stride in array.strides]
        struct.pack_into(f"={2 * rank}q", self._memory, dims_at, *array.shape, *strides)
        data = array.__array_interface__["data"][0]
        shape = self.address + dims_at
        _TENSOR.pack_into(
            self._memory, tensor_at, data, CPU, 0, rank, *code, shape, shape + 8 * rank, 0
        )

    def pointer(self, i: int) -> int:
        """Entry i: the address of a structure, or 0."""
        return struct.unpack_from("=Q", self._memory, 8 * i)[0]


def expressible(array: np.ndarray) -> np.ndarray:
    """The array itself, or a compact copy where its strides are no multiples of an element."""
    size = array.itemsize
    return array if all(stride % size == 0 for stride in array.strides) else array.copy()


class ManagedTensor(NamedTuple):
    """What a DLManagedTensor says; addresses as integers, strides in elements."""

    data: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    deleter: int


def read_managed(address: int) -> ManagedTensor:
    """The DLManagedTensor at an address. Its strides must not be NULL."""
    fields = _MANAGED.unpack(ctypes.string_at(address, MANAGED_SIZE))
    data, _, _, rank, _, _, _, shape_at, strides_at, offset, _, deleter = fields
    dims = struct.Struct(f"={rank}q")
    shape = dims.unpack(ctypes.string_at(shape_at, dims.size))
    strides = dims.unpack(ctypes.string_at(strides_at, dims.size))
    return ManagedTensor(data + offset, shape, strides, deleter)
