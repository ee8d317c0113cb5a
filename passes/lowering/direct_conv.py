"""`abq.direct_conv` becomes one launch."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir

from ..resolve_dims import index
from .rules import Lowering, ceil_div, product


def lower_direct_conv(low: Lowering, op: ir.Operation) -> None:
    """Outputs are numbered by the planes' pitch, as the kernel does."""
    view = op.opview
    kernel = low.unit.kernels[ir.StringAttr(view.kernel).value]
    batch, _, rows, pitch = low.sizes(view.planes)
    height, width = view.height, view.width
    groups = ir.IntegerAttr(view.groups).value
    n, phases = abq.shape(op.results[0])[1], ir.IntegerAttr(view.phases).value
    channels = index(n)
    above = arith.MulIOp(arith.SubIOp(height, index(1)).result, pitch).result
    outputs = ceil_div(arith.AddIOp(above, width).result, kernel.block[1])
    blocks = index(ir.IntegerAttr(view.blocks).value)
    plane = arith.MulIOp(rows, pitch).result
    arguments = [low.buffer(value) for value in (view.planes, view.w, view.bias)]
    of_group = (groups, n // groups, abq.shape(view.planes)[1] // (phases * groups))
    counts = [index(count) for count in of_group]
    y = low.allocate(product([batch, channels, height, width]), ir.F32Type.get())
    grid = product([batch, outputs, blocks])
    low.launch(kernel.name, grid, [*arguments, y, *counts, pitch, plane, height, width])
    low.finish(op, y, [batch, channels, height, width])
