"""Convolutions in float become `abq.direct_conv` where the target has kernels for it.

    x [B, C, H, W] --abq.polyphase--> planes [B, C * phases, rows, pitch] --abq.direct_conv--> y
    x [B, C, H, W] --abq.direct_conv--> y      where kernels put zeros around images themselves

What has codes or weights in 16 bits, more than two spatial axes, a window of many columns, or so
few outputs that a vector is not filled with them is left to `decompose-conv`.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from abqc.dialects import abq
from abqc.dialects.abq_conv import DirectConvOp, PolyphaseOp
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.mlir import arith, ir

from .decompose_conv import Conv
from .infrastructure import Unit, register, walk
from .loops.constant_values import symbol_of, weight, zeros_symbol
from .resolve_dims import dimension_or_query, expand_shape, index

FEW_OUTPUTS = 16
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
    floats = all(isinstance(abq.element(value), ir.F32Type) for value in (view.x, view.w))
    if not floats or symbol_of(view.w) is None or len(window) > 2 or window[-1] > MANY_COLUMNS:
        return None
    if abq.DYNAMIC not in outputs and prod(outputs) < FEW_OUTPUTS:
        return None
    groups = ir.IntegerAttr(view.groups).value
    steps = (list(ir.DenseI64ArrayAttr(op.attributes[name])) for name in ("strides", "dilations"))
    (y, x), strides, dilations = ([1, *pair][-2:] for pair in (window, *steps))
    spec = ConvSpec(groups, n // groups, c, (y, x), tuple(strides), tuple(dilations))
    before = [0, *list(ir.DenseI64ArrayAttr(op.attributes["pads"]))[: len(window)]][-2:]
    return replace(spec, before=tuple(before)) if spec.reads_images else spec


def _planned(op: ir.Operation, spec: ConvSpec, unit: Unit) -> ir.Value:
    conv = Conv.of(op)
    height, width = [index(1), *conv.output_sizes()][-2:]
    n = spec.groups * spec.outputs
    return DirectConvOp(
        _planes(conv, spec),
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
    x, pads = conv.x, conv.pads
    if conv.spatial == 1:
        shape = abq.shape(x)
        x = expand_shape(x, [[0], [1], [2, 3]], [*shape[:2], 1, shape[2]])
        pads = [0, pads[0], 0, pads[1]]
    if spec.reads_images or (spec.strides == (1, 1) and not any(pads)):
        return x
    axes = zip((2, 3), pads[:2], pads[2:], spec.strides, strict=True)
    sizes = [_of_phase(x, axis, low + high, stride) for axis, low, high, stride in axes]
    batch, channels, *_ = abq.shape(x)
    known = [abq.DYNAMIC if isinstance(size, ir.Value) else size for size in sizes]
    return PolyphaseOp(
        x,
        *(size if isinstance(size, ir.Value) else index(size) for size in sizes),
        ir.DenseI64ArrayAttr.get(spec.strides),
        ir.DenseI64ArrayAttr.get(spec.phases),
        ir.DenseI64ArrayAttr.get(pads[:2]),
        ir.RankedTensorType.get([batch, channels * prod(spec.phases), *known], ir.F32Type.get()),
    ).result


def _of_phase(x: ir.Value, axis: int, around: int, stride: int) -> int | ir.Value:
    """How much of an axis, with so many zeros around it, a phase has: rounded up."""
    size = abq.shape(x)[axis]
    if size != abq.DYNAMIC:
        return -(-(size + around) // stride)
    whole = arith.AddIOp(dimension_or_query(x, axis), index(around)).result
    return whole if stride == 1 else arith.CeilDivUIOp(whole, index(stride)).result


def _packed(w: ir.Value, spec: ConvSpec, unit: Unit) -> ir.Value:
    """The weight in the kernel's layout, which all convolutions with it share."""
    symbol = _packed_symbol(w, spec)
    if symbol not in unit.store:
        store, source = unit.store, str(symbol_of(w))
        store.add_lazy(
            symbol, (spec.packed_size,), "float32", lambda: spec.pack_weight(store.get(source))
        )
    return weight(symbol, [spec.packed_size])


def _packed_symbol(w: ir.Value, spec: ConvSpec) -> str:
    return f"{symbol_of(w)}.direct.{spec.groups}"


def _record(op: ir.Operation, spec: ConvSpec, unit: Unit) -> None:
    """For the manifest: what it is as a product, and why it is one of floats."""
    n, k = spec.groups * spec.outputs, spec.channels * prod(spec.window)
    product = {
        "symbol": _packed_symbol(op.opview.w, spec),
        "n": n,
        "k": k,
        "weight": "f32",
        "activation": "f32",
        "strategy": "direct",
        "bytes": 4 * spec.packed_size,
    }
    if spec.groups > 1:
        unit.floats.append(product | Conv.of(op).stays_float())
        return
    about = {
        "node": ir.StringAttr(op.opview.node).value,
        "kind": "conv",
        "rotated": 0,
        "stream": False,
        "why": "direct: the only strategy for convolutions in float",
        "bpw": round(32 * spec.packed_size / (n * k), 4),
    }
    unit.operations.append(about | product)
