"""Convolutions in float become `abq.direct_conv` where the target has kernels for it.

    x [B, C, H, W] --pad--> [B, C, rows, columns] --phases--> planes --abq.direct_conv--> [B, N, ..]

What has codes or weights in 16 bits, more than two spatial axes, a window of many columns, or so
few outputs that a vector is not filled with them is left to `decompose-conv`.
"""

from __future__ import annotations

from math import prod

from abqc.dialects import abq
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.mlir import arith, ir, linalg, tensor

from .decompose_conv import Conv, generic, pad, zero
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
        kernel = unit.known_target.direct_conv(spec) if spec is not None else None
        if spec is None or kernel is None:
            continue
        unit.kernels[kernel.name] = kernel
        with ir.InsertionPoint(op), op.location:
            op.results[0].replace_all_uses_with(_planned(op, spec, kernel.name, unit))
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
    return ConvSpec(groups, n // groups, c, (y, x), tuple(strides), tuple(dilations))


def _planned(op: ir.Operation, spec: ConvSpec, kernel: str, unit: Unit) -> ir.Value:
    conv = Conv.of(op)
    height, width = [index(1), *conv.output_sizes()][-2:]
    n, i64 = spec.groups * spec.outputs, ir.IntegerType.get_signless(64)
    y = list(conv.result_type.shape)
    image = y if len(y) == 4 else [*y[:2], 1, y[2]]
    result = abq.DirectConvOp(
        _planes(conv, spec),
        _packed(conv.w, spec, unit),
        conv.bias if conv.bias is not None else weight(zeros_symbol(n, unit.store), [n]),
        height,
        width,
        ir.StringAttr.get(kernel),
        ir.IntegerAttr.get(i64, spec.groups),
        ir.IntegerAttr.get(i64, spec.phases),
        ir.IntegerAttr.get(i64, spec.blocks),
        ir.RankedTensorType.get(image, ir.F32Type.get()),
    ).result
    if len(y) == 4:
        return result
    return tensor.CollapseShapeOp(conv.result_type, result, [[0], [1], [2, 3]]).result


def _planes(conv: Conv, spec: ConvSpec) -> ir.Value:
    """[B, C * phases, rows, pitch]; the image itself where it has no zeros and one phase."""
    x, pads = conv.x, conv.pads
    if conv.spatial == 1:
        shape = abq.shape(x)
        x = expand_shape(x, [[0], [1], [2, 3]], [*shape[:2], 1, shape[2]])
        pads = [0, pads[0], 0, pads[1]]
    padded = _padded(x, pads, spec)
    if spec.phases == 1:
        return padded
    batch, channels, height, width = abq.shape(padded)
    (sy, sx), dynamic = spec.strides, abq.DYNAMIC
    rows = height if height == dynamic else height // sy
    pitch = width if width == dynamic else width // sx
    sizes = [dimension_or_query(padded, i) for i in range(4)]
    sizes[2] = arith.DivUIOp(sizes[2], index(sy)).result
    sizes[3] = arith.DivUIOp(sizes[3], index(sx)).result
    shape = [batch, channels, sy, sx, rows, pitch]
    runtime = [sizes[0], sizes[1], None, None, sizes[2], sizes[3]]
    empty = tensor.EmptyOp(
        [n if n != dynamic else runtime[i] for i, n in enumerate(shape)], ir.F32Type.get()
    ).result
    d = [ir.AffineDimExpr.get(i) for i in range(6)]
    source = ir.AffineMap.get(6, 0, [d[0], d[1], d[4] * sy + d[2], d[5] * sx + d[3]])
    maps = [source, ir.AffineMap.get_identity(6)]
    loop = generic(empty.type, [padded], empty, maps, "p" * 6).operation
    block = loop.regions[0].blocks.append(*[ir.F32Type.get()] * 2, arg_locs=[conv.op.location] * 2)
    with ir.InsertionPoint(block):
        linalg.YieldOp([block.arguments[0]])
    flat = [batch, channels * spec.phases, rows, pitch]
    type_ = ir.RankedTensorType.get(flat, ir.F32Type.get())
    return tensor.CollapseShapeOp(type_, loop.results[0], [[0], [1, 2, 3], [4], [5]]).result


def _padded(x: ir.Value, pads: list[int], spec: ConvSpec) -> ir.Value:
    """The image with its zeros, and with more behind it up to a multiple of the strides."""
    low, high = [0, 0, *pads[:2]], [0, 0, *pads[2:]]
    shape, dynamic = abq.shape(x), []
    static_high = list(high)
    for axis, stride in ((2, spec.strides[0]), (3, spec.strides[1])):
        size, around = shape[axis], low[axis] + high[axis]
        if size != abq.DYNAMIC:
            static_high[axis] += -(size + around) % stride
            shape[axis] = size + low[axis] + static_high[axis]
        elif stride > 1:
            whole = arith.AddIOp(dimension_or_query(x, axis), index(around)).result
            steps = arith.CeilDivUIOp(whole, index(stride)).result
            extra = arith.SubIOp(arith.MulIOp(steps, index(stride)).result, whole).result
            dynamic.append(arith.AddIOp(extra, index(high[axis])).result)
            static_high[axis] = abq.DYNAMIC
    if not any(low) and not any(static_high):
        return x
    type_ = ir.RankedTensorType.get(shape, ir.F32Type.get())
    return pad(x, type_, low, static_high, dynamic, zero)


def _packed(w: ir.Value, spec: ConvSpec, unit: Unit) -> ir.Value:
    """The weight in the kernel's layout, which all convolutions with it share."""
    symbol = f"{symbol_of(w)}.direct.{spec.groups}"
    if symbol not in unit.store:
        store, source = unit.store, str(symbol_of(w))
        store.add_lazy(
            symbol, (spec.packed_size,), "float32", lambda: spec.pack_weight(store.get(source))
        )
    return weight(symbol, [spec.packed_size])


def _record(op: ir.Operation, spec: ConvSpec, unit: Unit) -> None:
    """For the manifest."""
    node = ir.StringAttr(op.opview.node).value
    if spec.groups > 1:
        unit.floats.append(Conv.of(op).stays_float())
        return
    n, k = spec.outputs, spec.channels * prod(spec.window)
    unit.operations.append(
        {
            "node": node,
            "kind": "conv",
            "n": n,
            "k": k,
            "weight": "f32",
            "activation": "f32",
            "rotated": 0,
            "stream": False,
            "strategy": "direct",
            "why": "direct: the only strategy for convolutions in float",
            "bytes": 4 * spec.packed_size,
            "bpw": round(32 * spec.packed_size / (n * k), 4),
        }
    )
