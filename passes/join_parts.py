"""Loops over the same elements whose results are put together become one loop.

    concat(x0 * cos - x1 * sin, x1 * cos + x0 * sin)       rotary embeddings, x0 and x1 halves of x

The axis of the result is n blocks of a part's size h, and block b is what part b computes,

    y[.., b, j] = select(b == 0, f0(x0[.., j], x1[.., j], ..), f1(x0[.., j], x1[.., j], ..))

which is one kernel where each part, and the copy of each into the result, were one.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg, tensor

from .infrastructure import Unit, defining_op, register, users, walk
from .loops.axis_blocks import clone_body, joined, parallel_loop, selected
from .loops.generics import dims, ignores_init, inputs, is_elementwise, maps
from .resolve_dims import mixed_sizes


@register
def join_parts(module: ir.Operation, unit: Unit) -> None:
    """Rewrite concatenations of loops that read the same as one loop."""
    for op in walk(module, "tensor.concat"):
        parts = _parts(op)
        if parts is None:
            continue
        with ir.InsertionPoint(op), op.location:
            op.results[0].replace_all_uses_with(_as_loop(op, parts))
        op.erase()


def _parts(op: ir.Operation) -> list[ir.Operation] | None:
    """The loops that make the operands, equal in shape; None where they are no such loops."""
    parts = [defining_op(value) for value in op.operands]
    first = op.operands[0]
    if len(parts) < 2 or any(value.type != first.type for value in op.operands):
        return None
    if abq.DYNAMIC in abq.shape(first)[ir.IntegerAttr(op.attributes["dim"]).value :]:
        return None
    loops = [part for part in parts if part is not None and is_elementwise(part)]
    if len(loops) < len(parts) or any(
        not ignores_init(loop) or len(list(users(loop.results[0]))) != 1 for loop in loops
    ):
        return None
    if any(dims(map_) is None for loop in loops for map_ in maps(loop)):
        return None
    if any(_reads(loop).keys() != _reads(loops[0]).keys() for loop in loops[1:]):
        return None
    return loops


def _reads(loop: ir.Operation) -> dict[tuple[ir.Value, str], ir.AffineMap]:
    """The tensors that a loop reads, each with its map, a list of loops and zeros."""
    read = zip(inputs(loop), maps(loop)[:-1], strict=True)
    return {(value, str(map_)): map_ for value, map_ in read}


def _as_loop(op: ir.Operation, parts: list[ir.Operation]) -> ir.Value:
    axis = ir.IntegerAttr(op.attributes["dim"]).value
    type_ = ir.RankedTensorType(op.results[0].type)
    part = mixed_sizes(parts[0].results[0])
    empty = tensor.EmptyOp([*part[:axis], len(parts), *part[axis:]], type_.element_type).result
    reads = _reads(parts[0])

    def index_of(d: int) -> ir.Value:
        return linalg.IndexOp(_moved(d, axis)).result

    def body(elements: list[ir.Value]) -> ir.Value:
        known = dict(zip(reads, elements, strict=True))
        values = []
        for loop in parts:
            read = zip(inputs(loop), maps(loop)[:-1], strict=True)
            arguments = [known[value, str(map_)] for value, map_ in read]
            values.append(clone_body(loop, arguments, index_of))
        return selected(axis, values)

    all_maps = [_in_block(map_, axis) for map_ in reads.values()]
    loop = parallel_loop([value for value, _ in reads], all_maps, empty, body)
    return joined(loop, axis, type_)


def _moved(loop: int, axis: int) -> int:
    """The number of a part's loop once that over the parts stands before `axis`."""
    return loop if loop < axis else loop + 1


def _in_block(map_: ir.AffineMap, axis: int) -> ir.AffineMap:
    results = [
        ir.AffineDimExpr.get(_moved(ir.AffineDimExpr(result).position, axis))
        if isinstance(result, ir.AffineDimExpr)
        else result
        for result in map_.results
    ]
    return ir.AffineMap.get(map_.n_dims + 1, 0, results)
