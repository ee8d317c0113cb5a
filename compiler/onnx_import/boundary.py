"""Where values enter and leave the function: from ONNX's element types to those inside, and back."""

from __future__ import annotations

from collections.abc import Sequence

from abqc.dialects.mlir import arith, ir

from .element_types import ElementType
from .emit import Builder
from .small_floats import decode, encode
from .symbolic import Dim
from .values import Value


def decoded(b: Builder, argument: ir.Value, dtype: ElementType, dims: Sequence[Dim]) -> Value:
    """An argument of the function as a value."""
    exact = tuple(dims)
    if dtype.outside() == dtype.inside():
        return Value(dtype, exact, ssa=argument)

    def body(element: ir.Value) -> list[ir.Value]:
        if dtype.is_small_float:
            return [decode(element, dtype)]
        return [arith.ExtFOp(dtype.inside(), element).result]

    identity = ir.AffineMap.get_identity(len(exact))
    (ssa,) = b.generic(exact, [argument], [identity], [dtype], body)
    return Value(dtype, exact, ssa=ssa)


def encoded(b: Builder, value: Value) -> ir.Value:
    """A value as a result of the function."""
    dtype, ssa = value.dtype, b.tensor(value)
    if dtype.outside() == dtype.inside():
        return ssa

    def body(element: ir.Value, _: ir.Value) -> list[ir.Value]:
        if dtype.is_small_float:
            return [encode(element, dtype)]
        return [arith.TruncFOp(dtype.outside(), element).result]

    identity = ir.AffineMap.get_identity(value.rank)
    out = b.empty_of(dtype.outside(), value.dims)
    return b.structured([ssa], [out], [identity] * 2, [True] * value.rank, body)[0]
