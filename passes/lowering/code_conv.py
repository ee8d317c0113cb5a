"""`abq.pack_planes` and `abq.code_conv` become one launch each."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.abq_conv import epilogue_inputs
from abqc.dialects.code_conv_spec import HEADER, QUAD, SLACK
from abqc.dialects.mlir import arith, ir

from ..infrastructure import defining_op
from ..kernels.launch import launch_one_of
from ..loops.epilogues import epilogue
from ..resolve_dims import dimension_or_query, index
from .direct_conv import launch_patches, patches_pay
from .rules import Lowering, ceil_div, product


def lower_pack_planes(low: Lowering, op: ir.Operation) -> None:
    view = op.opview
    kernel = low.unit.kernels[ir.StringAttr(view.kernel).value]
    gate = [] if view.gate is None else [view.gate]
    if gate:
        kernel = kernel.gated
        low.unit.kernels[kernel.name] = kernel
    channels, phases, top, left = (
        ir.IntegerAttr(attribute).value
        for attribute in (view.channels, view.phases, view.top, view.left)
    )
    batch, samples = dimension_or_query(view.x, 0), dimension_or_query(view.x_scale, 0)
    shared = arith.CeilDivUIOp(batch, arith.MaxUIOp(samples, index(1)).result).result
    blocks = -(-channels // QUAD)
    quads = product([index(blocks * phases), view.rows, view.pitch])
    sample = arith.AddIOp(arith.MulIOp(quads, index(QUAD)).result, index(HEADER)).result
    size = arith.AddIOp(arith.MulIOp(batch, sample).result, index(SLACK)).result
    planes = low.allocate(size, ir.IntegerType.get_signless(8))
    grid = product([batch, index(blocks), ceil_div(view.rows, kernel.block[2])])
    sources = [low.buffer(value) for value in (view.x, *gate, view.x_scale, view.x_zero)]
    sizes = [view.height, view.width, view.rows, view.pitch, index(top), index(left)]
    low.launch(kernel.name, grid, [*sources, planes, shared, index(channels), *sizes])
    low.buffers[op.results[0]] = planes


def lower_code_conv(low: Lowering, op: ir.Operation) -> None:
    """Outputs are numbered by the planes' pitch, as the kernel does."""
    view = op.opview
    kernel = low.unit.kernels[ir.StringAttr(view.kernel).value]
    packing = defining_op(view.planes)
    assert packing is not None
    batch, (height, width) = dimension_or_query(packing.operands[0], 0), (view.height, view.width)
    n = abq.shape(op.results[0])[1]
    above = arith.MulIOp(arith.SubIOp(height, index(1)).result, view.pitch).result
    reach = arith.AddIOp(above, width).result
    further, made = epilogue_inputs(view), epilogue(op)
    if made is not None:
        kernel = kernel.with_epilogue(made)
    buffers = [low.buffer(value) for value in (view.planes, view.w, view.bias, *further)]
    m = product([batch, height, width])
    y = low.allocate(arith.MulIOp(m, index(n)).result, abq.element(op.results[0]))
    arguments = [*buffers, y, view.rows, view.pitch, height, width]

    def launch() -> None:
        low.unit.kernels[kernel.name] = kernel
        grid = [
            ceil_div(size, b) for size, b in zip((reach, index(n)), kernel.block[1:], strict=True)
        ]
        low.launch(kernel.name, product([batch, *grid]), [*arguments, m, index(n)])

    launch_one_of(
        False if kernel.patches is None else patches_pay(kernel.spec, height, width, view.pitch),
        lambda: launch_patches(low, kernel.patches, arguments, batch, m, [m, index(n)]),
        launch,
    )
    spatial = [height, width][-(len(abq.shape(op.results[0])) - 2) :]
    low.finish(op, y, [batch, index(n), *spatial])
