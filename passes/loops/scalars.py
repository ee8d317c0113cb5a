"""Integers in the bodies of loops, with operators: i32, shifts and divisions unsigned."""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects.mlir import arith, ir


def _i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


@dataclass(frozen=True, eq=False)
class Int:
    """An i32. Comparisons give a `Condition`."""

    value: ir.Value

    @staticmethod
    def of(number: int) -> Int:
        return Int(arith.ConstantOp(_i32(), ir.IntegerAttr.get(_i32(), number)).result)

    @staticmethod
    def of_index(value: ir.Value) -> Int:
        return Int(arith.IndexCastOp(_i32(), value).result)

    @staticmethod
    def of_byte(value: ir.Value) -> Int:
        """An i8 without sign."""
        return Int(arith.ExtUIOp(_i32(), value).result)

    @staticmethod
    def of_bits(value: ir.Value) -> Int:
        """The bits of an f32."""
        return Int(arith.BitcastOp(_i32(), value).result)

    @staticmethod
    def rounded(value: ir.Value) -> Int:
        """An f32 that is an integer."""
        return Int(arith.FPToSIOp(_i32(), value).result)

    def as_index(self) -> ir.Value:
        return arith.IndexCastOp(ir.IndexType.get(), self.value).result

    def as_byte(self) -> ir.Value:
        return arith.TruncIOp(ir.IntegerType.get_signless(8), self.value).result

    def as_float(self) -> ir.Value:
        return arith.SIToFPOp(ir.F32Type.get(), self.value).result

    def __add__(self, other: Int | int) -> Int:
        return Int(arith.AddIOp(self.value, _value(other)).result)

    def __sub__(self, other: Int | int) -> Int:
        return Int(arith.SubIOp(self.value, _value(other)).result)

    def __mul__(self, other: Int | int) -> Int:
        return Int(arith.MulIOp(self.value, _value(other)).result)

    def __floordiv__(self, other: int) -> Int:
        return Int(arith.DivUIOp(self.value, _value(other)).result)

    def __mod__(self, other: int) -> Int:
        return Int(arith.RemUIOp(self.value, _value(other)).result)

    def __lshift__(self, other: Int | int) -> Int:
        return Int(arith.ShLIOp(self.value, _value(other)).result)

    def __rshift__(self, other: Int | int) -> Int:
        return Int(arith.ShRUIOp(self.value, _value(other)).result)

    def __and__(self, other: Int | int) -> Int:
        return Int(arith.AndIOp(self.value, _value(other)).result)

    def __or__(self, other: Int | int) -> Int:
        return Int(arith.OrIOp(self.value, _value(other)).result)

    def __xor__(self, other: Int | int) -> Int:
        return Int(arith.XOrIOp(self.value, _value(other)).result)

    def __lt__(self, other: Int | int) -> Condition:
        """Signed."""
        return Condition(arith.CmpIOp(arith.CmpIPredicate.slt, self.value, _value(other)).result)

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        assert isinstance(other, Int | int)
        return Condition(arith.CmpIOp(arith.CmpIPredicate.eq, self.value, _value(other)).result)

    def at_least(self, bound: int) -> Int:
        """Signed."""
        return Int(arith.MaxSIOp(self.value, _value(bound)).result)

    def at_most(self, bound: int) -> Int:
        """Signed."""
        return Int(arith.MinSIOp(self.value, _value(bound)).result)


@dataclass(frozen=True)
class Condition:
    """An i1."""

    value: ir.Value

    def select(self, yes: Int, no: Int) -> Int:
        return Int(arith.SelectOp(self.value, yes.value, no.value).result)


def _value(number: Int | int) -> ir.Value:
    return number.value if isinstance(number, Int) else Int.of(number).value
