"""An index of the host with the operators of an int, for rules that numbers follow too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from abqc.dialects.mlir import arith, ir

from ..resolve_dims import index


@dataclass(frozen=True)
class IndexValue:
    """An index, which is not negative."""

    ir: ir.Value

    def __add__(self, other: IndexValue | int) -> IndexValue:
        return self._with(other, arith.AddIOp)

    def __sub__(self, other: IndexValue | int) -> IndexValue:
        return self._with(other, arith.SubIOp)

    def __mul__(self, other: IndexValue | int) -> IndexValue:
        return self._with(other, arith.MulIOp)

    def __floordiv__(self, other: IndexValue | int) -> IndexValue:
        return self._with(other, arith.DivUIOp)

    def __gt__(self, other: IndexValue | int) -> ir.Value:
        """An i1."""
        return arith.CmpIOp(arith.CmpIPredicate.ugt, self.ir, _value(other)).result

    def _with(self, other: IndexValue | int, op: Any) -> IndexValue:
        return IndexValue(op(self.ir, _value(other)).result)


def _value(other: IndexValue | int) -> ir.Value:
    return index(other) if isinstance(other, int) else other.ir
