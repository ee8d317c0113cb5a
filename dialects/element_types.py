"""Scalar types of MLIR: their texts, and what numpy calls them.

A text is how MLIR spells a type (`f32`); by it targets are asked for kernels.
"""

from __future__ import annotations

from .mlir import ir

_FLOATS = {ir.F16Type: "f16", ir.BF16Type: "bf16", ir.F32Type: "f32", ir.F64Type: "f64"}
_NUMPY = {
    "i1": "bool",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "index": "int64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
}


def is_integer(type_: ir.Type, bits: int) -> bool:
    """Whether it is a signless integer of so many bits."""
    return isinstance(type_, ir.IntegerType) and type_.is_signless and type_.width == bits


def text_of(type_: ir.Type) -> str:
    """The text of a signless integer, an index or a float of 16 to 64 bits; "" for other types."""
    if isinstance(type_, ir.IntegerType) and type_.is_signless:
        return f"i{type_.width}"
    if isinstance(type_, ir.IndexType):
        return "index"
    return _FLOATS.get(type(type_), "")


def numpy_name(type_: ir.Type) -> str | None:
    """The name of the numpy type of elements, `bfloat16` being ml_dtypes'; None where it has none.

    Signless integers are taken for signed ones.
    """
    return _NUMPY.get(text_of(type_))
