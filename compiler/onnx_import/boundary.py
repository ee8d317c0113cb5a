"""Where values enter and leave the function: ONNX's element types become those inside, and back."""

from __future__ import annotations

from collections.abc import Sequence

from abqc.dialects.mlir import ir

from .building.emit import Builder
from .building.shaping import narrowed, widened
from .building.small_floats import decode, encode
from .values.element_types import STORED_HALVES, U8, ElementType
from .values.symbolic import Dim
from .values.value import Value


def decoded(b: Builder, argument: ir.Value, dtype: ElementType, dims: Sequence[Dim]) -> Value:
    """An argument of the function as a value."""
    exact = tuple(dims)
    if dtype.is_integer and dtype.bits < 8:  # whoever wrote it cared for the lower bits alone
        raw = Value(U8, exact, ssa=argument)
        return b.elementwise([raw], dtype, lambda code: code.cast(dtype))
    if dtype.outside() == dtype.inside():
        return Value(dtype, exact, ssa=argument)

    if dtype in STORED_HALVES:
        return widened(b, Value(STORED_HALVES[dtype], exact, ssa=argument), dtype)

    def body(element: ir.Value) -> list[ir.Value]:
        return [decode(element, dtype)]

    identity = ir.AffineMap.get_identity(len(exact))
    (ssa,) = b.generic(exact, [argument], [identity], [dtype], body)
    return Value(dtype, exact, ssa=ssa)


def encoded(b: Builder, value: Value) -> ir.Value:
    """A value as a result of the function."""
    dtype = value.dtype
    if dtype in STORED_HALVES:
        return b.tensor(narrowed(b, value))
    ssa = b.tensor(value)
    if dtype.outside() == dtype.inside():
        return ssa

    def body(element: ir.Value, _: ir.Value) -> list[ir.Value]:
        return [encode(element, dtype)]

    identity = ir.AffineMap.get_identity(value.rank)
    out = b.empty_of(dtype.outside(), value.dims)
    return b.structured([ssa], [out], [identity] * 2, [True] * value.rank, body)[0]
