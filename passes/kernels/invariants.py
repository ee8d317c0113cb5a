"""Sizes inside of a loop that every iteration agrees on, computed before it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, memref

from ..infrastructure import constant_index, defining_op
from ..resolve_dims import index


class Invariants:
    """Values of the body of an scf.for that do not change, as long as the buffers that it carries
    keep the shape that they begin with."""

    def __init__(self, loop: ir.Operation) -> None:
        self.loop = loop
        self.block = loop.regions[0].blocks[0]
        self._known: dict[ir.Value, ir.Value | None] = {}

    def outside(self, value: ir.Value) -> ir.Value | None:
        """The value as one that is there before the loop; None if it may change."""
        if value not in self._known:
            self._known[value] = self._outside(value)
        return self._known[value]

    def size(self, buffer: ir.Value, axis: int) -> ir.Value | None:
        """The size of an axis of a buffer, before the loop; None if it may change."""
        type_ = ir.MemRefType(buffer.type)
        if type_.shape[axis] != abq.DYNAMIC:
            return self.made(lambda: index(type_.shape[axis]))
        initial = self.initial(buffer)
        if initial is not None or not self._is_inside(buffer):
            source = buffer if initial is None else initial
            return self.made(lambda: memref.DimOp(source, index(axis)).result)
        owner = defining_op(buffer)
        if owner is None:
            return None
        dynamic = [a for a, size in enumerate(type_.shape) if size == abq.DYNAMIC].index(axis)
        match owner.name:
            case "memref.alloc":
                return self.outside(owner.operands[dynamic])
            case "memref.cast":
                return self.size(owner.operands[0], axis)
            case "memref.expand_shape":
                return self.outside(owner.operands[1 + dynamic])
            case "memref.subview":
                first = 1 + ir.DenseI32ArrayAttr(owner.attributes["operandSegmentSizes"])[1]
                return self.outside(owner.operands[first + dynamic])
            case "memref.collapse_shape":
                return self._collapsed(owner, axis)
        return None

    def elements(self, buffer: ir.Value) -> ir.Value | None:
        """How many elements a buffer has."""
        sizes = [self.size(buffer, a) for a in range(ir.MemRefType(buffer.type).rank)]
        known = [size for size in sizes if size is not None]
        return self.product(known) if len(known) == len(sizes) else None

    def product(self, factors: list[ir.Value]) -> ir.Value:
        """The product of numbers that are known before the loop."""
        fixed = [constant_index(factor) for factor in factors]
        total = self.made(lambda: index(prod(number for number in fixed if number is not None)))
        for factor, number in zip(factors, fixed, strict=True):
            if number is None:
                total = self.made(partial(_result, arith.MulIOp, total, factor))
        return total

    def sum(self, terms: list[ir.Value]) -> ir.Value:
        """The sum of numbers that are known before the loop."""
        total = self.made(lambda: index(0))
        for term in terms:
            total = self.made(partial(_result, arith.AddIOp, total, term))
        return total

    def number(self, value: int) -> ir.Value:
        return self.made(lambda: index(value))

    def at_least(self, value: ir.Value, least: int) -> ir.Value:
        """The larger one of a number that is known before the loop and `least`."""
        return self.made(lambda: arith.MaxUIOp(value, index(least)).result)

    def made(self, make: Callable[[], ir.Value]) -> ir.Value:
        """What `make` makes, before the loop."""
        with ir.InsertionPoint(self.loop), self.loop.location:
            return make()

    def initial(self, value: ir.Value) -> ir.Value | None:
        """What an argument of the loop's block begins with; None for the number of the iteration,
        and other values."""
        arguments = list(self.block.arguments)
        if value not in arguments[1:]:
            return None
        return self.loop.operands[3 + arguments.index(value) - 1]

    def _outside(self, value: ir.Value) -> ir.Value | None:
        if not self._is_inside(value):
            return value
        owner = defining_op(value)
        if owner is None:
            return None
        if owner.name == "memref.dim":
            axis = constant_index(owner.operands[1])
            return None if axis is None else self.size(owner.operands[0], axis)
        if not owner.name.startswith("arith."):
            return None
        operands = [self.outside(operand) for operand in owner.operands]
        if any(operand is None for operand in operands):
            return None
        clone = owner.clone(ir.InsertionPoint(self.loop))
        for i, operand in enumerate(operands):
            clone.operands[i] = operand
        return clone.results[list(owner.results).index(value)]

    def _collapsed(self, op: ir.Operation, axis: int) -> ir.Value | None:
        group = ir.ArrayAttr(ir.ArrayAttr(op.attributes["reassociation"])[axis])
        sizes = [self.size(op.operands[0], ir.IntegerAttr(of).value) for of in group]
        known = [size for size in sizes if size is not None]
        return self.product(known) if len(known) == len(sizes) else None

    def _is_inside(self, value: ir.Value) -> bool:
        owner = value.owner
        block = owner if isinstance(owner, ir.Block) else owner.operation.block
        while block != self.block:
            parent = block.owner.operation
            if parent.name == "func.func":
                return False
            block = parent.block
        return True


def _result(operation: Callable[..., Any], x: ir.Value, y: ir.Value) -> ir.Value:
    result: ir.Value = operation(x, y).result
    return result
