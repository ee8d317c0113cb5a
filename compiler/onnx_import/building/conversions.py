"""Conversions between the types of scalars inside of the function."""

from __future__ import annotations

from abqc.dialects.mlir import arith, ir

from ..values.element_types import BOOL, I32, I64, INDEX, ElementType, Kind
from .scalars import Scalar


def convert(x: Scalar, to: ElementType) -> Scalar:
    """See `Scalar.cast`. Narrow integers (2 and 4 bits) are kept wrapped to their width."""
    source, target = x.ssa.type, to.inside()
    if to.is_bool:
        return x if x.dtype.is_bool else x != 0
    if x.dtype.is_float and to.is_float:
        return Scalar(_between_floats(x.ssa, target), to)
    if x.dtype.is_float:
        return _float_to_integer(x, to)
    if to.is_float:
        return _integer_to_float(x, to)
    if source == target:
        return _wrapped(Scalar(x.ssa, to), x.dtype)
    if INDEX in (x.dtype, to):
        return _with_index(x, to)
    wide, narrow = ir.IntegerType(target).width, ir.IntegerType(source).width
    if wide < narrow:
        return _wrapped(Scalar(arith.TruncIOp(target, x.ssa).result, to), x.dtype)
    extend = arith.ExtSIOp if x.dtype.signed else arith.ExtUIOp
    return _wrapped(Scalar(extend(target, x.ssa).result, to), x.dtype)


def _with_index(x: Scalar, to: ElementType) -> Scalar:
    signed = x.dtype.signed if to is INDEX else to.signed
    cast = arith.IndexCastOp if signed else arith.IndexCastUIOp
    return _wrapped(Scalar(cast(to.inside(), x.ssa).result, to), x.dtype)


def _between_floats(value: ir.Value, target: ir.Type) -> ir.Value:
    if value.type == target:
        return value
    grows = ir.FloatType(target).width > ir.FloatType(value.type).width
    return (arith.ExtFOp if grows else arith.TruncFOp)(target, value).result


def _integer_to_float(x: Scalar, to: ElementType) -> Scalar:
    if x.dtype.kind is Kind.INDEX:
        x = convert(x, I64)
    cast = arith.SIToFPOp if x.dtype.signed else arith.UIToFPOp
    return Scalar(cast(to.inside(), x.ssa).result, to)


def _float_to_integer(x: Scalar, to: ElementType) -> Scalar:
    """Through 32 bits, or 64 where `to` has more: -1.0 becomes 255 of 8 bits.

    LLVM calls values beyond these poison; on x86 they come out as the smallest integer.
    """
    through = I32 if to.is_integer and to.bits <= 32 else I64
    if not to.signed and to.bits == through.bits:
        # Values from half of the range on do not fit a signed integer.
        half = x.like(float(1 << (to.bits - 1)))
        big = x >= half
        low = arith.FPToSIOp(through.inside(), big.select(x - half, x).ssa).result
        top = ir.IntegerAttr.get(through.inside(), -(1 << (to.bits - 1)))
        added = Scalar(low, through) ^ Scalar(
            arith.ConstantOp(through.inside(), top).result, through
        )
        return Scalar(big.select(added, Scalar(low, through)).ssa, to)
    wide = Scalar(arith.FPToSIOp(through.inside(), x.ssa).result, through)
    return wide if to is through else convert(wide, to)


def _wrapped(x: Scalar, source: ElementType) -> Scalar:
    """2- and 4-bit integers live in 8 bits: the upper ones must agree with the lower."""
    to = x.dtype
    if not to.is_integer or to.bits >= 8:
        return x
    if source.is_integer and source.bits <= to.bits and source.signed == to.signed:
        return x
    if source is BOOL:
        return x
    mask = x & ((1 << to.bits) - 1)
    if not to.signed:
        return mask
    sign = 1 << (to.bits - 1)
    return (mask ^ sign) - sign
