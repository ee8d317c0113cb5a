"""Scalars inside of loop bodies: an SSA value with ONNX's element type, and Python's operators.

`(x - 3) / y` builds arith ops that mean what ONNX means by them for the type at hand: wrap-around
for integers, C's division, unsigned comparisons for unsigned types. Numbers of Python become
constants of the other operand's type. All need an insertion point.
"""

from __future__ import annotations

import math as pymath
from collections.abc import Callable
from dataclasses import dataclass

from abqc.dialects.mlir import arith, ir, math

from ..values.element_types import BOOL, F32, INDEX, ElementType, Kind

Number = int | float | bool


@dataclass(frozen=True, eq=False)
class Scalar:
    """`ssa` is of the type `dtype.inside()`."""

    ssa: ir.Value
    dtype: ElementType

    # Arithmetic

    def __add__(self, other: Scalar | Number) -> Scalar:
        return self._binary(other, arith.AddFOp, arith.AddIOp)

    def __radd__(self, other: Number) -> Scalar:
        return self + other

    def __sub__(self, other: Scalar | Number) -> Scalar:
        return self._binary(other, arith.SubFOp, arith.SubIOp)

    def __rsub__(self, other: Number) -> Scalar:
        return self.like(other) - self

    def __mul__(self, other: Scalar | Number) -> Scalar:
        return self._binary(other, arith.MulFOp, arith.MulIOp)

    def __rmul__(self, other: Number) -> Scalar:
        return self * other

    def __truediv__(self, other: Scalar | Number) -> Scalar:
        """Integers are divided towards zero."""
        return self._binary(other, arith.DivFOp, *self._by_sign(arith.DivSIOp, arith.DivUIOp))

    def __rtruediv__(self, other: Number) -> Scalar:
        return self.like(other) / self

    def __floordiv__(self, other: Scalar | Number) -> Scalar:
        """Integers alone; rounded down."""
        return self._binary(other, None, *self._by_sign(arith.FloorDivSIOp, arith.DivUIOp))

    def remainder(self, other: Scalar | Number) -> Scalar:
        """With the sign of the dividend, as C's % and fmod."""
        return self._binary(other, arith.RemFOp, *self._by_sign(arith.RemSIOp, arith.RemUIOp))

    def __mod__(self, other: Scalar | Number) -> Scalar:
        """With the sign of the divisor, as Python's."""
        divisor = self._coerced(other)
        rest = self.remainder(divisor)
        if not self.dtype.signed:
            return rest
        zero = self.like(0)
        wrong = (rest != zero) & ((rest < zero) ^ (divisor < zero))
        return wrong.select(rest + divisor, rest)

    def __neg__(self) -> Scalar:
        if self.dtype.is_float:
            return self._made(arith.NegFOp(self.ssa).result)
        return self.like(0) - self

    def maximum(self, other: Scalar | Number) -> Scalar:
        """NaN if either is."""
        return self._binary(other, arith.MaximumFOp, *self._by_sign(arith.MaxSIOp, arith.MaxUIOp))

    def minimum(self, other: Scalar | Number) -> Scalar:
        return self._binary(other, arith.MinimumFOp, *self._by_sign(arith.MinSIOp, arith.MinUIOp))

    def clamp(self, low: Scalar | Number, high: Scalar | Number) -> Scalar:
        return self.maximum(low).minimum(high)

    def abs(self) -> Scalar:
        if not self.dtype.signed:
            return self
        return self._made((math.AbsFOp if self.dtype.is_float else math.AbsIOp)(self.ssa).result)

    # Bits

    def __and__(self, other: Scalar | Number) -> Scalar:
        return self._binary(other, None, arith.AndIOp)

    def __or__(self, other: Scalar | Number) -> Scalar:
        return self._binary(other, None, arith.OrIOp)

    def __xor__(self, other: Scalar | Number) -> Scalar:
        return self._binary(other, None, arith.XOrIOp)

    def __invert__(self) -> Scalar:
        return self ^ (True if self.dtype.is_bool else -1)

    def shift_left(self, other: Scalar | Number) -> Scalar:
        """0 where `other` is the width or more."""
        return self._shift(other, arith.ShLIOp)

    def shift_right(self, other: Scalar | Number) -> Scalar:
        """Signed numbers keep their sign. All bits leave where `other` is the width or more."""
        if not self.dtype.signed:
            return self._shift(other, arith.ShRUIOp)
        amount, width = self._coerced(other), ir.IntegerType(self.ssa.type).width
        last = self.like(width - 1)
        safe = arith.MinUIOp(amount.ssa, last.ssa).result
        return self._made(arith.ShRSIOp(self.ssa, safe).result)

    def _shift(self, other: Scalar | Number, operation: Callable[..., ir.OpView]) -> Scalar:
        amount = self._coerced(other)
        width = ir.IntegerType(self.ssa.type).width
        legal = Scalar(
            arith.CmpIOp(arith.CmpIPredicate.ult, amount.ssa, self.like(width).ssa).result, BOOL
        )
        safe = legal.select(amount, self.like(0))
        return legal.select(self._made(operation(self.ssa, safe.ssa).result), self.like(0))

    # Comparisons; all but != are false for NaN

    def __lt__(self, other: Scalar | Number) -> Scalar:
        return self._compare(other, "OLT", "lt")

    def __le__(self, other: Scalar | Number) -> Scalar:
        return self._compare(other, "OLE", "le")

    def __gt__(self, other: Scalar | Number) -> Scalar:
        return self._compare(other, "OGT", "gt")

    def __ge__(self, other: Scalar | Number) -> Scalar:
        return self._compare(other, "OGE", "ge")

    def __eq__(self, other: Scalar | Number) -> Scalar:  # type: ignore[override]
        return self._compare(other, "OEQ", "eq")

    def __ne__(self, other: Scalar | Number) -> Scalar:  # type: ignore[override]
        return self._compare(other, "UNE", "ne")

    __hash__ = object.__hash__

    def is_nan(self) -> Scalar:
        return self != self if self.dtype.is_float else const(False, BOOL)

    def is_infinite(self) -> Scalar:
        return self.abs() == pymath.inf if self.dtype.is_float else const(False, BOOL)

    def select(self, then: Scalar, otherwise: Scalar | Number) -> Scalar:
        """`then` where this bool is true."""
        other = then._coerced(otherwise)
        return then._made(arith.SelectOp(self.ssa, then.ssa, other.ssa).result)

    # Functions of floats

    def exp(self) -> Scalar:
        return self._function(math.ExpOp)

    def log(self) -> Scalar:
        return self._function(math.LogOp)

    def log1p(self) -> Scalar:
        return self._function(math.Log1pOp)

    def sqrt(self) -> Scalar:
        return self._function(math.SqrtOp)

    def rsqrt(self) -> Scalar:
        return 1.0 / self.sqrt()

    def tanh(self) -> Scalar:
        return self._function(math.TanhOp)

    def erf(self) -> Scalar:
        return self._function(math.ErfOp)

    def sin(self) -> Scalar:
        return self._function(math.SinOp)

    def cos(self) -> Scalar:
        return self._function(math.CosOp)

    def tan(self) -> Scalar:
        return self._function(math.TanOp)

    def asin(self) -> Scalar:
        return self._function(math.AsinOp)

    def acos(self) -> Scalar:
        return self._function(math.AcosOp)

    def atan(self) -> Scalar:
        return self._function(math.AtanOp)

    def sinh(self) -> Scalar:
        return self._function(math.SinhOp)

    def cosh(self) -> Scalar:
        return self._function(math.CoshOp)

    def asinh(self) -> Scalar:
        return self._function(math.AsinhOp)

    def acosh(self) -> Scalar:
        return self._function(math.AcoshOp)

    def atanh(self) -> Scalar:
        return self._function(math.AtanhOp)

    def floor(self) -> Scalar:
        return self._function(math.FloorOp)

    def ceil(self) -> Scalar:
        return self._function(math.CeilOp)

    def round_even(self) -> Scalar:
        """To the nearest integer, halves to the even one."""
        return self._function(math.RoundEvenOp)

    def trunc(self) -> Scalar:
        return self._function(math.TruncOp)

    def power(self, exponent: Scalar) -> Scalar:
        return self._made(math.PowFOp(self.ssa, exponent.ssa).result)

    def sigmoid(self) -> Scalar:
        return 1.0 / ((-self).exp() + 1.0)

    def gelu(self) -> Scalar:
        """By the error function."""
        return self * 0.5 * ((self * pymath.sqrt(0.5)).erf() + 1.0)

    def tanh_gelu(self) -> Scalar:
        """GELU's approximation by tanh."""
        inner = (self * self * self * 0.044715 + self) * pymath.sqrt(2 / pymath.pi)
        return self * 0.5 * (inner.tanh() + 1.0)

    def _function(self, operation: Callable[..., ir.OpView]) -> Scalar:
        return self._made(operation(self.ssa).result)

    # Conversions

    def cast(self, to: ElementType) -> Scalar:
        """Converted between the types inside: no rounding to 16-bit floats (`small_floats.py`).

        Floats become integers towards zero; what does not fit is as undefined as in C, but never
        traps. Anything but 0 becomes True.
        """
        from .conversions import convert

        return convert(self, to)

    def like(self, number: Number) -> Scalar:
        return const(number, self.dtype)

    def _made(self, ssa: ir.Value) -> Scalar:
        return Scalar(ssa, self.dtype)

    def _coerced(self, other: Scalar | Number) -> Scalar:
        return other if isinstance(other, Scalar) else self.like(other)

    def _by_sign(self, signed: Callable, unsigned: Callable) -> tuple[Callable]:
        return (signed if self.dtype.signed else unsigned,)

    def _binary(
        self,
        other: Scalar | Number,
        on_floats: Callable[..., ir.OpView] | None,
        on_integers: Callable[..., ir.OpView],
    ) -> Scalar:
        right = self._coerced(other)
        operation = on_floats if self.dtype.is_float else on_integers
        if operation is None:
            raise TypeError(f"this operation has no meaning for {self.dtype}")
        return self._made(operation(self.ssa, right.ssa).result)

    def _compare(self, other: Scalar | Number, on_floats: str, on_integers: str) -> Scalar:
        right = self._coerced(other)
        if self.dtype.is_float:
            predicate = getattr(arith.CmpFPredicate, on_floats)
            return Scalar(arith.CmpFOp(predicate, self.ssa, right.ssa).result, BOOL)
        name = on_integers
        if name not in ("eq", "ne"):
            name = ("s" if self.dtype.signed else "u") + name
        predicate = getattr(arith.CmpIPredicate, name)
        return Scalar(arith.CmpIOp(predicate, self.ssa, right.ssa).result, BOOL)


def const(number: Number, dtype: ElementType) -> Scalar:
    """A constant at the insertion point; integers wrap around."""
    type_ = dtype.inside()
    if dtype.is_float:
        attribute: ir.Attribute = ir.FloatAttr.get(type_, float(number))
    elif dtype.kind is Kind.INDEX:
        attribute = ir.IntegerAttr.get(type_, int(number))
    else:
        width = ir.IntegerType(type_).width
        wrapped = int(number) & ((1 << width) - 1)
        if width == 64 and wrapped >> 63:
            wrapped -= 1 << 64
        attribute = ir.IntegerAttr.get(type_, wrapped)
    return Scalar(arith.ConstantOp(type_, attribute).result, dtype)


def index(number: int) -> Scalar:
    return const(number, INDEX)


def f32(number: float) -> Scalar:
    return const(number, F32)
