"""`abq.polyphase` and `abq.direct_conv` become one launch each."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.abq_conv import conv_spec, epilogue_inputs
from abqc.dialects.conv_spec import WINOGRAD_EDGE, ConvSpec
from abqc.dialects.mlir import arith, ir

from ..loops.epilogues import epilogue
from ..resolve_dims import index
from .rules import Lowering, ceil_div, product


def lower_polyphase(low: Lowering, op: ir.Operation) -> None:
    """An index of the grid has some rows of the phases of a channel."""
    view = op.opview
    strides, phases, before = (
        tuple(ir.DenseI64ArrayAttr(op.attributes[name])) for name in ("strides", "phases", "before")
    )
    kernel = low.unit.known_target.polyphase(strides, phases)
    assert kernel is not None, "direct-conv asks the target before"
    low.unit.kernels[kernel.name] = kernel
    batch, channels, height, width = low.sizes(view.x)
    y = low.allocate(
        product([batch, index(abq.shape(view.result)[1]), view.rows, view.pitch]), ir.F32Type.get()
    )
    grid = product([batch, channels, ceil_div(view.rows, kernel.block[1])])
    sizes = [height, width, view.rows, view.pitch, *map(index, before)]
    low.launch(kernel.name, grid, [low.buffer(view.x), y, *sizes])
    low.finish(op, y, low.sizes(view.result))


def lower_direct_conv(low: Lowering, op: ir.Operation) -> None:
    """The grid counts outputs of an image as its kernel does."""
    view = op.opview
    spec = conv_spec(view)
    further, made = epilogue_inputs(view), epilogue(op)
    kernel = low.unit.known_target.direct_conv(spec, made)
    assert kernel is not None, "direct-conv asks the target before"
    low.unit.kernels[kernel.name] = kernel
    batch, _, rows, pitch = low.sizes(view.planes)
    height, width = view.height, view.width
    channels = index(spec.groups * spec.outputs)
    reach = _reach(spec, height, width, pitch)
    plane = arith.MulIOp(rows, pitch).result
    arguments = [low.buffer(value) for value in (view.planes, view.w, view.bias, *further)]
    counts = [index(count) for count in (spec.groups, spec.outputs, spec.channels)]
    y = low.allocate(product([batch, channels, height, width]), ir.F32Type.get())
    blocks = -(-spec.blocks // kernel.block[2])
    grid = product([batch, ceil_div(reach, kernel.block[1]), index(blocks)])
    numbers = [*counts, pitch, plane, height, width, product([batch, height, width])]
    low.launch(kernel.name, grid, [*arguments, y, *numbers])
    low.finish(op, y, low.sizes(view.result))


def _reach(spec: ConvSpec, height: ir.Value, width: ir.Value, pitch: ir.Value) -> ir.Value:
    """Tiles, rows, or outputs as the planes' pitch numbers them."""
    if spec.winograd:
        return product([ceil_div(height, WINOGRAD_EDGE), ceil_div(width, WINOGRAD_EDGE)])
    if spec.depthwise:
        return height
    above = arith.MulIOp(arith.SubIOp(height, index(1)).result, pitch).result
    return arith.AddIOp(above, width).result
