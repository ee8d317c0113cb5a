"""`abq.scatter` becomes a copy and a few launches (codegen/gpu/indexing/scatter.py).

The kernels update single elements: the axes of a slice become one, and each of its elements an
update.
"""

from __future__ import annotations

from typing import Any

from abqc.codegen.scatter import Replacing
from abqc.dialects import abq
from abqc.dialects.element_types import text_of
from abqc.dialects.mlir import arith, ir, linalg, memref, tensor

from ..resolve_dims import index
from .rules import Lowering, ceil_div, dynamic, product


def lower_scatter(low: Lowering, op: ir.Operation) -> None:
    """The places of the updates first; what they do to a copy of x depends on `combine`."""
    view = op.opview
    combine = ir.StringAttr(view.combine).value
    element = abq.element(view.x)
    sizes = low.sizes(view.x)
    elements, axes = _by_elements(low, view.indices, sizes)
    kernels = low.unit.device_target.scatter(
        len(axes), abq.element_text(view.indices), text_of(element), combine
    )
    total, count = product(sizes), product(low.sizes(elements)[:-1])
    y = low.allocate(total, element)
    memref.CopyOp(dynamic(low.buffer(view.x)), y)
    indices, updates = low.buffer(elements), low.buffer(view.updates)
    i32 = ir.IntegerType.get_signless(32)
    places = low.allocate(count, i32)

    def launch(kernel: Any, grid: ir.Value, arguments: list[ir.Value]) -> None:
        low.unit.kernels[kernel.name] = kernel
        low.launch(kernel.name, grid, arguments)

    def of_updates(kernel: Any, *arguments: ir.Value) -> None:
        launch(kernel, ceil_div(count, kernel.block[0]), [*arguments, count])

    if isinstance(kernels, Replacing):
        owners = low.allocate(total, i32)
        of_updates(kernels.places, indices, places, owners, *axes)
        of_updates(kernels.claim, places, owners)
        of_updates(kernels.replace, places, owners, updates, y)
    else:
        of_updates(kernels.places, indices, places, *axes)
        span = ceil_div(total, kernels.max_spans)
        span = arith.MaxUIOp(span, index(kernels.min_span)).result
        spans = arith.CeilDivUIOp(total, span).result
        grid = ceil_div(spans, kernels.combine.block[0])
        launch(kernels.combine, grid, [places, updates, y, count, total, span])
    low.finish(op, y, sizes)


def _by_elements(
    low: Lowering, indices: ir.Value, sizes: list[ir.Value]
) -> tuple[ir.Value, list[ir.Value]]:
    """The indices of single elements, and the axes that these place."""
    depth = abq.shape(indices)[1]
    if depth == len(sizes):
        return indices, sizes
    rows, length = low.sizes(indices)[0], product(sizes[depth:])
    integer = abq.element(indices)
    empty = tensor.EmptyOp([rows, length, depth + 1], integer).result
    generic = linalg.GenericOp(
        [empty.type],
        [],
        [empty],
        ir.ArrayAttr.get([ir.AffineMapAttr.get(ir.AffineMap.get_identity(3))]),
        linalg.iterator_types(["parallel"] * 3),
    )
    block = generic.operation.regions[0].blocks.append(integer, arg_locs=[generic.location])
    with ir.InsertionPoint(block):
        update, element, axis = (linalg.IndexOp(i).result for i in range(3))
        value = arith.IndexCastOp(integer, element).result
        if depth:
            within = arith.MinUIOp(axis, index(depth - 1)).result
            given = tensor.ExtractOp(indices, [update, within]).result
            last = arith.CmpIOp(arith.CmpIPredicate.eq, axis, index(depth)).result
            value = arith.SelectOp(last, value, given).result
        linalg.YieldOp([value])
    return generic.operation.results[0], [*sizes[:depth], length]
