"""Cast, CastLike, BitCast: one element type to another."""

from __future__ import annotations

from abqc.dialects.mlir import arith, ir
from onnx import TensorProto

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.small_floats import decode, encode, rounded
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import BOOL, F32, F64, U8, ElementType
from ..values.symbolic import Dim
from ..values.value import Value


@lowers("Cast")
def lower_cast(node: Node) -> Value:
    return _cast(node, _target(node))


@lowers("CastLike")
def cast_like(node: Node) -> Value:
    return _cast(node, node.input(1).dtype)


def _target(node: Node) -> ElementType:
    if node.version < 6:  # the name of the type
        name = str(node.string("to")).upper()
        if name not in set(TensorProto.DataType.keys()):
            raise node.error(f"there is no element type '{name}'")
        return node.known_type(TensorProto.DataType.Value(name))
    return node.type_of("to")


def _cast(node: Node, to: ElementType) -> Value:
    mode = node.choice("round_mode", "up", "down", "nearest")
    saturate = bool(node.int("saturate", 1))
    return cast(node.b, node.input(0), to, saturate=saturate, round_mode=mode)


def cast(
    b: Builder, x: Value, to: ElementType, *, saturate: bool = True, round_mode: str = "up"
) -> Value:
    """The elements in another type. Integers wrap around, floats are cut to integers."""
    if x.dtype == to:
        return x
    if x.in_f32 is not None and to is F32:
        return Value(to, x.dims, ssa=x.in_f32)
    if x.content is not None and not to.is_float:
        return Value(to, x.dims, content=tuple(_element(dim, x.dtype, to) for dim in x.content))
    if x.constant is not None and to.inside() == x.dtype.inside() and to.bits > x.dtype.bits:
        return Value(to, x.dims, ssa=b.tensor(x))

    def body(element: Scalar) -> Scalar:
        return converted(element, to, saturate=saturate, round_mode=round_mode)

    # f16 and f32 are one type inside: the value is as exact as before.
    if to.is_float and x.dtype.is_float and to.bits in (32, 64) and x.dtype.inside() == to.inside():
        return Value(to, x.dims, ssa=b.tensor(x))
    return b.elementwise([x], to, body)


def converted(
    element: Scalar, to: ElementType, *, saturate: bool = True, round_mode: str = "up"
) -> Scalar:
    """An element in another type, rounded to it."""
    if not to.is_float or to.bits >= 32:
        return element.cast(to)
    source = element if element.dtype.is_float else element.cast(_wide_float(element.dtype))
    return rounded(source, to, saturate=saturate, round_mode=round_mode)


def _wide_float(dtype: ElementType) -> ElementType:
    """A float that holds the integers, or rounds them as little as may be."""
    return F64 if dtype.bits > 16 else F32


def _element(dim: Dim, source: ElementType, to: ElementType) -> Dim:
    """An element of a shape tensor; sizes fit into the integers that models use for them."""
    if to is BOOL and source is not BOOL:
        return symbolic.negated(symbolic.is_equal(dim, symbolic.ZERO))
    number = dim.value
    if number is None or not to.is_integer:
        return dim
    low, _ = to.limits
    return Dim.of((number - low) % (1 << to.bits) + low)


@lowers("BitCast")
def bit_cast(node: Node) -> Value:
    """The same bits read as another type of the same width."""
    x, to = node.input(0), node.type_of("to")
    if _stored_bits(x.dtype) != _stored_bits(to):
        raise node.error(f"{x.dtype.name} and {to.name} differ in width")
    return node.b.elementwise([x], to, lambda element: _reinterpreted(element, to))


def _stored_bits(dtype: ElementType) -> int:
    return 8 if dtype.is_bool else dtype.bits


def _reinterpreted(element: Scalar, to: ElementType) -> Scalar:
    source = element.dtype
    if source.is_bool or to.is_bool:
        return _reinterpreted(element.cast(U8), to) if source.is_bool else element.cast(to)
    bits = element.ssa
    if source.is_float:
        outside = encode(bits, source) if source.bits < 32 else bits
        bits = outside if source.is_small_float else _bits(outside, source.bits)
    if not to.is_float:
        return Scalar(bits, U8 if to.bits < 8 else to).cast(to)
    outside = bits if to.is_small_float else arith.BitcastOp(to.outside(), bits).result
    return Scalar(decode(outside, to) if to.bits < 32 else outside, to)


def _bits(value: ir.Value, width: int) -> ir.Value:
    return arith.BitcastOp(ir.IntegerType.get_signless(width), value).result
