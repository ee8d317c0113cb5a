"""`abq.scatter` becomes a copy and a few launches (codegen/gpu/scatter.py)."""

from __future__ import annotations

from typing import Any

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, memref

from .lowering import Lowering, ceil_div, dynamic, product
from .resolve_dims import index


def lower_scatter(low: Lowering, op: ir.Operation) -> None:
    """The places of the updates first; what they do to a copy of x depends on `combine`."""
    view = op.opview
    combine = ir.StringAttr(view.combine).value
    element = abq.element(view.x)
    sizes = low.sizes(view.x)
    kernels = low.unit.target.scatter(
        len(sizes), str(abq.element(view.indices)), str(element), combine
    )
    total, (count, _) = product(sizes), low.sizes(view.indices)
    y = low.allocate(total, element)
    memref.CopyOp(dynamic(low.buffer(view.x)), y)
    indices, updates = low.buffer(view.indices), low.buffer(view.updates)
    i32 = ir.IntegerType.get_signless(32)
    places = low.allocate(count, i32)

    def launch(kernel: Any, grid: ir.Value, arguments: list[ir.Value]) -> None:
        low.unit.kernels[kernel.name] = kernel
        low.launch(kernel.name, grid, arguments)

    def of_updates(kernel: Any, *arguments: ir.Value) -> None:
        launch(kernel, ceil_div(count, kernel.block[0]), [*arguments, count])

    if combine == "replace":
        owners = low.allocate(total, i32)
        of_updates(kernels.places, indices, places, owners, *sizes)
        of_updates(kernels.claim, places, owners)
        of_updates(kernels.replace, places, owners, updates, y)
    else:
        of_updates(kernels.places, indices, places, *sizes)
        span = ceil_div(total, kernels.max_spans)
        span = arith.MaxUIOp(span, index(kernels.min_span)).result
        spans = arith.CeilDivUIOp(total, span).result
        grid = ceil_div(spans, kernels.combine.block[0])
        launch(kernels.combine, grid, [places, updates, y, count, total, span])
    low.finish(op, y, sizes)
