"""The heads of attention, which the factors of its products have in their batch.

A factor is [B * H, M, D], or [B * H, D, M] where it is `swapped`. Either heads were an axis of
their own before a collapse, or the model has them in one batch from the start (`Heads.flat`). A
transpose before that is read in place where attention can, or made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg, tensor

from ..infrastructure import defining_op, users
from ..loops.generics import expression, groups, inputs, is_elementwise
from ..resolve_dims import dimension_or_query, mixed_sizes
from .softmax import operand_in_order

IN_BATCH = [[0, 1], [2], [3]]
_IN_ROWS = [[0], [1, 2], [3]]
_ROWS_AND_HEADS = (0, 2, 1, 3)

Sizes = Sequence[int | ir.Value]


@dataclass(frozen=True)
class Heads:
    """`scale` times `value` is the factor, as [B, H, M, D], or [B, M, H, D] with `rows_first`.

    `order`: of a transpose of `value` that is still to be made. `flat`: [B * H, M, D].
    """

    value: ir.Value
    rows_first: int = 0
    scale: float = 1.0
    order: tuple[int, ...] | None = None
    flat: bool = False

    def made(self) -> Heads:
        """With its transpose, at the insertion point."""
        if self.order is None:
            return self
        sizes = mixed_sizes(self.value)
        empty = tensor.EmptyOp([sizes[i] for i in self.order], abq.element(self.value)).result
        made = linalg.transpose(self.value, outs=[empty], permutation=list(self.order))
        return replace(self, value=made.operation.results[0], order=None)

    def apart(self, batch_and_heads: Sizes) -> Heads:
        """With heads as an axis of their own, at the insertion point."""
        if not self.flat:
            return self
        sizes = [*batch_and_heads, *mixed_sizes(self.value)[1:]]
        shape = [size if isinstance(size, int) else abq.DYNAMIC for size in sizes]
        dynamic = [size for size in sizes if not isinstance(size, int)]
        element, flat = abq.element(self.value), abq.shape(self.value)
        flat[0] = abq.DYNAMIC if abq.DYNAMIC in shape[:2] else shape[0] * shape[1]
        value = self.value
        if flat != abq.shape(value):  # one knows more than the other
            value = tensor.CastOp(ir.RankedTensorType.get(flat, element), value).result
        type_ = ir.RankedTensorType.get(shape, element)
        value = tensor.ExpandShapeOp(type_, value, IN_BATCH, dynamic, shape).result
        return replace(self, value=value, flat=False)

    def batch_and_heads(self) -> Sizes:
        """The sizes of both axes, made at the insertion point where a run alone knows them."""
        axes = (0, 2) if self.rows_first else (0, 1)
        shape = abq.shape(self.value)
        return [
            shape[axis] if shape[axis] != abq.DYNAMIC else dimension_or_query(self.value, axis)
            for axis in axes
        ]


def match_heads(value: ir.Value, *, scaled: bool = False, swapped: bool = False) -> Heads | None:
    """The heads in the batch of `value`; None where it is `swapped`, but by no transpose.

    `scaled`: a factor may be taken off them.
    """
    collapse = collapse_of_heads(value)
    flat = collapse is None
    whole = value if collapse is None else collapse.operands[0]
    value, scale = _unscaled(whole) if scaled else (whole, 1.0)
    order = permutation(value)
    if not swapped:
        if order != _ROWS_AND_HEADS:
            return Heads(value, scale=scale, flat=flat)
        source, more = _unscaled(_source(value)) if scaled else (_source(value), 1.0)
        return Heads(source, 1, scale * more)
    if order is None:
        return None
    source, more = _unscaled(_source(value)) if scaled else (_source(value), 1.0)
    rows = (*order[:-2], order[-1], order[-2])
    if rows == tuple(range(len(rows))):
        return Heads(source, scale=scale * more, flat=flat)
    if rows == _ROWS_AND_HEADS:
        return Heads(source, 1, scale * more)
    return Heads(source, scale=scale * more, order=rows, flat=flat)


def collapse_of_heads(value: ir.Value) -> ir.Operation | None:
    """The reshape [B, H, ., .] -> [B * H, ., .] that makes `value`."""
    op = defining_op(value)
    if op is None or op.name != "tensor.collapse_shape" or groups(op) != IN_BATCH:
        return None
    return op


def permutation(value: ir.Value) -> tuple[int, ...] | None:
    """Of the transpose that makes `value`."""
    op = defining_op(value)
    if op is None or op.name != "linalg.transpose":
        return None
    return tuple(ir.DenseI64ArrayAttr(op.attributes["permutation"]))


def collapse_from_four_axes(product: ir.Operation) -> None:
    """Factors that were collapsed from more axes, some of size 1, are collapsed from four.

    So exporters spell grouped queries of which a head is repeated once.
    """
    for number, value in enumerate(product.operands):
        op = defining_op(value)
        if op is None or op.name != "tensor.collapse_shape":
            continue
        axes = groups(op)
        units = [i for i in axes[0][1:] if abq.shape(op.operands[0])[i] == 1]
        many = len(axes[0]) - 2
        if len(axes) != 3 or len(axes[1]) != 1 or len(axes[2]) != 1 or not 0 < many <= len(units):
            continue
        with ir.InsertionPoint(product), product.location:
            four = _without(op.operands[0], units[:many])
            product.operands[number] = tensor.CollapseShapeOp(value.type, four, IN_BATCH).result


def put_one_head_in_batch(product: ir.Operation) -> None:
    """A single head [B, 1, ., .] that importers count among the rows of a product's factors and
    result is one of the batch: the same elements, read as `collapse_of_heads` does."""
    makers = [defining_op(value) for value in product.operands]
    for op in (*makers, *(user.operation for user in users(product.results[0]))):
        if op is None or op.name not in ("tensor.collapse_shape", "tensor.expand_shape"):
            continue
        whole = op.operands[0] if op.name == "tensor.collapse_shape" else op.results[0]
        if groups(op) == _IN_ROWS and abq.shape(whole)[1] == 1:
            i64 = ir.IntegerType.get_signless(64)
            axes = [ir.ArrayAttr.get([ir.IntegerAttr.get(i64, i) for i in g]) for g in IN_BATCH]
            op.attributes["reassociation"] = ir.ArrayAttr.get(axes)


def _without(value: ir.Value, units: list[int]) -> ir.Value:
    """A tensor without some axes of size 1; a transpose of one is a transpose of less."""
    order = permutation(value)
    if order is None:
        return _collapsed(value, units)
    source = _collapsed(_source(value), sorted(order[i] for i in units))
    kept = [axis for i, axis in enumerate(order) if i not in units]
    smaller = tuple(sorted(kept).index(axis) for axis in kept)
    return Heads(source, order=smaller).made().value


def _collapsed(value: ir.Value, units: list[int]) -> ir.Value:
    kept: list[list[int]] = []
    first: list[int] = []
    for axis in range(len(abq.shape(value))):
        if axis not in units:
            kept.append([*first, axis])
            first = []
        elif kept:
            kept[-1].append(axis)
        else:
            first.append(axis)
    shape = [next((abq.shape(value)[i] for i in group if i not in units), 1) for group in kept]
    type_ = ir.RankedTensorType.get(shape, abq.element(value))
    return tensor.CollapseShapeOp(type_, value, kept).result


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """What a loop multiplied by a constant, and the constant."""
    op = defining_op(value)
    if not is_elementwise(op):
        return value, 1.0
    tree, source = expression(op), operand_in_order(op, 0) if inputs(op) else None
    if source is None or len(tree) != 3 or tree[0] != "arith.mulf":
        return value, 1.0
    factors = [side[1] for side in tree[1:] if side[0] == "const"]
    if len(factors) != 1 or ("in", 0) not in tree or source.type != value.type:
        return value, 1.0
    return source, factors[0]


def _source(value: ir.Value) -> ir.Value:
    """What a transpose reads."""
    op = defining_op(value)
    assert op is not None
    return op.operands[0]
