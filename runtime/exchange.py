"""Tensors of other packages through DLPack's C exchange API.

PyTorch and others have a table of C functions on a tensor's type (`__dlpack_c_exchange_api__`,
DLPack 1.2): one call fills in a DLTensor, where `__dlpack__` makes a capsule and waits between
streams for every tensor anew. Structures and names are those of dlpack.h.
"""

from __future__ import annotations

import ctypes
from typing import Any

_CAPSULE = b"dlpack_exchange_api"
_ATTRIBUTE = "__dlpack_c_exchange_api__"
_MAJOR = 1  # of DLPack's versions: the layout of the table

# Of CPython's API and with the interpreter's lock held: what they raise comes out.
_Describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
_CurrentStream = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class ExchangeTable(ctypes.Structure):
    """DLPackExchangeAPI; `previous` is a table of an older major version."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("managed_to_object", ctypes.c_void_p),
        ("tensor_from_object", ctypes.c_void_p),  # may be NULL
        ("current_work_stream", ctypes.c_void_p),
    )


class Exchange:
    """The functions of a type of tensors."""

    def __init__(self, table: ExchangeTable) -> None:
        self._describe = _Describe(table.tensor_from_object)
        self._stream = _CurrentStream(table.current_work_stream)
        self._found = ctypes.c_void_p()

    def describe(self, tensor: Any, address: int) -> None:
        """Write the DLTensor of `tensor` to `address`: it borrows the tensor's memory and sizes, as
        long as nobody resizes it. What the package raises where it cannot."""
        self._describe(tensor, address)

    def current_stream(self, device: tuple[int, int]) -> int:
        """The stream that the package's work on a device goes into, 0: the legacy default one."""
        self._stream(*device, self._found)
        return self._found.value or 0


_known: dict[type, Exchange | None] = {}


def exchange_of(kind: type) -> Exchange | None:
    """None where the type has no such table, or not this one."""
    if kind not in _known:
        _known[kind] = _find(kind)
    return _known[kind]


def _find(kind: type) -> Exchange | None:
    capsule = getattr(kind, _ATTRIBUTE, None)
    address = None if capsule is None else _capsule_pointer(capsule, _CAPSULE)
    while address:
        table = ExchangeTable.from_address(address)
        if table.major == _MAJOR:
            return Exchange(table) if table.tensor_from_object else None
        address = table.previous
    return None
