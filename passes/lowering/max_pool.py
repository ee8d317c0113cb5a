"""`abq.max_pool` becomes one launch."""

from __future__ import annotations

from abqc.dialects.abq_conv import pool_spec
from abqc.dialects.mlir import ir

from ..resolve_dims import index
from .rules import Lowering, ceil_div, product


def lower_max_pool(low: Lowering, op: ir.Operation) -> None:
    """An index of the grid has some rows of an image."""
    view = op.opview
    kernel = low.unit.known_target.max_pool(pool_spec(view))
    assert kernel is not None, "convert-max-pool asks the target before"
    low.unit.kernels[kernel.name] = kernel
    batch, channels, height, width = low.sizes(view.x)
    images, (rows, columns) = product([batch, channels]), (view.height, view.width)
    before = map(index, ir.DenseI64ArrayAttr(op.attributes["before"]))
    y = low.allocate(product([images, rows, columns]), ir.F32Type.get())
    grid = product([images, ceil_div(rows, kernel.block[1])])
    arguments = [low.buffer(view.x), y, height, width, rows, columns, *before]
    low.launch(kernel.name, grid, arguments)
    low.finish(op, y, [batch, channels, rows, columns])
