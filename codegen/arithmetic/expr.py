"""Arithmetic on SSA values that is exact as written: the only fast-math flag is `contract`.

Unlike `codegen.builder.Value`, which kernels use, operations here may be fused where the CPU has a
fused multiply-add, and work on f32, f64 and integers, scalars and vectors of any rank alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from abqc.dialects.mlir import arith, ir, math


@dataclass(frozen=True)
class Expr:
    """An SSA value with Python's operators; numbers become constants of the same type."""

    value: ir.Value

    @property
    def type(self) -> ir.Type:
        return self.value.type

    @property
    def is_float(self) -> bool:
        return isinstance(scalar_type(self.type), (ir.F32Type, ir.F64Type))

    def constant(self, number: float) -> Expr:
        return Expr(constant(self.type, number))

    def _other(self, other: Expr | float) -> ir.Value:
        return other.value if isinstance(other, Expr) else constant(self.type, other)

    def _float(self, op: Any, other: Expr | float) -> Expr:
        return Expr(op(self.value, self._other(other), fastmath=arith.FastMathFlags.contract))

    def __add__(self, other: Expr | float) -> Expr:
        if not self.is_float:
            return Expr(arith.addi(self.value, self._other(other)))
        return self._float(arith.addf, other)

    def __sub__(self, other: Expr | float) -> Expr:
        if not self.is_float:
            return Expr(arith.subi(self.value, self._other(other)))
        return self._float(arith.subf, other)

    def __mul__(self, other: Expr | float) -> Expr:
        return self._float(arith.mulf, other)

    def __truediv__(self, other: Expr | float) -> Expr:
        return self._float(arith.divf, other)

    def __rtruediv__(self, other: float) -> Expr:
        return self.constant(other) / self

    def __rsub__(self, other: float) -> Expr:
        return self.constant(other) - self

    def __neg__(self) -> Expr:
        return Expr(arith.negf(self.value))

    def __and__(self, other: Expr | int) -> Expr:
        return Expr(arith.andi(self.value, self._other(other)))

    def __or__(self, other: Expr | int) -> Expr:
        return Expr(arith.ori(self.value, self._other(other)))

    def __lshift__(self, other: int) -> Expr:
        return Expr(arith.shli(self.value, self._other(other)))

    def __rshift__(self, other: int) -> Expr:
        """Arithmetic: the sign is kept."""
        return Expr(arith.shrsi(self.value, self._other(other)))

    def _compare(self, predicate: Any, integer: Any, other: Expr | float) -> Expr:
        if self.is_float:
            return Expr(arith.cmpf(predicate, self.value, self._other(other)))
        return Expr(arith.cmpi(integer, self.value, self._other(other)))

    def __lt__(self, other: Expr | float) -> Expr:
        return self._compare(arith.CmpFPredicate.OLT, arith.CmpIPredicate.slt, other)

    def __gt__(self, other: Expr | float) -> Expr:
        return self._compare(arith.CmpFPredicate.OGT, arith.CmpIPredicate.sgt, other)

    def equals(self, other: Expr | float) -> Expr:
        return self._compare(arith.CmpFPredicate.OEQ, arith.CmpIPredicate.eq, other)

    def cast(self, scalar: ir.Type, op: Any) -> Expr:
        return Expr(op(with_scalar(self.type, scalar), self.value))

    def bits(self) -> Expr:
        width = 64 if isinstance(scalar_type(self.type), ir.F64Type) else 32
        return self.cast(ir.IntegerType.get_signless(width), arith.bitcast)

    def as_f32(self) -> Expr:
        """The f32 whose bits these are."""
        return self.cast(ir.F32Type.get(), arith.bitcast)

    def as_f64(self) -> Expr:
        return self.cast(ir.F64Type.get(), arith.bitcast)

    def to_f64(self) -> Expr:
        return self.cast(ir.F64Type.get(), arith.extf)

    def to_f32(self) -> Expr:
        return self.cast(ir.F32Type.get(), arith.truncf)

    def from_int(self, scalar: ir.Type) -> Expr:
        return self.cast(scalar, arith.sitofp)


def scalar_type(type_: ir.Type) -> ir.Type:
    return type_.element_type if isinstance(type_, ir.VectorType) else type_


def with_scalar(type_: ir.Type, scalar: ir.Type) -> ir.Type:
    return ir.VectorType.get(type_.shape, scalar) if isinstance(type_, ir.VectorType) else scalar


def constant(type_: ir.Type, number: float) -> ir.Value:
    scalar = scalar_type(type_)
    if isinstance(scalar, ir.IntegerType):
        attribute = ir.IntegerAttr.get(scalar, int(number))
    else:
        attribute = ir.FloatAttr.get(scalar, number)
    if isinstance(type_, ir.VectorType):
        attribute = ir.DenseElementsAttr.get_splat(type_, attribute)
    return arith.constant(type_, attribute)


def select(condition: Expr, yes: Expr | float, no: Expr) -> Expr:
    return Expr(arith.select(condition.value, no._other(yes), no.value))


def clamp(x: Expr, low: float, high: float) -> Expr:
    """NaN stays NaN."""
    x = select(x < low, low, x)
    return select(x > high, high, x)


def absolute(x: Expr) -> Expr:
    return Expr(math.absf(x.value))


def copy_sign(magnitude: Expr, sign: Expr) -> Expr:
    return Expr(math.copysign(magnitude.value, sign.value))
