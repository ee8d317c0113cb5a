"""Loops that read along one axis of memory and write along another, cut into square tiles.

Row by row, such a loop would touch a cache line for every element that it reads, and come back for
the next element when the line is long gone. A tile of TILE x TILE uses whole lines on both sides;
where the loop only moves elements, a tile is turned in registers.
"""

from __future__ import annotations

from collections.abc import Callable

from abqc.dialects.mlir import arith, ir, scf, vector

from ..resolve_dims import index
from .loop_nest import TILE, Nest

Point = Callable[[ir.Value, ir.Value], None]


def emit_tiles(
    nest: Nest,
    inside: dict[ir.Value, ir.Value],
    bounds: list[tuple[ir.Value, ir.Value]],
    indices: Callable[[ir.AffineMap, ir.Value, ir.Value], list[ir.Value]],
    point: Point,
) -> None:
    """The tiles of `bounds`, begin and end of the loop that reads in order and of the one that
    writes in order. `point(i, j)` emits one iteration, `indices(map, i, j)` those of an operand."""
    (i_begin, i_end), (j_begin, j_end) = bounds
    moves = moves_elements(nest)
    rows = scf.ForOp(i_begin, i_end, index(TILE))
    with ir.InsertionPoint(rows.body):
        columns = scf.ForOp(j_begin, j_end, index(TILE))
        i = rows.induction_variable
        with ir.InsertionPoint(columns.body):
            j = columns.induction_variable
            if not moves:
                _points(i, i_end, j, j_end, point)
            else:
                whole = arith.AndIOp(_fits(i, i_end), _fits(j, j_end)).result
                choice = scf.IfOp(whole, has_else=True)
                with ir.InsertionPoint(choice.then_block):
                    _turn(nest, inside, lambda map_, a, b: indices(map_, add(i, a), add(j, b)))
                    scf.YieldOp([])
                with ir.InsertionPoint(choice.else_block):
                    _points(i, i_end, j, j_end, point)
                    scf.YieldOp([])
            scf.YieldOp([])
        scf.YieldOp([])


def moves_elements(nest: Nest) -> bool:
    """Whether an iteration writes what it reads, with elements that vectors can have, at indices
    that are loops alone and next to each other in both buffers."""
    if len(nest.operands) != 2:
        return False
    body = list(nest.op.regions[0].blocks[0].operations)
    if len(body) != 1 or body[0].operation.operands[0] != nest.arguments[0]:
        return False
    plain = all(isinstance(expr, ir.AffineDimExpr) for map_ in nest.maps for expr in map_.results)
    return plain and all(_is_row_major(ir.MemRefType(o.type)) for o in nest.operands)


def _is_row_major(type_: ir.MemRefType) -> bool:
    element = type_.element_type
    known = isinstance(element, ir.FloatType) or (
        isinstance(element, ir.IntegerType) and element.width in (8, 16, 32, 64)
    )
    return known and type_.get_strides_and_offset()[0][-1] == 1


def _fits(begin: ir.Value, end: ir.Value) -> ir.Value:
    return arith.CmpIOp(arith.CmpIPredicate.ule, add(begin, TILE), end).result


def add(value: ir.Value, constant: int) -> ir.Value:
    return arith.AddIOp(value, index(constant)).result if constant else value


def _points(i: ir.Value, i_end: ir.Value, j: ir.Value, j_end: ir.Value, point: Point) -> None:
    rows = scf.ForOp(i, arith.MinUIOp(add(i, TILE), i_end).result, index(1))
    with ir.InsertionPoint(rows.body):
        columns = scf.ForOp(j, arith.MinUIOp(add(j, TILE), j_end).result, index(1))
        with ir.InsertionPoint(columns.body):
            point(rows.induction_variable, columns.induction_variable)
            scf.YieldOp([])
        scf.YieldOp([])


def _turn(
    nest: Nest,
    inside: dict[ir.Value, ir.Value],
    indices: Callable[[ir.AffineMap, int, int], list[ir.Value]],
) -> None:
    """A whole tile through registers: TILE rows along the first loop, turned, TILE rows along the
    second. Blocks of 1, 2, 4, ... are exchanged across the diagonal."""
    source, target = (inside[operand] for operand in nest.operands)
    type_ = ir.VectorType.get([TILE], ir.MemRefType(source.type).element_type)
    rows = [vector.LoadOp(type_, source, indices(nest.maps[0], 0, j)).result for j in range(TILE)]
    block = 1
    while block < TILE:
        for a in range(TILE):
            if a & block:
                continue
            upper, lower = rows[a], rows[a | block]
            for row, first in ((a, 0), (a | block, block)):
                lanes = [(k & ~block) + first + (TILE if k & block else 0) for k in range(TILE)]
                rows[row] = vector.ShuffleOp(upper, lower, lanes).result
        block *= 2
    for i, row in enumerate(rows):
        vector.StoreOp(row, target, indices(nest.maps[1], i, 0))
