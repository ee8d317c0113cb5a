"""DLPack's structures, packed straight into memory (`element_types.py` has its types).

Layouts are those of DLPack 1.0 on a 64-bit machine (`shim/abqc.h` has the C side). A run of a
decoder passes over a hundred tensors, so they are packed with `struct`, not set field by field, and
what is as in the run before is left as it is.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from .exchange import Exchange

CPU = 1
CUDA = 2
MAX_RANK = 8

# data; device type and id; rank; type code, bits, lanes; shape, strides; byte offset
_TENSOR = struct.Struct("=QiiiBBHQQQ")
TENSOR_SIZE = _TENSOR.size
MANAGED_SIZE = TENSOR_SIZE + 16  # and manager context, deleter

# Of PyArrayObject, whose first field behind the object's header is `data`: asking numpy for the
# address takes five times as long, which is a good part of a small model's run.
_ARRAY_DATA = object.__basicsize__
_word_at = ctypes.c_size_t.from_address


class DType(NamedTuple):
    """A DLDataType."""

    code: int
    bits: int
    lanes: int


_SIZES = [struct.Struct(f"={rank}q") for rank in range(2 * MAX_RANK + 1)]


class Described(Protocol):
    """A tensor whose DLManagedTensor is at `address` as long as this object lives."""

    address: int


def _data_address_by_interface(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _data_address(array: np.ndarray) -> int:
    return _word_at(id(array) + _ARRAY_DATA).value


def _reads_arrays() -> bool:
    """Whether numpy's arrays are laid out as `_data_address` says."""
    arrays = [np.empty(3), np.empty((4, 4))[1:, 2:]]
    return all(_data_address(a) == _data_address_by_interface(a) for a in arrays)


data_address = _data_address if _reads_arrays() else _data_address_by_interface


class TensorTable:
    """An array of pointers to DLTensors (or DLManagedTensors) of these types, used run after run.

    The table owns its structures, not the tensors' memory, nor references to them.
    """

    def __init__(self, types: Sequence[DType], *, managed: bool = False) -> None:
        count = len(types)
        item = MANAGED_SIZE if managed else TENSOR_SIZE
        self._types = types
        self._tensors = [8 * count + item * i for i in range(count)]
        dims = 8 * count + item * count
        self._dims = [dims + 16 * MAX_RANK * i for i in range(count)]
        self._memory = bytearray(dims + 16 * MAX_RANK * count)
        self._words = (ctypes.c_uint64 * (len(self._memory) // 8)).from_buffer(self._memory)
        # Of the arrays that entries point to; no array has None for strides.
        self._layouts: list[tuple[object, object]] = [((), None)] * count
        self.address = ctypes.addressof(self._words) if count else 0
        self._data_words = [at // 8 for at in self._tensors]
        self._pointers = [self.address + at for at in self._tensors]

    def point(self, i: int, array: np.ndarray) -> bool:
        """Entry i becomes `array` where it was last described by an array of the same shape and
        strides; whether it was."""
        shape, strides = self._layouts[i]
        if array.shape != shape or array.strides != strides:
            return False
        self._words[self._data_words[i]] = data_address(array)
        return True

    def describe(self, i: int, array: np.ndarray) -> None:
        """Entry i becomes `array`: elements of its type in native byte order, at most MAX_RANK
        dimensions, strided by whole elements."""
        self._layouts[i] = (), None  # should a signal's handler raise before all is written
        rank, at, shape_at = array.ndim, self._tensors[i], self._dims[i]
        _SIZES[rank].pack_into(self._memory, shape_at, *array.shape)
        strides = 0  # NULL: compact
        if not array.flags.c_contiguous:
            strides_at = shape_at + 8 * rank
            elements = [stride // array.itemsize for stride in array.strides]
            _SIZES[rank].pack_into(self._memory, strides_at, *elements)
            strides = self.address + strides_at
        code, bits, lanes = self._types[i]
        shape = self.address + shape_at
        data = data_address(array)
        _TENSOR.pack_into(
            self._memory, at, data, CPU, 0, rank, code, bits, lanes, shape, strides, 0
        )
        self._words[i] = self._pointers[i]
        self._layouts[i] = array.shape, array.strides

    def borrow(self, i: int, tensor: Described | None) -> None:
        """Entry i becomes a tensor described elsewhere, or NULL."""
        self._layouts[i] = (), None  # no array is there
        self._words[i] = 0 if tensor is None else tensor.address

    def exchange(self, i: int, package: Exchange, tensor: Any) -> tuple[int, int]:
        """Entry i becomes another package's tensor, as that describes it; its device."""
        at = self._tensors[i]
        self._layouts[i] = (), None
        package.describe(tensor, self.address + at)
        self._words[i] = self.address + at
        device = self._words[at // 8 + 1]  # type and id
        return device & 0xFFFFFFFF, device >> 32

    def pointer(self, i: int) -> int:
        """Entry i: the address of a structure, or 0."""
        return self._words[i]


class RowsLayout:
    """Shape and strides of the first rows of a buffer; shared by all buffers of that layout, so
    that one assignment sets how many rows they have.

    `buffer` is an array of at most MAX_RANK dimensions, strided by whole elements; the rows lie
    along `axis`. `rows` are set before a run, at most as many as the buffer has.
    """

    def __init__(self, buffer: np.ndarray, axis: int) -> None:
        rank = buffer.ndim
        self.axis = axis
        self._words = (ctypes.c_uint64 * (2 * rank))()
        self.shape = ctypes.addressof(self._words)
        self.strides = self.shape + 8 * rank
        strides = [stride // buffer.itemsize for stride in buffer.strides]
        _SIZES[2 * rank].pack_into(self._words, 0, *buffer.shape, *strides)

    @property
    def rows(self) -> int:
        return int(self._words[self.axis])

    @rows.setter
    def rows(self, rows: int) -> None:
        self._words[self.axis] = rows


class FirstRows:
    """The first rows of a buffer, a tensor that is described once and taken by runs on a CPU as it
    is, as an input and as an output. `layout` is that of the buffer, `dtype` its elements' type.
    """

    def __init__(self, buffer: np.ndarray, layout: RowsLayout, dtype: DType) -> None:
        self._buffer = buffer
        self._layout = layout
        self._words = (ctypes.c_uint64 * (MANAGED_SIZE // 8))()
        self.address = ctypes.addressof(self._words)
        _TENSOR.pack_into(
            *(self._words, 0, buffer.__array_interface__["data"][0], CPU, 0, buffer.ndim, *dtype),
            *(layout.shape, layout.strides, 0),
        )

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self._buffer[(slice(None),) * self._layout.axis + (slice(self._layout.rows),)]


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
