"""Tensors on a GPU in Python: those that a model gives, and those of others (PyTorch, CuPy).

Both ways go through DLPack's Python protocol (`__dlpack__`, `__dlpack_device__`), which passes a
DLManagedTensor in a capsule: no copy is made, and no other package is needed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DeviceError, InputError
from .abi import DriverTable, Instance
from .dlpack import CUDA, ManagedTensor, TensorTable
from .exchange import Exchange, exchange_of

_CAPSULE = b"dltensor"
_LEGACY_STREAM = 1  # in DLPack's numbers of streams

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)

# For a capsule that is being destroyed: its address, not an object with a count of references.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer_at = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Borrowed:
    """Another package's tensor on a GPU, for one run, by its Python protocol."""

    def __init__(self, value: Any, stream: int) -> None:
        self._capsule = value.__dlpack__(stream=stream or _LEGACY_STREAM)
        self.address: int = _capsule_pointer(self._capsule, _CAPSULE)


class Borrower:
    """Takes other packages' tensors for one run in `stream` (0: the legacy default stream)."""

    __slots__ = ("_ordered", "_stream")

    def __init__(self, stream: int) -> None:
        self._stream = stream
        self._ordered: tuple[tuple[Exchange, tuple[int, int]], ...] = ()

    def take(self, table: TensorTable, i: int, name: str, value: Any) -> Any:
        """Entry i of the table becomes the tensor in `value`, ready in the stream; what must live
        as long as the run. None where it does not lie on a GPU."""
        package = exchange_of(type(value))
        try:
            # What wants gradients is refused by the Python protocol alone.
            if package is None or getattr(value, "requires_grad", False):
                return self._by_protocol(table, i, value)
            device = table.exchange(i, package, value)
            if device[0] != CUDA:
                return None
            if (package, device) not in self._ordered:
                self._order(package, device, value)
            return value
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"'{name}' cannot be taken through DLPack: {error}") from error

    def _by_protocol(self, table: TensorTable, i: int, value: Any) -> _Borrowed | None:
        device = getattr(value, "__dlpack_device__", None)
        if device is None or int(device()[0]) != CUDA:
            return None
        tensor = _Borrowed(value, self._stream)
        table.borrow(i, tensor)
        return tensor

    def _order(self, package: Exchange, device: tuple[int, int], value: Any) -> None:
        """The run's work comes behind all that the package has put into its own stream: behind one
        tensor's is behind all."""
        current = package.current_stream(device)
        if (current or _LEGACY_STREAM) != (self._stream or _LEGACY_STREAM):
            value.__dlpack__(stream=self._stream or _LEGACY_STREAM)
        self._ordered += ((package, device),)


class DeviceArray:
    """An output in a GPU's memory, row-major; released with the last reference to it.

    PyTorch and CuPy take it as it is (`torch.from_dlpack(array)`); `numpy()` copies it. `stream` is
    the one that the run was given: the array is ready when that work is done. Its memory goes back
    in the order of that stream (0: of the legacy default stream): what others do with it there may
    be under way when the last reference goes; work in other streams must have ended.
    """

    def __init__(self, instance: Instance, dtype: np.dtype, address: int, stream: int) -> None:
        tensor = ManagedTensor.from_address(address)
        self._instance = instance
        self._address = address
        self._deleter = tensor.deleter
        self._pointer = tensor.data
        self.stream = stream
        self.dtype = dtype
        self.shape = tensor.sizes()
        self.device = f"cuda:{tensor.device[1]}"
        self._ordinal: int = tensor.device[1]
        instance.library.retain()

    def __del__(self) -> None:
        library = self._instance.library
        library.delete(self._address, self._deleter)
        library.release()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"<abqc.DeviceArray {self.dtype} {list(self.shape)} on {self.device}>"

    def numpy(self) -> np.ndarray:
        """A copy in the host's memory, once the work before it is done."""
        array = np.empty(self.shape, self.dtype)
        if array.nbytes:
            _Reader(self._instance.driver, self._ordinal).read(
                self._pointer, array.ctypes.data, array.nbytes, self.stream
            )
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array on a GPU cannot be seen by numpy without a copy")
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._refuse_machine()
        if self.dtype.kind == "V":
            raise AttributeError(f"{self.dtype} arrays are handed on through DLPack alone")
        return {
            "version": 3,
            "typestr": self.dtype.str,
            "shape": self.shape,
            "strides": None,
            "data": (self._pointer, False),
            "stream": self.stream or None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self._ordinal

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """A capsule; a consumer on another stream than the run's waits for the work first."""
        if self.stream and stream != self.stream and stream != -1:
            _Reader(self._instance.driver, self._ordinal).wait(self.stream)
        return _export(self, self._address)

    def _refuse_machine(self) -> None:
        if self._instance.driver is not None:
            raise AttributeError("the array lies in the PTX machine, not on a GPU")


# ---- capsules ----

_exported: dict[int, Any] = {}  # a tensor lent to others, by the address of its structure


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _release(address: int) -> None:
    _exported.pop(address, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destroy_capsule(capsule: int) -> None:
    """Of a capsule that nobody took: those that did have renamed it."""
    if _is_valid(capsule, _CAPSULE):
        _release(_pointer_at(capsule, _CAPSULE))


def _export(owner: DeviceArray, address: int) -> Any:
    """A capsule with a structure of its own, which keeps `owner`."""
    tensor = ManagedTensor()
    ctypes.memmove(ctypes.addressof(tensor), address, ctypes.sizeof(tensor))
    tensor.manager_ctx = 0
    tensor.deleter = ctypes.cast(_release, ctypes.c_void_p).value or 0
    _exported[ctypes.addressof(tensor)] = (tensor, owner)
    destructor = ctypes.cast(_destroy_capsule, ctypes.c_void_p)
    return _new_capsule(ctypes.addressof(tensor), _CAPSULE, destructor)


# ---- copies to the host ----


class _Reader:
    """The few driver functions that a copy to the host takes."""

    def __init__(self, driver: DriverTable | None, ordinal: int) -> None:
        self._function = _resolve(driver)
        self._ordinal = ordinal

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._function(name)(*arguments)
        if code:
            raise DeviceError(f"cannot copy from GPU {self._ordinal}: {name} returned {code}")

    def wait(self, stream: int) -> None:
        """Until the work in a stream is done."""
        self._in_context(lambda: self._call("cuStreamSynchronize", ctypes.c_void_p(stream)))

    def read(self, source: int, to: int, nbytes: int, stream: int) -> None:
        """Copy, after the work in `stream`."""

        def copy() -> None:
            if stream:
                self._call("cuStreamSynchronize", ctypes.c_void_p(stream))
            sizes = ctypes.c_void_p(to), ctypes.c_uint64(source), ctypes.c_size_t(nbytes)
            self._call("cuMemcpyDtoH_v2", *sizes)

        self._in_context(copy)

    def _in_context(self, work: Callable[[], None]) -> None:
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), self._ordinal)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        try:
            self._call("cuCtxPushCurrent_v2", context)
            try:
                work()
            finally:
                self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        finally:
            self._call("cuDevicePrimaryCtxRelease_v2", device)


def _resolve(driver: DriverTable | None) -> Callable[[str], Callable[..., int]]:
    if driver is None:
        library = ctypes.CDLL("libcuda.so.1")
        return lambda name: getattr(library, name)
    address_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(driver.resolver)

    def function(name: str) -> Callable[..., int]:
        return ctypes.CFUNCTYPE(ctypes.c_int)(address_of(name.encode()))

    return function
