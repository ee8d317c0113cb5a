"""`abq.polyphase`, `abq.pair_planes` and `abq.direct_conv` become one launch each."""

from __future__ import annotations

from math import prod
from typing import Any

from abqc.dialects import abq
from abqc.dialects.abq_conv import conv_spec, epilogue_inputs
from abqc.dialects.bf16_conv_spec import SLACK, Bf16ConvSpec
from abqc.dialects.code_conv_spec import CodeConvSpec
from abqc.dialects.conv_spec import LEAST_SHARE, WINOGRAD_EDGE, ConvSpec
from abqc.dialects.mlir import arith, ir

from ..infrastructure import constant_index
from ..kernels.launch import launch_one_of
from ..loops.epilogues import epilogue
from ..resolve_dims import index
from .index_value import IndexValue
from .rules import Lowering, ceil_div, product


def lower_polyphase(low: Lowering, op: ir.Operation) -> None:
    """An index of the grid has some rows of the phases of a channel."""
    kernel = low.unit.known_target.polyphase(_pair(op, "strides"), _pair(op, "phases"))
    channels = low.sizes(op.opview.x)[1]
    _lower_planes(low, op, kernel, channels, [], ir.F32Type.get())


def lower_pair_planes(low: Lowering, op: ir.Operation) -> None:
    """Likewise, of a pair of channels; flat ones are one row to the kernel."""
    view, phases = op.opview, _pair(op, "phases")
    kernel = low.unit.known_target.pair_planes(_pair(op, "strides"), phases)
    channels = abq.shape(view.x)[1] // ir.IntegerAttr(view.groups).value
    pairs = abq.shape(view.result)[1] // prod(phases)
    i32 = ir.IntegerType.get_signless(32)
    flat = bool(ir.IntegerAttr(view.flat).value)
    _lower_planes(low, op, kernel, index(pairs), [index(channels)], i32, flat=flat, slack=SLACK)


def _lower_planes(
    low: Lowering,
    op: ir.Operation,
    kernel: Any,  # that of codegen/strategy.py
    planes: ir.Value,
    channels: list[ir.Value],
    element: ir.Type,
    *,
    flat: bool = False,
    slack: int = 0,
) -> None:
    """`planes` of each sample are made, in all phases; `channels` is what the kernel is told."""
    view = op.opview
    assert kernel is not None, "direct-conv asks the target before"
    low.unit.kernels[kernel.name] = kernel
    batch, _, height, width = low.sizes(view.x)
    size = product([batch, index(abq.shape(view.result)[1]), view.rows, view.pitch])
    y = low.allocate(arith.AddIOp(size, index(slack)).result, element)
    image, rows, pitch = [height, width], view.rows, view.pitch
    if flat:
        image, rows, pitch = [index(1), product(image)], index(1), product(image)
    grid = product([batch, planes, ceil_div(rows, kernel.block[1])])
    sizes = [*channels, *image, rows, pitch, *map(index, _pair(op, "before"))]
    low.launch(kernel.name, grid, [low.buffer(view.x), y, *sizes])
    low.finish(op, y, low.sizes(view.result))


def _pair(op: ir.Operation, name: str) -> tuple[int, int]:
    first, second = ir.DenseI64ArrayAttr(op.attributes[name])
    return first, second


def lower_direct_conv(low: Lowering, op: ir.Operation) -> None:
    """The grid counts outputs of an image as its kernel does. Where sizes decide which kernel it
    is, and are not known, the host does."""
    view = op.opview
    spec = conv_spec(view)
    further, made = epilogue_inputs(view), epilogue(op)
    kernel = low.unit.known_target.direct_conv(spec, made)
    assert kernel is not None, "direct-conv asks the target before"
    batch, _, rows, pitch = low.sizes(view.planes)
    height, width = view.height, view.width
    if spec.window == spec.strides == (1, 1) and not spec.depthwise:
        # Outputs lie as planes do: one row, whose vectors are whole.
        height, width = index(1), product([height, width])
        rows, pitch = height, width
    channels = index(spec.groups * spec.outputs)
    reach = _reach(spec, height, width, pitch)
    plane = arith.MulIOp(rows, pitch).result
    buffers = [low.buffer(value) for value in (view.planes, view.w, view.bias, *further)]
    counts = [index(count) for count in (spec.groups, spec.outputs, _depth(spec))]
    y = low.allocate(product([batch, channels, height, width]), abq.element(op.results[0]))
    arguments = [*buffers, y, *counts, pitch, plane, height, width]
    outputs = product([batch, height, width])
    patches = low.unit.known_target.patch_conv(spec, made)
    launch_one_of(
        False if patches is None else patches_pay(spec, height, width, pitch),
        lambda: launch_patches(low, patches, arguments, batch, outputs, [outputs]),
        lambda: _launch(low, spec, kernel, arguments, batch, reach, outputs),
    )
    low.finish(op, y, low.sizes(view.result))


def _launch(
    low: Lowering,
    spec: ConvSpec,
    kernel: Any,  # that of codegen/strategy.py
    arguments: list[ir.Value],
    batch: ir.Value,
    reach: ir.Value,
    outputs: ir.Value,
) -> None:
    """`reach`: of an image; `outputs`: of a channel in all of them."""
    low.unit.kernels[kernel.name] = kernel
    blocks = index(-(-spec.blocks // kernel.block[2]))
    if not spec.winograd:
        grid = product([batch, ceil_div(reach, kernel.block[1]), blocks])
        low.launch(kernel.name, grid, [*arguments, outputs])
        return
    tiles = product([batch, reach])
    parts = [ceil_div(tiles, kernel.block[1]), blocks]
    parts = parts_for_threads(low.threads, parts, index(spec.blocks), tiles=tiles)
    low.launch(kernel.name, product(parts), [*arguments, batch, *parts, outputs])


def launch_patches(
    low: Lowering,
    kernel: Any,  # that of codegen/strategy.py
    arguments: list[ir.Value],
    batch: ir.Value,
    outputs: ir.Value,
    sizes: list[ir.Value],
) -> None:
    """By vectors of output channels; `sizes` are for profiles. Few outputs are shared out by
    channels, to no more than there are threads: all of them copy the patches."""
    low.unit.kernels[kernel.name] = kernel
    parts = [ceil_div(outputs, kernel.block[1]), index(1)]
    blocks = arith.MinUIOp(index(kernel.block[2]), low.threads).result
    parts = parts_for_threads(low.threads, parts, blocks, tiles=outputs)
    low.launch(kernel.name, product(parts), [*arguments, batch, *parts, *sizes])


def patches_pay(spec: ConvSpec | CodeConvSpec, *sizes: ir.Value) -> bool | ir.Value:
    """`patches_pay` of a spec, a value where a size is not known."""
    known = [constant_index(size) for size in sizes]
    if None in known:
        return spec.patches_pay(*map(IndexValue, sizes))
    return bool(spec.patches_pay(*known))


def parts_for_threads(
    threads: ir.Value, parts: list[ir.Value], blocks: ir.Value, *, tiles: ir.Value
) -> list[ir.Value]:
    """`parts` of all images' `tiles` and of the `blocks` of channels, or more of them, so that all
    threads have as many: rather of tiles, as parts of blocks transform the same inputs."""
    least, block_parts = parts
    few = arith.CmpIOp(arith.CmpIPredicate.ult, product(parts), threads).result
    block_parts = arith.SelectOp(few, blocks, block_parts).result
    rounds = arith.CeilDivUIOp(product([block_parts, least]), threads).result
    wanted = arith.CeilDivUIOp(product([rounds, threads]), block_parts).result
    wanted = arith.MinUIOp(wanted, ceil_div(tiles, LEAST_SHARE)).result
    return [arith.MaxUIOp(least, wanted).result, block_parts]


def _depth(spec: ConvSpec) -> int:
    """Planes of one phase that an output reads."""
    return spec.pairs if isinstance(spec, Bf16ConvSpec) else spec.channels


def _reach(spec: ConvSpec, height: ir.Value, width: ir.Value, pitch: ir.Value) -> ir.Value:
    """Tiles, rows, or outputs as the planes' pitch numbers them."""
    if spec.winograd:
        return product([ceil_div(height, WINOGRAD_EDGE), ceil_div(width, WINOGRAD_EDGE)])
    if spec.depthwise or spec.few_channels:
        return height
    above = arith.MulIOp(arith.SubIOp(height, index(1)).result, pitch).result
    return arith.AddIOp(above, width).result
