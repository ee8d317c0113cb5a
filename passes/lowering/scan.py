"""`abq.scan` becomes one launch."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.element_types import text_of
from abqc.dialects.mlir import arith, ir

from .rules import Lowering, by_rows, ceil_div, covering, product, static_product


def lower_scan(low: Lowering, op: ir.Operation) -> None:
    """x is outer x n x inner to the kernels, which are chosen by `inner`."""
    x = op.opview.x
    axis = ir.IntegerAttr(op.opview.axis).value
    element = abq.element(x)
    neighbours = static_product(abq.shape(x)[axis + 1 :])
    variants = covering(low.unit, low.unit.device_target.scan(text_of(element)), neighbours)
    sizes = low.sizes(x)
    outer, inner = product(sizes[:axis]), product(sizes[axis + 1 :])
    y = low.allocate(product(sizes), element)
    source = low.buffer(x)

    def launch_variant(i: int) -> None:
        kernel = variants[i].kernel
        grid = arith.MulIOp(outer, ceil_div(inner, kernel.block[0])).result
        low.launch(kernel.name, grid, [source, y, sizes[axis], inner])

    by_rows(inner, len(variants), [v.max_rows or 0 for v in variants], launch_variant)
    low.finish(op, y, sizes)
