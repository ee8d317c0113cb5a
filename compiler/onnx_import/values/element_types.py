"""ONNX's element types: what each is outside of the compiled function, and what inside.

Inside, integers are signless MLIR integers (`signed` says how to read them), 16-bit floats and
smaller ones are f32: a value is rounded to its type where the model says so (a Cast, an output) and
not after every operator. 2- and 4-bit integers are i8, bool is i1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from abqc.dialects.mlir import ir
from onnx import TensorProto, helper


class Kind(Enum):
    FLOAT = "float"
    INTEGER = "integer"
    BOOL = "bool"
    INDEX = "index"  # of loops and sizes; no tensor has it


@dataclass(frozen=True)
class ElementType:
    """`onnx` is the number in TensorProto.DataType; `bits` those of a value in ONNX.

    `name` is numpy's name (ml_dtypes' for what numpy lacks).
    """

    onnx: int
    name: str
    kind: Kind
    bits: int
    signed: bool
    inside: Callable[[], ir.Type]
    outside: Callable[[], ir.Type]

    @property
    def is_float(self) -> bool:
        return self.kind is Kind.FLOAT

    @property
    def is_integer(self) -> bool:
        return self.kind is Kind.INTEGER

    @property
    def is_bool(self) -> bool:
        return self.kind is Kind.BOOL

    @property
    def is_small_float(self) -> bool:
        """A float of 8 bits or fewer, which travels as its code."""
        return self.is_float and self.bits <= 8

    @property
    def dtype(self) -> np.dtype:
        """The numpy type of constants of this type."""
        return helper.tensor_dtype_to_np_dtype(self.onnx)

    @property
    def inside_dtype(self) -> np.dtype:
        """The numpy type of the values inside of the function."""
        if self.is_float:
            return np.dtype(np.float64 if self.bits == 64 else np.float32)
        if self.is_bool:
            return np.dtype(bool)
        return np.dtype(f"{'' if self.signed else 'u'}int{max(self.bits, 8)}")

    @property
    def is_half(self) -> bool:
        """A float of 16 bits: f32 inside, but weights and caches are stored as they are."""
        return self.is_float and self.bits == 16

    def stored(self) -> ir.Type:
        """The type of a weight in the weight store."""
        return self.outside() if self.is_half else self.inside()

    @property
    def stored_dtype(self) -> np.dtype:
        return self.dtype if self.is_half else self.inside_dtype

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        if self.signed:
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return 0, (1 << self.bits) - 1

    def __repr__(self) -> str:
        return self.name


def _integer(bits: int) -> Callable[[], ir.Type]:
    return lambda: ir.IntegerType.get_signless(bits)


def _f32() -> ir.Type:
    return ir.F32Type.get()


def _float(
    onnx: int,
    name: str,
    bits: int,
    outside: Callable[[], ir.Type],
    inside: Callable[[], ir.Type] = _f32,
) -> ElementType:
    return ElementType(onnx, name, Kind.FLOAT, bits, True, inside, outside)


def _int(onnx: int, name: str, bits: int, signed: bool) -> ElementType:
    type_ = _integer(max(bits, 8))
    return ElementType(onnx, name, Kind.INTEGER, bits, signed, type_, type_)


F32 = _float(TensorProto.FLOAT, "float32", 32, _f32)
F16 = _float(TensorProto.FLOAT16, "float16", 16, lambda: ir.F16Type.get())
BF16 = _float(TensorProto.BFLOAT16, "bfloat16", 16, lambda: ir.BF16Type.get())
F64 = ElementType(
    TensorProto.DOUBLE, "float64", Kind.FLOAT, 64, True,
    lambda: ir.F64Type.get(), lambda: ir.F64Type.get(),
)  # fmt: skip
I8 = _int(TensorProto.INT8, "int8", 8, True)
I16 = _int(TensorProto.INT16, "int16", 16, True)
I32 = _int(TensorProto.INT32, "int32", 32, True)
I64 = _int(TensorProto.INT64, "int64", 64, True)
U8 = _int(TensorProto.UINT8, "uint8", 8, False)
U16 = _int(TensorProto.UINT16, "uint16", 16, False)
U32 = _int(TensorProto.UINT32, "uint32", 32, False)
U64 = _int(TensorProto.UINT64, "uint64", 64, False)
BOOL = ElementType(TensorProto.BOOL, "bool", Kind.BOOL, 1, False, _integer(1), _integer(1))
INDEX = ElementType(
    0, "index", Kind.INDEX, 64, True, lambda: ir.IndexType.get(), lambda: ir.IndexType.get()
)

# Tensors of halves as they lie in memory, which are only moved: no arithmetic is done on them.
STORED_HALVES = {
    F16: _float(TensorProto.FLOAT16, "float16", 16, F16.outside, inside=F16.outside),
    BF16: _float(TensorProto.BFLOAT16, "bfloat16", 16, BF16.outside, inside=BF16.outside),
}

_SMALL_INTEGERS = (("INT4", 4, True), ("UINT4", 4, False), ("INT2", 2, True), ("UINT2", 2, False))
_SMALL_FLOATS = (
    ("FLOAT8E4M3FN", "float8_e4m3fn", 8), ("FLOAT8E4M3FNUZ", "float8_e4m3fnuz", 8),
    ("FLOAT8E5M2", "float8_e5m2", 8), ("FLOAT8E5M2FNUZ", "float8_e5m2fnuz", 8),
    ("FLOAT8E8M0", "float8_e8m0fnu", 8), ("FLOAT4E2M1", "float4_e2m1fn", 4),
    ("FLOAT6E2M3", "float6_e2m3fn", 6), ("FLOAT6E3M2", "float6_e3m2fn", 6),
)  # fmt: skip

_STANDARD = (F32, F16, BF16, F64, I8, I16, I32, I64, U8, U16, U32, U64, BOOL)

_KNOWN = frozenset(TensorProto.DataType.keys())

# Older versions of onnx lack some of the small types.
ELEMENT_TYPES: dict[int, ElementType] = {type_.onnx: type_ for type_ in _STANDARD}
for _name, _bits, _signed in _SMALL_INTEGERS:
    if _name in _KNOWN:
        _number = TensorProto.DataType.Value(_name)
        ELEMENT_TYPES[_number] = _int(_number, _name.lower(), _bits, _signed)
for _name, _numpy_name, _bits in _SMALL_FLOATS:
    if _name in _KNOWN:
        _number = TensorProto.DataType.Value(_name)
        ELEMENT_TYPES[_number] = _float(_number, _numpy_name, _bits, _integer(8))

BY_NAME = {type_.name: type_ for type_ in ELEMENT_TYPES.values()}


def element_type(number: int) -> ElementType | None:
    """The type with ONNX's number; None for strings, complex numbers and unknown ones."""
    return ELEMENT_TYPES.get(number)


def onnx_name(number: int) -> str:
    """What ONNX calls an element type, for messages."""
    known = number in TensorProto.DataType.values()
    return TensorProto.DataType.Name(number).lower() if known else f"type {number}"
