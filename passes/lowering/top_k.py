"""`abq.top_k` becomes one launch."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.element_types import text_of
from abqc.dialects.mlir import arith, ir

from .rules import Lowering, by_rows, covering, product, static_product


def lower_top_k(low: Lowering, op: ir.Operation) -> None:
    """x is outer x n x inner to the kernels, which are chosen by n; a block has a line."""
    view = op.opview
    axis = ir.IntegerAttr(view.axis).value
    element = abq.element(view.x)
    largest = bool(ir.IntegerAttr(view.largest).value)
    length = static_product([abq.shape(view.x)[axis]])
    variants = covering(
        low.unit, low.unit.device_target.top_k(text_of(element), largest=largest), length
    )
    sizes = low.sizes(view.x)
    outer, n, inner = product(sizes[:axis]), sizes[axis], product(sizes[axis + 1 :])
    results = [*sizes[:axis], view.k, *sizes[axis + 1 :]]
    count = product(results)
    values = low.allocate(count, element)
    indices = low.allocate(count, ir.IntegerType.get_signless(64))
    x, lines = low.buffer(view.x), arith.MulIOp(outer, inner).result

    def launch_variant(i: int) -> None:
        low.launch(variants[i].kernel.name, lines, [x, values, indices, n, view.k, inner])

    by_rows(n, len(variants), [v.max_rows or 0 for v in variants], launch_variant)
    low.finish(op, values, results, 0)
    low.finish(op, indices, results, 1)
