"""Products of codes for integer-only graphs: int32 accumulators, and what their unit is.

Convolutions in groups, for which no kernel has packed codes, are loops over bytes: their weights
are bytes in the weight store, symmetric with one scale for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from abqc.dialects import abq
from abqc.dialects.fixed_point import F64, StaticCodes
from abqc.dialects.formats import Scheme
from abqc.dialects.mlir import ir

from ..infrastructure import Unit, defining_op
from ..loops.constant_values import is_constant, read, symbol_of
from ..quantization.encoding import Encoding
from ..quantization.marks import constant_tensor
from .loops import Bytes, integers, static_codes

MAX_ACCUMULATOR = (1 << 31) - 1
SCALE_BYTES = 8  # a multiplier and a shift for each channel


@dataclass(frozen=True)
class Accumulators:
    """A tensor of i32 whose unit is `units` [N] along the axis `channel`, and the `bias` [N] that
    comes to it."""

    value: ir.Value
    units: F64
    channel: int
    bias: np.ndarray | None


def grouped_encoding(op: ir.Operation, unit: Unit) -> Encoding | None:
    """How integer-only graphs encode the weight of an `abq.conv` in groups; None where they do
    not."""
    symbol = symbol_of(op.opview.w)
    if symbol is None or op.opview.w_scale is not None:
        return None
    recipe = unit.recipe.resolve(ir.StringAttr(op.attributes["node"]).value, "conv")
    scheme: Scheme | None = recipe.weight
    if not recipe.integer or scheme is None or scheme.scale != "f16":
        return None
    columns = int(np.prod(abq.shape(op.opview.w)[1:]))
    highest = max(abs(scheme.format.qmin), scheme.format.qmax)
    if not scheme.symmetric or not scheme.format.has_integers or scheme.n_groups(columns) > 1:
        return None
    if scheme.format.kind == "trellis" or 255 * highest * columns > MAX_ACCUMULATOR:
        return None
    return Encoding(symbol, scheme, search=recipe.search)


def accumulators(op: ir.Operation, unit: Unit) -> Accumulators | None:
    """Of an `abq.matmul` or `abq.conv` whose activations are static codes. None where its sums are
    not of one group with exact integers, or its bias is not constant."""
    view = op.opview
    quantize = defining_op(view.x)
    encoding = unit.encodings.get(symbol_of(view.w) or "")
    if quantize is None or quantize.name != "abq.quantize" or encoding is None:
        return None
    if not _has_constant_bias(op):
        return None
    x = static_codes(quantize)
    columns = int(np.prod(abq.shape(view.w)[1:]))
    scheme = encoding.scheme
    if x is None or not scheme.format.has_integers or scheme.n_groups(columns) > 1:
        return None
    if columns * _reach(scheme) * (x.high - x.low) > MAX_ACCUMULATOR:
        return None
    scales = encoding.encode(unit.store).integer_scale[:, 0]
    units = _units(x, scales)
    type_ = ir.RankedTensorType.get(abq.shape(view.result), ir.IntegerType.get_signless(32))
    names = ("x_scale", "x_zero", "w_scale", "w_zero")
    given = {name: getattr(view, name) for name in names}
    if op.name == "abq.matmul":
        made = abq.MatmulOp(view.x, view.w, op.attributes["node"], type_, **given)
    else:
        made = abq.ConvOp(view.x, view.w, *_attributes(op), type_, **given)
    return Accumulators(made.result, units, _channel(op), _bias(op, unit))


def grouped_accumulators(op: ir.Operation, x: Bytes, unit: Unit) -> Accumulators | None:
    """The same of an `abq.conv` in groups, of the bytes that it reads."""
    encoding = grouped_encoding(op, unit)
    if encoding is None or not _has_constant_bias(op):
        return None
    view = op.opview
    weight = encoding.encode(unit.store)
    units = _units(x.codes, weight.integer_scale[:, 0])
    codes = weight.scheme.format.integers(weight.codes).astype(np.int8)
    w = integers(codes.reshape(abq.shape(view.w)), unit)
    code = abq.CodeType.get(ir.StringAttr.get(x.codes.scheme.text))
    scale = constant_tensor(np.array([x.codes.scale], np.float32))
    zero = constant_tensor(np.array([x.codes.zero], np.int32))
    quantized = abq.QuantizeOp(
        x.value,
        ir.RankedTensorType.get(abq.shape(x.value), code),
        scale.type,
        zero.type,
        x_scale=scale,
        x_zero=zero,
    )
    type_ = ir.RankedTensorType.get(abq.shape(view.result), ir.IntegerType.get_signless(32))
    made = abq.ConvOp(
        quantized.codes,
        w,
        *_attributes(op),
        type_,
        x_scale=quantized.scale,
        x_zero=quantized.zero,
    )
    unit.operations.append(_listed(op, encoding, x.codes))
    return Accumulators(made.result, units, _channel(op), _bias(op, unit))


def _listed(op: ir.Operation, encoding: Encoding, x: StaticCodes) -> dict[str, Any]:
    """A convolution in groups, as `abqc inspect` lists it; its scales are in the multipliers."""
    n, *window = abq.shape(op.opview.w)
    columns = int(np.prod(window))
    size = n * (columns + SCALE_BYTES)
    return {
        "node": ir.StringAttr(op.attributes["node"]).value,
        "kind": "conv",
        "n": n,
        "k": columns,
        "weight": encoding.scheme.text,
        "activation": x.scheme.text,
        "rotated": 0,
        "stream": False,
        "strategy": "loops",
        "why": "a convolution in groups, of bytes",
        "bytes": size,
        "bpw": round(8 * size / (n * columns), 4),
        "symbol": encoding.symbol,
    }


def _reach(scheme: Scheme) -> int:
    """The largest magnitude of a weight's code less its zero point."""
    format = scheme.format
    return 255 if not scheme.symmetric else max(abs(format.qmin), abs(format.qmax), 128)


def _units(x: StaticCodes, scales: Any) -> F64:
    """What 1 stands for in each channel's accumulators. A channel of zeros, which may have no
    scale, has accumulators of 0 in any unit."""
    units = x.scale * np.asarray(scales, np.float64)
    return np.where(units == 0, x.scale, units)


def _has_constant_bias(op: ir.Operation) -> bool:
    return op.opview.bias is None or is_constant(op.opview.bias)


def _bias(op: ir.Operation, unit: Unit) -> np.ndarray | None:
    return None if op.opview.bias is None else read(op.opview.bias, unit.store)


def _channel(op: ir.Operation) -> int:
    return 1 if op.name == "abq.conv" else len(abq.shape(op.results[0])) - 1


def _attributes(op: ir.Operation) -> list[ir.Attribute]:
    names = ("node", "strides", "dilations", "pads", "groups")
    return [op.attributes[name] for name in names]
