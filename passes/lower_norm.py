"""`abq.norm` and `abq.softmax` become one launch each."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir

from .lowering import Lowering, ceil_div, product


def lower_norm(low: Lowering, op: ir.Operation) -> None:
    """Operands that are absent, and a sum that nobody reads, are no arguments of the kernel."""
    view = op.opview
    keeps_sum = any(True for _ in view.sum.uses)
    kernel = low.unit.target.norm(
        ir.StringAttr(view.kind).value,
        abq.shape(view.x)[-1],
        weight=view.weight is not None,
        bias=view.bias is not None,
        residual=view.residual is not None,
        keeps_sum=keeps_sum,
    )
    low.unit.kernels[kernel.name] = kernel
    sizes = low.sizes(view.x)
    operands = [view.x, view.residual, view.weight, view.bias]
    arguments = [low.buffer(value) for value in operands if value is not None]
    results = [low.allocate(product(sizes), ir.F32Type.get()) for _ in range(1 + keeps_sum)]
    rows = product(sizes[:-1])
    epsilon = arith.ConstantOp(ir.F32Type.get(), op.attributes["epsilon"]).result
    grid = ceil_div(rows, kernel.block[0])
    low.launch(kernel.name, grid, [*arguments, *results, rows, epsilon])
    for i, buffer in enumerate(results):
        low.finish(op, buffer, sizes, i)


def lower_softmax(low: Lowering, op: ir.Operation) -> None:
    """A block a row."""
    x = op.opview.x
    kernel = low.unit.target.softmax()
    low.unit.kernels[kernel.name] = kernel
    sizes = low.sizes(x)
    y = low.allocate(product(sizes), ir.F32Type.get())
    low.launch(kernel.name, product(sizes[:-1]), [low.buffer(x), y, sizes[-1]])
    low.finish(op, y, sizes)
