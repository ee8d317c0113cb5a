"""`abq.arg_extreme` becomes one launch."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from .rules import Lowering, by_rows, ceil_div, covering, product, static_product


def lower_arg_extreme(low: Lowering, op: ir.Operation) -> None:
    """The kernels are chosen by the length of a row."""
    x = op.opview.x
    largest = bool(ir.IntegerAttr(op.opview.largest).value)
    kernels = low.unit.known_target.arg_extreme(abq.element_text(x), largest=largest)
    variants = covering(low.unit, kernels, static_product(abq.shape(x)[-1:]))
    *lead, n = low.sizes(x)
    rows = product(lead)
    places = low.allocate(rows, ir.IntegerType.get_signless(64))
    source = low.buffer(x)

    def launch_variant(i: int) -> None:
        kernel = variants[i].kernel
        low.launch(kernel.name, ceil_div(rows, kernel.block[0]), [source, places, rows, n])

    by_rows(n, len(variants), [v.max_rows or 0 for v in variants], launch_variant)
    low.finish(op, places, lead)
