"""Convolutions of codes read planes of codes where the target has kernels for that.

    x [B, C, ..] --abq.pack_planes--> bytes of planes --abq.code_conv--> [B, N, ..]

An image is quantized once, not once for each place of the window, and nothing is transposed. The
results are those of products with patches, to the bit. What the target leaves to `decompose-conv`
gets the reason as an attribute, which `abqc inspect` shows.
"""

from __future__ import annotations

from math import prod
from typing import Any

from abqc.dialects import abq
from abqc.dialects.abq_conv import CodeConvOp, PackPlanesOp
from abqc.dialects.code_conv_spec import CodeConvSpec
from abqc.dialects.mlir import arith, ir

from .decompose_conv import PATCHES, Conv
from .infrastructure import Unit, register, walk
from .loops.constant_values import weight, zeros_symbol
from .pack_layouts import pack_weight, spec_of, weight_bytes, weight_symbol
from .resolve_dims import dimension_or_query, index

FEW_OUTPUTS = 16  # do not fill a vector;
LEAST_OUTPUTS = 4  # fewer, where vectors are of channels, do not hide the latency of products


@register
def direct_code_conv(module: ir.Operation, unit: Unit) -> None:
    """Rewrite abq.conv of codes as planes and abq.code_conv."""
    if unit.target is None:
        return
    convs = [op for op in walk(module, "abq.conv") if _has_codes(op)]
    products = [*walk(module, "abq.matmul"), *convs]
    working_set = sum(weight_bytes(spec_of(op)) for op in products)
    for op in convs:
        spec = _spec(op)
        node = ir.StringAttr(op.opview.node).value
        found = unit.target.code_conv(spec, node=node, working_set=working_set)
        if found is None:
            continue
        reason = found if isinstance(found, str) else _refused_sizes(op, spec)
        if reason is not None:
            op.attributes[PATCHES] = ir.StringAttr.get(reason)
            continue
        with ir.InsertionPoint(op), op.location:
            op.results[0].replace_all_uses_with(_planned(op, spec, found, unit))
        op.erase()


def _has_codes(op: ir.Operation) -> bool:
    """Whether it is one of codes, in one group: others are loops."""
    view = op.opview
    formats = [abq.code_format(value) for value in (view.x, view.w)]
    return None not in formats and ir.IntegerAttr(view.groups).value == 1


def _refused_sizes(op: ir.Operation, spec: CodeConvSpec) -> str | None:
    """Why kernels over planes do not take its sizes."""
    outputs = abq.shape(op.opview.result)[2:]
    if len(outputs) > 2:
        return "planes have two axes"
    least = LEAST_OUTPUTS if spec.may_take_patches else FEW_OUTPUTS
    if abq.DYNAMIC not in outputs and prod(outputs) < least:
        return f"vectors take {least} outputs of a channel"
    return None


def _spec(op: ir.Operation) -> CodeConvSpec:
    _, _, *window = abq.shape(op.opview.w)
    steps, pads = (
        [list(ir.DenseI64ArrayAttr(op.attributes[name])) for name in names]
        for names in (("strides", "dilations"), ("pads",))
    )
    taps = prod(window[:-1]), window[-1]  # those of more axes are refused by their sizes
    strides, dilations = ([1, *pair][-2:] for pair in steps)
    return CodeConvSpec(spec_of(op), taps, tuple(strides), tuple(dilations), any(pads[0]))


def _planned(op: ir.Operation, spec: CodeConvSpec, strategy: Any, unit: Unit) -> ir.Value:
    conv, view = Conv.of(op), op.opview
    outputs = [index(1), *conv.output_sizes()][-2:]
    image = [dimension_or_query(conv.x, 2 + i) for i in range(conv.spatial)]
    height, width = [index(1), *image][-2:]
    top, left, below, behind = conv.pads if conv.spatial == 2 else _of_columns(*conv.pads)
    rows = _steps(height, top + below, spec.strides[0])
    pitch = _steps(width, left + behind, spec.strides[1])
    # An image without zeros, whose planes are itself, is one row to what packs it.
    line = arith.MulIOp(height, width).result if spec.flat else None
    sizes = (height, width, rows, pitch) if line is None else (index(1), line, index(1), line)
    assert conv.quantize is not None
    measured = conv.quantize.opview.x_scale is None
    kernels = strategy.planes_kernel(spec, measured=measured), strategy.conv_kernel(spec)
    for kernel in kernels:
        unit.kernels[kernel.name] = kernel
    planes_name, conv_name = (ir.StringAttr.get(kernel.name) for kernel in kernels)
    i64 = ir.IntegerType.get_signless(64)
    planes = PackPlanesOp(
        conv.x,
        *conv.activation_scales(),
        *sizes,
        planes_name,
        *(ir.IntegerAttr.get(i64, number) for number in (spec.channels, top, left, spec.phases)),
        ir.RankedTensorType.get(
            [abq.shape(conv.x)[0], abq.DYNAMIC], abq.PackedType.get(planes_name)
        ),
    ).result
    node = ir.StringAttr(view.node).value
    symbol = weight_symbol(view.w)
    blob, stats = pack_weight(symbol, strategy, spec, unit, node)
    bias = conv.bias
    if bias is None:
        bias = weight(zeros_symbol(spec.n, unit.store), [spec.n])
    unit.operations.append(_record(node, spec, strategy, stats, unit))
    return CodeConvOp(
        planes, blob, bias, rows, pitch, *outputs, conv_name, view.node, conv.result_type
    ).result


def _of_columns(begin: int, end: int) -> tuple[int, int, int, int]:
    """The zeros around a line, as those around an image."""
    return 0, begin, 0, end


def _steps(size: ir.Value, around: int, stride: int) -> ir.Value:
    """How many strides an axis with its zeros has."""
    whole = arith.AddIOp(size, index(around)).result if around else size
    return whole if stride == 1 else arith.CeilDivUIOp(whole, index(stride)).result


def _record(
    node: str, spec: CodeConvSpec, strategy: Any, stats: dict[str, Any], unit: Unit
) -> dict[str, Any]:
    """For the manifest."""
    return {
        "node": node,
        "kind": unit.node_kinds.get(node, "conv"),
        "n": spec.n,
        "k": spec.k,
        "weight": spec.weight.text,
        "activation": spec.activation.text,
        "rotated": 0,
        "stream": False,
        "strategy": strategy.name,
        "why": "no matrix of patches",
        **stats,
    }
