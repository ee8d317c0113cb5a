"""The element types of inputs and outputs: numpy's names, DLPack's numbers, and who holds them.

Beside numpy's own types there are those of the package ml_dtypes, whose names are used here. Where
it cannot be imported, their elements are seen as codes: bfloat16 as uint16, int2 and int4 as int8,
the others as uint8. An element of less than 8 bits has a byte of its own (DLPack calls that
padded): the low bits are its code; the others are ignored in inputs, and in outputs extend its
value.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from .dlpack import DType


@dataclass(frozen=True)
class ElementType:
    """`codes`: the numpy type of elements as plain integers, for types that numpy lacks."""

    name: str
    dlpack: DType
    codes: str | None = None

    @property
    def storage(self) -> np.dtype:
        """The numpy type that holds elements, whatever is installed."""
        return np.dtype(self.codes or self.name)

    @property
    def is_integer(self) -> bool:
        return self.dlpack.code in (_INT, _UINT)

    @property
    def largest_integer(self) -> int:
        """Of a type of integers."""
        return 2 ** (self.dlpack.bits - (self.dlpack.code == _INT)) - 1


_INT, _UINT, _FLOAT, _BFLOAT, _BOOL = 0, 1, 2, 4, 6

_TYPES = (
    ElementType("bool", DType(_BOOL, 8, 1)),
    *(ElementType(f"int{bits}", DType(_INT, bits, 1)) for bits in (8, 16, 32, 64)),
    *(ElementType(f"uint{bits}", DType(_UINT, bits, 1)) for bits in (8, 16, 32, 64)),
    *(ElementType(f"float{bits}", DType(_FLOAT, bits, 1)) for bits in (16, 32, 64)),
    ElementType("bfloat16", DType(_BFLOAT, 16, 1), "uint16"),
    ElementType("int2", DType(_INT, 2, 1), "int8"),
    ElementType("int4", DType(_INT, 4, 1), "int8"),
    ElementType("uint2", DType(_UINT, 2, 1), "uint8"),
    ElementType("uint4", DType(_UINT, 4, 1), "uint8"),
    # The numbers are those of DLPack 1.1.
    ElementType("float8_e4m3fn", DType(10, 8, 1), "uint8"),
    ElementType("float8_e4m3fnuz", DType(11, 8, 1), "uint8"),
    ElementType("float8_e5m2", DType(12, 8, 1), "uint8"),
    ElementType("float8_e5m2fnuz", DType(13, 8, 1), "uint8"),
    ElementType("float8_e8m0fnu", DType(14, 8, 1), "uint8"),
    ElementType("float6_e2m3fn", DType(15, 6, 1), "uint8"),
    ElementType("float6_e3m2fn", DType(16, 6, 1), "uint8"),
    ElementType("float4_e2m1fn", DType(17, 4, 1), "uint8"),
)
_BY_NAME = {type_.name: type_ for type_ in _TYPES}
_BY_DLPACK = {type_.dlpack: type_ for type_ in _TYPES}

NAMES = tuple(_BY_NAME)


def by_name(name: str) -> ElementType:
    """The type that numpy or ml_dtypes call so; ValueError for those that no artifact can have."""
    if name not in _BY_NAME:
        raise ValueError(f"no input or output can be of type '{name}'")
    return _BY_NAME[name]


def by_dlpack(dtype: DType) -> ElementType:
    """The type with these numbers; ValueError where there is none."""
    if dtype not in _BY_DLPACK:
        raise ValueError(f"DLPack's {dtype} is no type of an input or output")
    return _BY_DLPACK[dtype]


def is_float(name: str) -> bool:
    """Whether a type is one of floats, small ones included."""
    type_ = by_name(name)
    return not type_.is_integer and type_.dlpack.code != _BOOL


@cache
def numpy_dtype(name: str) -> np.dtype:
    """How arrays of this type are seen: ml_dtypes' type, or that of the codes without it."""
    type_ = by_name(name)
    if type_.codes is None:
        return type_.storage
    try:
        return np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
    except (ImportError, AttributeError):
        return type_.storage


def as_codes(array: np.ndarray, name: str) -> np.ndarray:
    """An array of type `name` in a type that numpy alone can save, load and print: a view of codes,
    or the values of small integers."""
    type_ = by_name(name)
    if array.dtype == type_.storage:
        return array
    return array.astype(type_.storage) if type_.is_integer else array.view(type_.storage)


def seen_as(array: np.ndarray, name: str) -> np.ndarray | None:
    """`array` as one of type `name`, a view; None where it is of another type.

    For a type that numpy lacks, arrays of integers or of raw bytes (numpy's void, as which
    `np.load` gives such types back) of its size are taken for its codes.
    """
    dtype = numpy_dtype(name)
    if array.dtype == dtype:
        return array
    known_as_codes = by_name(name).codes is not None and array.dtype.isnative
    plain = array.dtype.kind in "iuV" and array.dtype.names is None
    if not known_as_codes or not plain or array.dtype.itemsize != dtype.itemsize:
        return None
    if array.dtype.kind == "V" and array.dtype.type is not np.void:
        return None  # another type of ml_dtypes
    return array.view(dtype)
