"""Convolutions in float become `abq.direct_conv` where the target has kernels for it.

    x [B, C, H, W] --abq.polyphase--> planes [B, C * phases, rows, pitch] --abq.direct_conv--> y
    x [B, C, H, W] --abq.direct_conv--> y      where kernels put zeros around images themselves

Those that the recipe has in bf16 read planes of pairs of channels, `abq.pair_planes`, instead.
Weights in 16 bits are widened as they are packed. What has codes, more than two spatial axes, a
window of many columns, or so few outputs that a vector is not filled with them is left to
`decompose-conv`.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from abqc.dialects import abq
from abqc.dialects.abq_conv import DirectConvOp, PairPlanesOp, PolyphaseOp
from abqc.dialects.bf16_conv_spec import Bf16ConvSpec
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.mlir import arith, ir

from .decompose_conv import Conv
from .infrastructure import Unit, register, walk
from .loops.constant_values import symbol_of, weight, zeros_symbol
from .quantize import HALF
from .resolve_dims import dimension_or_query, expand_shape, index

FEW_OUTPUTS = 16
WEIGHTS = (ir.F32Type, ir.F16Type, ir.BF16Type)
MANY_COLUMNS = 32  # of a window, all of which a kernel spells out


@register
def direct_conv(module: ir.Operation, unit: Unit) -> None:
    """Rewrite abq.conv as planes and abq.direct_conv."""
    if unit.target is None:
        return
    for op in walk(module, "abq.conv"):
        spec = _spec(op)
        if spec is None or unit.known_target.direct_conv(spec) is None:
            continue
        with ir.InsertionPoint(op), op.location:
            op.results[0].replace_all_uses_with(_planned(op, spec, unit))
        _record(op, spec, unit)
        op.erase()


def _spec(op: ir.Operation) -> ConvSpec | None:
    view = op.opview
    n, c, *window = abq.shape(view.w)
    outputs = abq.shape(view.result)[2:]
    floats = isinstance(abq.element(view.x), ir.F32Type)
    floats = floats and isinstance(abq.element(view.w), WEIGHTS)
    if not floats or symbol_of(view.w) is None or len(window) > 2 or window[-1] > MANY_COLUMNS:
        return None
    if abq.DYNAMIC not in outputs and prod(outputs) < FEW_OUTPUTS:
        return None
    groups = ir.IntegerAttr(view.groups).value
    steps = (list(ir.DenseI64ArrayAttr(op.attributes[name])) for name in ("strides", "dilations"))
    (y, x), strides, dilations = ([1, *pair][-2:] for pair in (window, *steps))
    made = Bf16ConvSpec if _half(op) == "bf16" else ConvSpec
    spec = made(groups, n // groups, c, (y, x), tuple(strides), tuple(dilations))
    before = [0, *list(ir.DenseI64ArrayAttr(op.attributes["pads"]))[: len(window)]][-2:]
    return replace(spec, before=tuple(before)) if spec.reads_images else spec


def _half(op: ir.Operation) -> str | None:
    """What the recipe rounds floats to, where that is not the default."""
    return ir.StringAttr(op.attributes[HALF]).value if HALF in op.attributes else None


def _planned(op: ir.Operation, spec: ConvSpec, unit: Unit) -> ir.Value:
    conv = Conv.of(op)
    height, width = [index(1), *conv.output_sizes()][-2:]
    n = spec.groups * spec.outputs
    planes = _pair_planes(conv, spec) if isinstance(spec, Bf16ConvSpec) else _planes(conv, spec)
    return DirectConvOp(
        planes,
        _packed(conv.w, spec, unit),
        conv.bias if conv.bias is not None else weight(zeros_symbol(n, unit.store), [n]),
        height,
        width,
        ir.IntegerAttr.get(ir.IntegerType.get_signless(64), spec.groups),
        ir.DenseI64ArrayAttr.get(spec.window),
        ir.DenseI64ArrayAttr.get(spec.strides),
        ir.DenseI64ArrayAttr.get(spec.dilations),
        ir.DenseI64ArrayAttr.get(spec.before),
        conv.result_type,
    ).result


def _planes(conv: Conv, spec: ConvSpec) -> ir.Value:
    """[B, C * phases, rows, pitch]; the image itself where it has no zeros and no strides, and for
    kernels that put zeros around it themselves."""
    x, pads = _image(conv)
    if spec.reads_images or (spec.strides == (1, 1) and not any(pads)):
        return x
    sizes, known = _plane_sizes(x, pads, spec)
    batch, channels, *_ = abq.shape(x)
    return PolyphaseOp(
        x,
        *sizes,
        ir.DenseI64ArrayAttr.get(spec.strides),
        ir.DenseI64ArrayAttr.get(spec.phases),
        ir.DenseI64ArrayAttr.get(pads[:2]),
        ir.RankedTensorType.get([batch, channels * prod(spec.phases), *known], ir.F32Type.get()),
    ).result


def _pair_planes(conv: Conv, spec: Bf16ConvSpec) -> ir.Value:
    """[B, groups * pairs * phases, rows, pitch] of i32."""
    x, pads = _image(conv)
    sizes, known = _plane_sizes(x, pads, spec)
    planes = spec.groups * spec.pairs * prod(spec.phases)
    numbers = spec.groups, int(spec.strides == (1, 1) and not any(pads))
    return PairPlanesOp(
        x,
        *sizes,
        ir.DenseI64ArrayAttr.get(spec.strides),
        ir.DenseI64ArrayAttr.get(spec.phases),
        ir.DenseI64ArrayAttr.get(pads[:2]),
        *(ir.IntegerAttr.get(ir.IntegerType.get_signless(64), number) for number in numbers),
        ir.RankedTensorType.get([abq.shape(x)[0], planes, *known], ir.IntegerType.get_signless(32)),
    ).result


def _image(conv: Conv) -> tuple[ir.Value, list[int]]:
    """x with two spatial axes, and the zeros around it."""
    x, pads = conv.x, conv.pads
    if conv.spatial == 1:
        shape = abq.shape(x)
        x = expand_shape(x, [[0], [1], [2, 3]], [*shape[:2], 1, shape[2]])
        pads = [0, pads[0], 0, pads[1]]
    return x, pads


def _plane_sizes(x: ir.Value, pads: list[int], spec: ConvSpec) -> tuple[list[ir.Value], list[int]]:
    """Rows and pitch of planes, as values and as sizes of a type."""
    axes = zip((2, 3), pads[:2], pads[2:], spec.strides, strict=True)
    sizes = [_of_phase(x, axis, low + high, stride) for axis, low, high, stride in axes]
    known = [abq.DYNAMIC if isinstance(size, ir.Value) else size for size in sizes]
    values = [size if isinstance(size, ir.Value) else index(size) for size in sizes]
    return values, known


def _of_phase(x: ir.Value, axis: int, around: int, stride: int) -> int | ir.Value:
    """How much of an axis, with so many zeros around it, a phase has: rounded up."""
    size = abq.shape(x)[axis]
    if size != abq.DYNAMIC:
        return -(-(size + around) // stride)
    whole = arith.AddIOp(dimension_or_query(x, axis), index(around)).result
    return whole if stride == 1 else arith.CeilDivUIOp(whole, index(stride)).result


def _packed(w: ir.Value, spec: ConvSpec, unit: Unit) -> ir.Value:
    """The weight in the kernel's layout, which all convolutions with it and this layout share."""
    symbol, element = _packed_symbol(w, spec), "int32" if _in_bf16(spec) else "float32"
    if symbol not in unit.store:
        store, source = unit.store, str(symbol_of(w))
        store.add_lazy(
            symbol, (spec.packed_size,), element, lambda: spec.pack_weight(store.get(source))
        )
    if not _in_bf16(spec):
        return weight(symbol, [spec.packed_size])
    type_ = ir.RankedTensorType.get([spec.packed_size], ir.IntegerType.get_signless(32))
    return abq.WeightOp(ir.StringAttr.get(symbol), type_).result


def _in_bf16(spec: ConvSpec) -> bool:
    return isinstance(spec, Bf16ConvSpec)


def _packed_symbol(w: ir.Value, spec: ConvSpec) -> str:
    return f"{symbol_of(w)}.{_layout(spec)}.{spec.groups}"


def _layout(spec: ConvSpec) -> str:
    """What `spec.pack_weight` makes of a weight, which strides and dilations decide too."""
    if _in_bf16(spec):
        return "direct-bf16"
    if spec.winograd:
        return "winograd"
    return "depthwise" if spec.depthwise else "direct"


def _record(op: ir.Operation, spec: ConvSpec, unit: Unit) -> None:
    """For the manifest: what it is as a product, and why it is one of floats."""
    n, k = spec.groups * spec.outputs, spec.channels * prod(spec.window)
    element = "bf16" if _in_bf16(spec) else "f32"
    kind = "bf16" if _in_bf16(spec) else "float"
    size = 4 * spec.packed_size  # of f32 or of pairs
    product = {
        "symbol": _packed_symbol(op.opview.w, spec),
        "n": n,
        "k": k,
        "weight": element,
        "activation": element,
        "strategy": "bf16-direct" if _in_bf16(spec) else "direct",
        "bytes": size,
    }
    if spec.groups > 1 and not _in_bf16(spec):
        unit.floats.append(product | Conv.of(op).stays_float())
        return
    about = {
        "node": ir.StringAttr(op.opview.node).value,
        "kind": "conv",
        "rotated": 0,
        "stream": False,
        "why": f"direct: the only strategy for convolutions in {kind}",
        "bpw": round(8 * size / (n * k), 4),
    }
    unit.operations.append(about | product)
