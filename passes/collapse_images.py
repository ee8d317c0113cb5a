"""The rows of an image are one axis in loops that read numbers of its channels.

    y[b, c, h, w] = f(x[b, c, h, w], s[b, c])      y[b, c, i] = f(x[b, c, i], s[b, c])

A loop over a row of a small image does not fill vectors.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, tensor

from .infrastructure import Unit, defining_op, register, walk
from .loops.axis_blocks import clone_body, last_joined, parallel_loop, reads_last
from .loops.generics import (
    asks_for_indices,
    ignores_init,
    inputs,
    is_elementwise,
    loops_read,
    maps,
    rank,
)
from .resolve_dims import index, mixed_sizes

LONG = 64  # columns of rows that need no company


@register
def collapse_images(module: ir.Operation, unit: Unit) -> None:
    """Make the two innermost loops one where what is read has both last or neither."""
    for op in walk(module, "linalg.generic"):
        if is_elementwise(op) and ignores_init(op) and not asks_for_indices(op) and _pays(op):
            _collapse(op)


def _pays(op: ir.Operation) -> bool:
    loops, init = rank(op), defining_op(op.operands[len(op.operands) - 1])
    if loops < 3 or abq.shape(op.results[0])[-1] >= LONG:
        return False
    if init is None or init.name != "tensor.empty":
        return False
    last = {loops - 2, loops - 1}
    reads = maps(op)[:-1]
    if any(loops_read(map_.results) & last and not reads_last(map_, loops - 2) for map_ in reads):
        return False
    of_channels = [map_ for map_ in reads if not loops_read(map_.results) & last]
    return any(loops_read(map_.results) for map_ in of_channels)


def _collapse(op: ir.Operation) -> None:
    loops, result = rank(op), op.results[0]
    joins = [bool(loops_read(map_.results) & {loops - 1}) for map_ in maps(op)[:-1]]
    with ir.InsertionPoint(op), op.location:
        values = [
            last_joined(value) if join else value
            for value, join in zip(inputs(op), joins, strict=True)
        ]
        reads = [
            ir.AffineMap.get(loops - 1, 0, list(map_.results)[: -1 if join else None])
            for map_, join in zip(maps(op), joins, strict=False)
        ]
        sizes = mixed_sizes(op.operands[len(op.operands) - 1])
        *outer, height, width = sizes
        init = tensor.EmptyOp([*outer, _product(height, width)], abq.element(result)).result
        made = parallel_loop(values, reads, init, lambda elements: clone_body(op, elements))
        groups = [*([i] for i in range(loops - 2)), [loops - 2, loops - 1]]
        dynamic = [size for size in sizes if not isinstance(size, int)]
        shape = abq.shape(result)
        expanded = tensor.ExpandShapeOp(result.type, made, groups, dynamic, shape).result
    result.replace_all_uses_with(expanded)
    op.erase()


def _product(a: int | ir.Value, b: int | ir.Value) -> int | ir.Value:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    first, second = (index(each) if isinstance(each, int) else each for each in (a, b))
    return arith.MulIOp(first, second).result
