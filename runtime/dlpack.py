"""DLPack's structures, packed straight into memory (`element_types.py` has its types).

Layouts are those of DLPack 1.0 on a 64-bit machine (`shim/abqc.h` has the C side). A run of a
decoder passes over a hundred tensors, so they are packed with `struct`, not set field by field.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

CPU = 1
CUDA = 2
MAX_RANK = 8

# data; device type and id; rank; type code, bits, lanes; shape, strides; byte offset
_TENSOR = struct.Struct("=QiiiBBHQQQ")
TENSOR_SIZE = _TENSOR.size
MANAGED_SIZE = TENSOR_SIZE + 16  # and manager context, deleter


class DType(NamedTuple):
    """A DLDataType."""

    code: int
    bits: int
    lanes: int


_SIZES = [struct.Struct(f"={rank}q") for rank in range(2 * MAX_RANK + 1)]
_POINTER = struct.Struct("=Q")


class Borrowed(Protocol):
    """A tensor whose DLManagedTensor is at `address` as long as this object lives."""

    address: int


class TensorTable:
    """An array of pointers to DLTensors (or DLManagedTensors) over numpy arrays.

    Entries that are None become NULL, borrowed tensors are pointed to where they are. Arrays hold
    elements of `types` in native byte order, and are of at most MAX_RANK dimensions and strided by
    whole elements. The table owns its structures, not the tensors' memory.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray | Borrowed | None],
        types: Sequence[DType],
        *,
        managed: bool = False,
    ) -> None:
        count = len(arrays)
        item = MANAGED_SIZE if managed else TENSOR_SIZE
        tensors = 8 * count
        dims = tensors + item * count
        self._memory = bytearray(dims + 16 * MAX_RANK * count)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) if count else 0
        for i, array in enumerate(arrays):
            if isinstance(array, np.ndarray):
                tensor_at = tensors + item * i
                _POINTER.pack_into(self._memory, 8 * i, self.address + tensor_at)
                self._pack(array, types[i], tensor_at, dims + 16 * MAX_RANK * i)
            elif array is not None:
                _POINTER.pack_into(self._memory, 8 * i, array.address)

    def _pack(self, array: np.ndarray, dtype: DType, tensor_at: int, shape_at: int) -> None:
        rank = array.ndim
        _SIZES[rank].pack_into(self._memory, shape_at, *array.shape)
        strides = 0  # NULL: compact
        if not array.flags.c_contiguous:
            strides_at = shape_at + 8 * rank
            elements = [stride // array.itemsize for stride in array.strides]
            _SIZES[rank].pack_into(self._memory, strides_at, *elements)
            strides = self.address + strides_at
        data = array.__array_interface__["data"][0]
        shape = self.address + shape_at
        code, bits, lanes = dtype
        _TENSOR.pack_into(
            self._memory, tensor_at, data, CPU, 0, rank, code, bits, lanes, shape, strides, 0
        )

    def pointer(self, i: int) -> int:
        """Entry i: the address of a structure, or 0."""
        return _POINTER.unpack_from(self._memory, 8 * i)[0]


def expressible(array: np.ndarray) -> np.ndarray:
    """The array itself, or a compact copy where its strides are no multiples of an element."""
    if array.flags.c_contiguous:
        return array
    size = array.itemsize
    return array if all(stride % size == 0 for stride in array.strides) else array.copy()


class ManagedTensor(ctypes.Structure):
    """A DLManagedTensor in memory: `ManagedTensor.from_address(address)`."""

    _fields_ = (
        ("data", ctypes.c_size_t),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.c_size_t),
        ("strides", ctypes.c_size_t),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_size_t),
        ("deleter", ctypes.c_size_t),
    )

    def sizes(self) -> tuple[int, ...]:
        """The shape."""
        return tuple((ctypes.c_int64 * self.ndim).from_address(self.shape))
