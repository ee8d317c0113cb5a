"""The recipe gives formats to operations: float matmuls become matmuls of codes.

A model that is quantized already has weights of codes in the store, and its activations come as
`abq.quantize` with scales of its own. Both are kept exactly, unless the recipe asks for fewer bits
or a rotation, which encode anew what the codes stand for.

Weights are not encoded here: an `Encoding` records how, and `pack-layouts` encodes one weight at a
time, so that the peak of memory stays near the largest layer. A rotation H is put before the
activation's quantization and folded into the weight, (x H^T)(W H^T)^T = x W^T (QuaRot).
"""

from __future__ import annotations

from typing import Any

from abqc.dialects import abq
from abqc.dialects.formats import Half, Scheme
from abqc.dialects.mlir import ir, tensor

from .infrastructure import Unit, defining_op, register, walk
from .loops.constant_values import symbol_of
from .quantization.calibrated import corrected_bias, quantize_activation, shifted
from .quantization.encoding import Encoding, encoding_of
from .quantization.marks import MARK, quantize_mark
from .quantization.product_encodings import (
    conv_encoding,
    float_source,
    keeps_codes,
    matmul_activation,
    matmul_encoding,
    node_of,
    overridden,
    table_scheme,
    table_schemes,
)
from .quantization.rounded_floats import rounded_floats
from .quantization.scans import quantize_scan
from .rotate_stream import ROTATED

SCALE_TYPES = {"f16": ir.F16Type, "e8m0": ir.Float8E8M0FNUType, "e4m3": ir.Float8E4M3FNType}

# The attribute of a matmul or convolution that says what kernels of 16 bits round floats to.
HALF = "half"
DEFAULT_HALF: Half = "f16"


@register
def quantize(module: ir.Operation, unit: Unit) -> None:
    """Give every matmul and table the formats that the recipe asks for."""
    tables = table_schemes(module, unit)
    for op in walk(module, "abq.matmul"):
        _quantize_matmul(op, tables, unit)
    for op in walk(module, "abq.conv"):
        _quantize_conv(op, unit)
    for op in walk(module, "abq.gather"):
        _quantize_gather(op, unit)
    for op in walk(module, "abq.selective_scan"):
        quantize_scan(op, unit)
    for op in walk(module, MARK):
        quantize_mark(op, unit)


def _codes(
    encoding: Encoding, shape: list[int], unit: Unit
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """The codes, scales and zero points of an encoded weight, as `abq.weight` values."""
    unit.encodings[encoding.symbol] = encoding
    scheme = encoding.scheme
    code = abq.CodeType.get(ir.StringAttr.get(scheme.text))
    codes = _weight(encoding.symbol, ir.RankedTensorType.get(shape, code))
    groups = [shape[0], scheme.n_groups(shape[1])]
    exact = encoding.imported and encoding.encode(unit.store).scale.dtype.itemsize == 4
    scale_type = ir.F32Type.get() if exact else SCALE_TYPES[scheme.scale].get()
    scale = _weight(encoding.symbol + ".scale", ir.RankedTensorType.get(groups, scale_type))
    if scheme.symmetric:
        return codes, scale, None
    ui8 = ir.IntegerType.get_signless(8)
    return codes, scale, _weight(encoding.symbol + ".zero", ir.RankedTensorType.get(groups, ui8))


def _weight(symbol: str, type_: ir.Type) -> ir.Value:
    return abq.WeightOp(ir.StringAttr.get(symbol), type_).result


def _quantize_matmul(op: ir.Operation, tables: dict[str, Scheme], unit: Unit) -> None:
    view = op.opview
    if symbol_of(view.w) is None or abq.code_format(view.w) is not None:
        return
    recipe = unit.recipe.resolve(node_of(op), "matmul")
    n, k = abq.shape(view.w)
    encoding = matmul_encoding(op, tables, unit)
    if encoding is None:
        _keep_half(_without_codes(op), recipe)
        return
    if (note := overridden(op, encoding, unit)) is not None:
        unit.refuse(node_of(op), note)
    block = encoding.hadamard_block
    with ir.InsertionPoint(op), op.location:
        codes, scale, zero = _codes(encoding, [n, k], unit)
        x, x_scale, x_zero = view.x, view.x_scale, view.x_zero
        if not keeps_codes(view, recipe, block):
            x, x_scale, x_zero = float_source(view.x), None, None
            if recipe.activation is not None:
                x = shifted(x, encoding, node_of(op), unit)
            if block:
                x = _of_row_length(x, k)
                i64 = ir.IntegerType.get_signless(64)
                x = abq.HadamardOp(x, ir.IntegerAttr.get(i64, block), x.type).result
            if recipe.activation is not None:
                sizes = abq.shape(x)[:-1]
                activation = matmul_activation(op, encoding, unit)
                assert activation is not None
                x, x_scale, x_zero = quantize_activation(
                    x, activation, sizes, encoding, node_of(op), unit
                )
        new = abq.MatmulOp(
            x,
            codes,
            op.attributes["node"],
            view.result.type,
            bias=corrected_bias(view, encoding, node_of(op), unit),
            x_scale=x_scale,
            x_zero=x_zero,
            w_scale=scale,
            w_zero=zero,
        )
        _keep_half(new.operation, recipe)
        if ROTATED in op.attributes:
            new.operation.attributes[ROTATED] = op.attributes[ROTATED]
    op.results[0].replace_all_uses_with(new.result)
    op.erase()


def _of_row_length(x: ir.Value, k: int) -> ir.Value:
    """`x`, whose rows have `k` elements, with a type that says so."""
    *lead, length = x.type.shape
    if length == k:
        return x
    return tensor.CastOp(ir.RankedTensorType.get([*lead, k], x.type.element_type), x).result


def _without_codes(op: ir.Operation) -> ir.Operation:
    """A weight stays float, so that no kernel takes the activation's codes; the operation now."""
    view = op.opview
    if abq.code_format(view.x) is None:
        return op
    kept = {"bias": view.bias} if view.bias is not None else {}
    quantized = defining_op(view.x)
    assert quantized is not None
    with ir.InsertionPoint(op), op.location:
        x = rounded_floats(quantized)
        if op.name == "abq.matmul":
            new = abq.MatmulOp(x, view.w, op.attributes["node"], view.result.type, **kept)
        else:
            names = ("node", "strides", "dilations", "pads", "groups")
            new = abq.ConvOp(
                x, view.w, *(op.attributes[name] for name in names), view.result.type, **kept
            )
    op.results[0].replace_all_uses_with(new.result)
    op.erase()
    return new.operation


def _keep_half(op: ir.Operation, recipe: Any) -> None:
    """Say what float activations are rounded to, where the recipe does not leave it at f16."""
    if recipe.activation is None and recipe.half != DEFAULT_HALF:
        op.attributes[HALF] = ir.StringAttr.get(recipe.half)


def _quantize_conv(op: ir.Operation, unit: Unit) -> None:
    """A convolution keeps its form; its activations have one scale per image (or per tensor)."""
    view = op.opview
    node, symbol = node_of(op), symbol_of(view.w)
    if symbol is None or view.w_scale is not None:
        return
    recipe = unit.recipe.resolve(node, "conv")
    encoding = conv_encoding(op, unit)
    if encoding is None:
        pairs = abq.shape(view.w)[1] > 1  # one channel has none
        kept = _without_codes(op)
        if pairs:
            _keep_half(kept, recipe)
        return
    shape = abq.shape(view.w)
    k = 1
    for size in shape[1:]:
        k *= size
    with ir.InsertionPoint(op), op.location:
        codes, scale, zero = _codes(encoding, [shape[0], k], unit)
        code = ir.RankedTensorType(codes.type).element_type
        codes = abq.WeightOp(
            ir.StringAttr.get(encoding.symbol), ir.RankedTensorType.get(shape, code)
        ).result
        x, x_scale, x_zero = view.x, view.x_scale, view.x_zero
        if not keeps_codes(view, recipe, 0):
            x, x_scale, x_zero = float_source(view.x), None, None
            if recipe.activation is not None:
                x, x_scale, x_zero = quantize_activation(
                    x,
                    recipe.activation,
                    abq.shape(x)[:1],
                    encoding,
                    node,
                    unit,
                )
        new = abq.ConvOp(
            x,
            codes,
            op.attributes["node"],
            op.attributes["strides"],
            op.attributes["dilations"],
            op.attributes["pads"],
            op.attributes["groups"],
            view.result.type,
            bias=corrected_bias(view, encoding, node, unit),
            x_scale=x_scale,
            x_zero=x_zero,
            w_scale=scale,
            w_zero=zero,
        )
        _keep_half(new.operation, recipe)
    op.results[0].replace_all_uses_with(new.result)
    op.erase()


def _quantize_gather(op: ir.Operation, unit: Unit) -> None:
    symbol = symbol_of(op.operands[0])
    view = op.opview
    if symbol is None or view.scale is not None:
        return
    encoding = encoding_of(symbol, table_scheme(op, unit), 0, unit)
    if encoding is None:
        return
    with ir.InsertionPoint(op), op.location:
        codes, scale, zero = _codes(encoding, abq.shape(view.table), unit)
        new = abq.GatherOp(
            codes, view.indices, op.attributes["node"], view.result.type, scale=scale, zero=zero
        )
    op.results[0].replace_all_uses_with(new.result)
    op.erase()
