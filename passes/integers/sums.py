"""Sums of codes that are stored as bytes, and other reductions over loops of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.dialects import abq
from abqc.dialects.fixed_point import MAX_DIVIDED_SHIFT, FixedPoint, StaticCodes
from abqc.dialects.mlir import arith, cf, ir, linalg, tensor

from ..infrastructure import blame
from ..loops.generics import iterators, maps
from ..resolve_dims import dimension_or_query, index, mixed_sizes
from .loops import Bytes, centred, clamped, elementwise, i32, i64, integer, wide


def summed(x: Bytes, loop: ir.Operation) -> ir.Value:
    """The sums of code - zero, in i32, over the loops over which the linalg.generic `loop` adds."""
    init = loop.operands[len(loop.operands) - 1]
    zero = integer(0, i32())
    out = linalg.fill(zero, outs=[tensor.EmptyOp(mixed_sizes(init), i32()).result])
    return reduction(
        loop, [x.value], maps(loop), out,
        lambda e: arith.AddIOp(centred(e[0], x.codes), e[-1]).result,
    )  # fmt: skip


def check_terms(loop: ir.Operation, most: int) -> None:
    """Fail the run where a sum of `loop` has more than `most` terms."""
    total = index(1)
    kinds, reads = iterators(loop), maps(loop)[0]
    for axis, result in enumerate(reads.results):
        is_loop = isinstance(result, ir.AffineDimExpr)
        if is_loop and kinds[ir.AffineDimExpr(result).position] == "reduction":
            size = dimension_or_query(loop.operands[0], axis)
            total = arith.MulIOp(total, size).result
    few = arith.CmpIOp(arith.CmpIPredicate.ule, total, index(most)).result
    cf.AssertOp(few, f"{blame(loop)}: a mean of more than {most} codes exceeds 32 bits")


def divided(total: ir.Value, count: ir.Value, factor: FixedPoint, y: StaticCodes) -> ir.Value:
    """`fixed_point.divide` of a tensor of i32 by an integer that a run knows."""
    multiplier = integer(int(factor.multiplier[0]), i64())
    shift = int(factor.shift[0])
    if shift > MAX_DIVIDED_SHIFT:
        raise ValueError("the quotient is beyond 64 bits")
    count = arith.MaxSIOp(_extended(count), integer(1, i64())).result
    half = arith.ShLIOp(count, integer(shift - 1, i64())).result
    divisor = arith.ShLIOp(count, integer(shift, i64())).result

    def body(elements: list[ir.Value]) -> ir.Value:
        scaled = arith.MulIOp(wide(elements[0]), multiplier).result
        quotient = arith.FloorDivSIOp(arith.AddIOp(scaled, half).result, divisor).result
        return clamped(quotient, y.zero, (y.low, y.high))

    return elementwise(total, body)


def _extended(number: ir.Value) -> ir.Value:
    return number if number.type == i64() else arith.ExtSIOp(i64(), number).result


def reduction(
    loop: ir.Operation,
    operands: Sequence[ir.Value],
    maps: Sequence[ir.AffineMap],
    init: ir.Value,
    body: Callable[[list[ir.Value]], ir.Value],
) -> ir.Value:
    """A linalg.generic with the loops of `loop`; its first operands are other ones."""
    others = list(loop.operands)[len(operands) : len(loop.operands) - 1]
    generic = linalg.GenericOp(
        [init.type],
        [*operands, *others],
        [init],
        ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in maps]),
        loop.attributes["iterator_types"],
    )
    elements = [abq.element(value) for value in [*operands, *others, init]]
    block = generic.operation.regions[0].blocks.append(
        *elements, arg_locs=[ir.Location.current] * len(elements)
    )
    with ir.InsertionPoint(block):
        linalg.YieldOp([body(list(block.arguments))])
    return generic.operation.results[0]
