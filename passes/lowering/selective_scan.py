"""`abq.selective_scan` becomes one launch."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.abq_recurrent import SCANNED
from abqc.dialects.mlir import arith, ir
from abqc.dialects.scan_spec import ScanSpec

from .rules import Lowering, ceil_div, product


def lower_selective_scan(low: Lowering, op: ir.Operation) -> None:
    """Operands that are absent are no arguments of the kernel."""
    view = op.opview
    batch, steps, channels = low.sizes(view.x)
    states = abq.shape(view.a)[1]
    softplus = bool(ir.IntegerAttr(view.softplus).value)
    spec = ScanSpec(states, softplus, view.initial is not None, view.x_scale is not None)
    kernel = low.unit.known_target.selective_scan(spec)
    low.unit.kernels[kernel.name] = kernel
    operands = [view.x, view.delta, view.a, view.b, view.c, view.initial]
    for name in SCANNED:
        operands += [getattr(view, f"{name}_scale"), getattr(view, f"{name}_zero")]
    arguments = [low.buffer(value) for value in operands if value is not None]
    f32 = ir.F32Type.get()
    sizes = low.sizes(view.a)
    y = low.allocate(product([batch, steps, channels]), f32)
    state = low.allocate(product([batch, *sizes]), f32)
    grid = arith.MulIOp(batch, ceil_div(channels, kernel.block[0])).result
    low.launch(kernel.name, grid, [*arguments, y, state, steps, channels])
    low.finish(op, y, [batch, steps, channels], 0)
    low.finish(op, state, [batch, *sizes], 1)
