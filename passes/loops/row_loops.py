"""Loops over the rows of a tensor (its last axis): what normalizations are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, linalg, tensor

from ..resolve_dims import mixed_sizes
from .axis_blocks import parallel_loop

Body = Callable[[list[ir.Value]], ir.Value]


def constant(number: float) -> ir.Value:
    f32 = ir.F32Type.get()
    return arith.ConstantOp(f32, ir.FloatAttr.get(f32, number)).result


def widened(value: ir.Value) -> ir.Value:
    """A float of 16 bits as f32; others as they are."""
    if isinstance(value.type, (ir.F16Type, ir.BF16Type)):
        return arith.ExtFOp(ir.F32Type.get(), value).result
    return value


def over_rows(
    wide: Sequence[ir.Value],
    body: Body,
    *,
    rows: Sequence[ir.Value] = (),
    columns: Sequence[ir.Value] = (),
) -> ir.Value:
    """An elementwise loop over tensors of one shape, `wide`, then those with an element for each
    of their `rows` (one axis less), then those with an element for each of their `columns`."""
    like = wide[0]
    rank = len(abq.shape(like))
    every = [ir.AffineDimExpr.get(i) for i in range(rank)]
    reads = [
        *[ir.AffineMap.get(rank, 0, every)] * len(wide),
        *[ir.AffineMap.get(rank, 0, every[:-1])] * len(rows),
        *[ir.AffineMap.get(rank, 0, every[-1:])] * len(columns),
    ]
    empty = tensor.EmptyOp(mixed_sizes(like), abq.element(like)).result
    return parallel_loop([*wide, *rows, *columns], reads, empty, body)


def reduce_rows(x: ir.Value, initial: float, body: Callable[..., ir.Value]) -> ir.Value:
    """One element for each row: `body(element, accumulator)` from `initial` on."""
    sizes = mixed_sizes(x)
    rank = len(sizes)
    every = [ir.AffineDimExpr.get(i) for i in range(rank)]
    empty = tensor.EmptyOp(sizes[:-1], abq.element(x)).result
    init = linalg.fill(constant(initial), outs=[empty])
    maps = [ir.AffineMap.get(rank, 0, every), ir.AffineMap.get(rank, 0, every[:-1])]
    kinds = ["parallel"] * (rank - 1) + ["reduction"]
    generic = linalg.GenericOp(
        [init.type],
        [x],
        [init],
        ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in maps]),
        linalg.iterator_types(kinds),
    )
    element = abq.element(x)
    block = generic.operation.regions[0].blocks.append(
        element, element, arg_locs=[ir.Location.current] * 2
    )
    with ir.InsertionPoint(block):
        linalg.YieldOp([body(*block.arguments)])
    return generic.operation.results[0]
