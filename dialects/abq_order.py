"""Operations of the abq dialect along an axis whose elements have an order, and at places that come
from data. (No postponed annotations here either: the bindings read them as Python objects.)
"""

from typing import Any

from .abq import Tensor, TensorResult, VerifiedOperation, _agree, _require, element, shape
from .mlir import ext, ir

__all__ = [
    "ArgExtremeOp",
    "NonMaxSuppressionOp",
    "ScanOp",
    "ScatterOp",
    "TopKOp",
    "UpdateOp",
]

Index = ext.Operand[ir.IndexType]
Float = ext.Operand[ir.F32Type]


class ScanOp(VerifiedOperation, name="scan", traits=[ext.Pure]):
    """Running sums along `axis`: `y[..., i, ...] = sum over j <= i of x[..., j, ...]`."""

    x: Tensor
    axis: ir.IntegerAttr
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        _require(op.x.type == op.result.type, "x and y have one type")
        axis = ir.IntegerAttr(op.axis).value
        _require(0 <= axis < len(shape(op.x)), f"x has no axis {axis}")


class TopKOp(VerifiedOperation, name="top_k", traits=[ext.Pure]):
    """The first `k` elements of every line along `axis` in order, and their places in the line.

    The order is descending where `largest` is 1, else ascending; of equal elements the one with
    the lower place comes first, and NaN is larger than any number. `k` does not exceed the length
    of a line.
    """

    x: Tensor
    k: Index
    axis: ir.IntegerAttr
    largest: ir.IntegerAttr
    values: TensorResult
    indices: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        axis = ir.IntegerAttr(op.axis).value
        _require(0 <= axis < len(shape(op.x)), f"x has no axis {axis}")
        _require(shape(op.values) == shape(op.indices), "values and indices have one shape")
        for i, (a, b) in enumerate(zip(shape(op.x), shape(op.values), strict=True)):
            _require(i == axis or _agree(a, b), "x and values differ in `axis` alone")


class ArgExtremeOp(VerifiedOperation, name="arg_extreme", traits=[ext.Pure]):
    """The place (i64) of the largest element of every row (the last axis), or of the smallest one
    where `largest` is 0; the first one where several are equal."""

    x: Tensor
    largest: ir.IntegerAttr
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        _require(shape(op.result) == shape(op.x)[:-1], "a place for each row")


class ScatterOp(VerifiedOperation, name="scatter", traits=[ext.Pure]):
    """`y = x`, but `y[indices[u]] = combine(updates[u], y[indices[u]])` for one u after the other.

    `indices` (i64 or i32) are updates x the leading axes of x that they place; an update is an
    element, or a slice along the other axes. Positions outside of x change nothing. `combine` is
    `replace`, or an operation of the arith dialect by its name: `addf`, `maxsi`, ...
    """

    x: Tensor
    indices: Tensor
    updates: Tensor
    combine: ir.StringAttr
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        _require(op.x.type == op.result.type, "x and y have one type")
        x, indices, updates = shape(op.x), shape(op.indices), shape(op.updates)
        _require(element(op.updates) == element(op.x), "updates and x have one element type")
        depth = indices[-1]
        _require(len(indices) == 2 and 0 <= depth <= len(x), "indices are updates x axes of x")
        _require(len(updates) == 1 + len(x) - depth, "an update is a slice of x")
        slices = zip(updates[1:], x[depth:], strict=True)
        _require(all(_agree(*sizes) for sizes in slices), "an update is a slice of x")
        _require(_agree(indices[0], updates[0]), "indices and updates differ in number")


class UpdateOp(VerifiedOperation, name="update", traits=[ext.Pure]):
    """A cache [B, ...] of `capacity` elements along `axis`: those of `past`, then zeros, but for
    `rows`, which for sample b lie from `begins[b]` (i64) on. Rows outside of the cache are left
    out. A past is not longer than `capacity`.
    """

    past: Tensor
    rows: Tensor
    begins: Tensor
    capacity: Index
    axis: ir.IntegerAttr
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        axis = ir.IntegerAttr(op.axis).value
        past, rows, y = shape(op.past), shape(op.rows), shape(op.result)
        _require(0 < axis < len(y), f"the cache has no axis {axis} behind that of samples")
        _require(len(past) == len(rows) == len(y), "past, rows and y have one rank")
        for i, sizes in enumerate(zip(past, rows, y, strict=True)):
            agree = all(_agree(a, b) for a in sizes for b in sizes)
            _require(i == axis or agree, "past, rows and y differ in `axis` alone")
        _require(shape(op.begins)[1:] == [] and _agree(shape(op.begins)[0], y[0]), "begins: [B]")
        _require(element(op.past) == element(op.rows) == element(op.result), "they have one type")


class NonMaxSuppressionOp(VerifiedOperation, name="non_max_suppression", traits=[ext.Pure]):
    """For every line of `order` the first boxes that overlap none chosen before.

    `boxes` are images x boxes x 4 corners (least y and x, then largest), `order` lists the boxes of
    an image for each of its classes, lines x boxes, of which the first `candidates` count. A box is
    chosen unless the intersection with a chosen one is more than `threshold` of their union.
    `chosen` is lines x limit; of line l the first `counts[l]` are set.
    """

    boxes: Tensor
    order: Tensor
    candidates: Tensor
    limit: Index
    threshold: Float
    chosen: TensorResult
    counts: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        boxes, order = shape(op.boxes), shape(op.order)
        _require(len(boxes) == 3 and boxes[2] == 4, "boxes are images x boxes x 4")
        _require(len(order) == 2 and _agree(order[1], boxes[1]), "order is lines x boxes")
        for name in ("candidates", "counts"):
            _require(len(shape(getattr(op, name))) == 1, f"{name}: a number for every line")
