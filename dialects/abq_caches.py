"""Operations of the abq dialect on quantized key/value caches (`cache_formats.py`).

(No postponed annotations here: the bindings read them as Python objects.)
"""

from typing import Any

from .abq import (
    DYNAMIC,
    Tensor,
    TensorResult,
    VerifiedOperation,
    _agree,
    _require,
    decoded_columns,
    element,
    shape,
)
from .cache_formats import CacheFormat, parse_cache_format
from .mlir import ext, ir

__all__ = [
    "DequantizeCacheOp",
    "PermuteChannelsOp",
    "QuantizeCacheOp",
    "cache_format",
    "channel_order",
]


def cache_format(op: Any) -> CacheFormat:
    """The format of a quantize_cache or dequantize_cache."""
    return parse_cache_format(ir.StringAttr(op.attributes["format"]).value)


def _check(op: Any, floats: Any, rows: Any) -> None:
    format, columns = cache_format(op.operation), shape(floats)[-1]
    reason = None if columns == DYNAMIC else format.unsupported(columns)
    _require(reason is None, str(reason))
    decoded_columns(shape(rows)[-1], format.text, columns)
    _require(isinstance(element(floats), ir.F32Type), "rows are encoded from and decoded to f32")
    is_bytes = isinstance(element(rows), ir.IntegerType) and element(rows).width == 8
    _require(is_bytes, "encoded rows are bytes")
    _require(len(shape(rows)) == len(shape(floats)), "rows and floats have one rank")
    same = all(map(_agree, shape(rows)[:-1], shape(floats)[:-1]))
    _require(same, "rows and floats differ in their last axis alone")


class QuantizeCacheOp(VerifiedOperation, name="quantize_cache", traits=[ext.Pure]):
    """Rows of floats [..., columns] as bytes [..., row bytes] of `format`, without its rotation."""

    x: Tensor
    format: ir.StringAttr
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        _check(op, op.x, op.result)


class DequantizeCacheOp(VerifiedOperation, name="dequantize_cache", traits=[ext.Pure]):
    """Bytes [..., row bytes] as f32 [..., columns], as they are stored: rotated rows stay so."""

    rows: Tensor
    format: ir.StringAttr
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        _check(op, op.result, op.rows)


class PermuteChannelsOp(VerifiedOperation, name="permute_channels", traits=[ext.Pure]):
    """`y[.., i, .., d] = x[.., i, .., order[i // group % heads, d]]`, i along `axis`.

    `order` is heads x columns, a permutation of the last axis for each head; `axis` counts heads,
    of all samples perhaps, and `group` consecutive ones share an order.
    """

    x: Tensor
    order: Any  # array<i64>
    axis: ir.IntegerAttr
    group: ir.IntegerAttr
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        _require(op.x.type == op.result.type, "x and y have one type")
        columns = shape(op.x)[-1]
        axis = ir.IntegerAttr(op.axis).value
        _require(0 <= axis < len(shape(op.x)) - 1, f"x has no axis {axis} of heads")
        _require(ir.IntegerAttr(op.group).value > 0, "a group has one head at least")
        _require(columns != DYNAMIC, "rows have a static length")
        order = list(ir.DenseI64ArrayAttr(op.attributes["order"]))
        _require(bool(order) and len(order) % columns == 0, f"orders are of {columns} channels")
        for begin in range(0, len(order), columns):
            each = sorted(order[begin : begin + columns])
            _require(each == list(range(columns)), "an order has every channel once")


def channel_order(op: ir.Operation) -> list[list[int]]:
    """The order of each head of a permute_channels."""
    order = list(ir.DenseI64ArrayAttr(op.attributes["order"]))
    columns = shape(op.operands[0])[-1]
    return [order[begin : begin + columns] for begin in range(0, len(order), columns)]
