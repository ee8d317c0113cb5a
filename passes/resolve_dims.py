"""`tensor.dim` of an abq result becomes a dimension of its operands.

Operations of a Python dialect reify no shapes, so upstream's resolve-shaped-type-result-dims stops
at them; with these rules it does not have to see them.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, tensor

from .infrastructure import Unit, constant_index, defining_op, register, walk


@register
def resolve_dims(module: ir.Operation, unit: Unit) -> None:
    """Express the dimensions of abq results and reshapes by those of their operands."""
    for op in walk(module, "tensor.dim"):
        axis = constant_index(op.operands[1])
        if axis is None:
            continue
        with ir.InsertionPoint(op), op.location:
            size = dimension(op.operands[0], axis)
        if size is not None:
            op.results[0].replace_all_uses_with(size)
            op.erase()


def index(value: int) -> ir.Value:
    return arith.ConstantOp(
        ir.IndexType.get(), ir.IntegerAttr.get(ir.IndexType.get(), value)
    ).result


def dimension(value: ir.Value, axis: int) -> ir.Value | None:
    """The size of one axis, as a value at the insertion point; None where no rule knows better."""
    static = ir.RankedTensorType(value.type).shape[axis]
    if static != abq.DYNAMIC:
        return index(static)
    owner = defining_op(value)
    if owner is None:
        return None
    rule = _RULES.get(owner.name)
    return rule(owner, axis) if rule else None


def dimension_or_query(value: ir.Value, axis: int) -> ir.Value:
    """The size of one axis, by a rule or by `tensor.dim`."""
    size = dimension(value, axis)
    return size if size is not None else tensor.DimOp(value, index(axis)).result


def mixed_sizes(value: ir.Value) -> list[int | ir.Value]:
    """The sizes of a tensor, as numbers where they are static: what tensor.empty takes."""
    return [
        size if size != abq.DYNAMIC else dimension_or_query(value, axis)
        for axis, size in enumerate(abq.shape(value))
    ]


def expand_shape(value: ir.Value, groups: list[list[int]], shape: list[int]) -> ir.Value:
    """A tensor with its axes cut; sizes of `shape` that are not static are its own, in order."""
    dynamic = [size for size in mixed_sizes(value) if not isinstance(size, int)]
    type_ = ir.RankedTensorType.get(shape, abq.element(value))
    return tensor.ExpandShapeOp(type_, value, groups, dynamic, shape).result


def _of_first_operand(op: ir.Operation, axis: int) -> ir.Value | None:
    return dimension_or_query(op.operands[0], axis)


def _gather(op: ir.Operation, axis: int) -> ir.Value | None:
    return dimension_or_query(op.operands[1], axis)


def _reshape(op: ir.Operation, axis: int) -> ir.Value | None:
    shape = defining_op(op.operands[1])
    if shape is None or shape.name != "tensor.from_elements":
        return None
    element = shape.operands[axis]
    if isinstance(element.type, ir.IndexType):
        return element
    return arith.IndexCastOp(ir.IndexType.get(), element).result


def _collapse(op: ir.Operation, axis: int) -> ir.Value | None:
    """Not asked of the result, which would have to be made for it: of a cache, by a copy."""
    (first, *others) = ir.ArrayAttr(ir.ArrayAttr(op.attributes["reassociation"])[axis])
    size = dimension_or_query(op.operands[0], ir.IntegerAttr(first).value)
    for other in others:
        more = dimension_or_query(op.operands[0], ir.IntegerAttr(other).value)
        size = arith.MulIOp(size, more).result
    return size


def _samples(op: ir.Operation, axis: int) -> ir.Value | None:
    return dimension_or_query(op.operands[0], 0)


def _attention(op: ir.Operation, axis: int) -> ir.Value | None:
    """Rows, heads and batch of y are those of q, which may have them in another order."""
    of_q, _, _, of_y = ir.DenseI64ArrayAttr(op.attributes["rows_first"])
    if axis == 3:
        return dimension_or_query(op.operands[2], 3)
    if axis in (1, 2) and of_q != of_y:
        axis = 3 - axis
    return dimension_or_query(op.operands[0], axis)


def _update(op: ir.Operation, axis: int) -> ir.Value | None:
    along = ir.IntegerAttr(op.attributes["axis"]).value
    return op.operands[3] if axis == along else dimension_or_query(op.operands[1], axis)


def _top_k(op: ir.Operation, axis: int) -> ir.Value | None:
    along = ir.IntegerAttr(op.attributes["axis"]).value
    return op.operands[1] if axis == along else dimension_or_query(op.operands[0], axis)


def _selective_scan(op: ir.Operation, axis: int) -> ir.Value | None:
    """Samples and steps of y are those of x, samples of the state too; all else is static."""
    return dimension_or_query(op.operands[0], axis)


def _direct_conv(op: ir.Operation, axis: int) -> ir.Value | None:
    """Samples are those of the planes, channels are static, the last axis is the width."""
    view = op.opview
    if axis == 0:
        return dimension_or_query(view.planes, 0)
    return view.width if axis == len(abq.shape(view.result)) - 1 else view.height


def _max_pool(op: ir.Operation, axis: int) -> ir.Value | None:
    """Samples and channels are those of the image."""
    view = op.opview
    return (None, None, view.height, view.width)[axis] or dimension_or_query(view.x, axis)


def _polyphase(op: ir.Operation, axis: int) -> ir.Value | None:
    """Samples are those of the image, planes are static."""
    view = op.opview
    return (None, None, view.rows, view.pitch)[axis] or dimension_or_query(view.x, 0)


def _code_conv(op: ir.Operation, axis: int) -> ir.Value | None:
    """Likewise; the last axis is one of columns."""
    if axis < 2:
        return None if axis else dimension_or_query(op.opview.planes, 0)
    rank = ir.RankedTensorType(op.results[0].type).rank
    return op.opview.width if axis == rank - 1 else op.opview.height


def _pack_planes(op: ir.Operation, axis: int) -> ir.Value | None:
    return dimension_or_query(op.operands[0], 0) if axis == 0 else None


_RULES = {
    "abq.attention": _attention,
    "abq.attention_pack": _attention,
    "abq.measure": _samples,
    "abq.matmul": _of_first_operand,
    "abq.fused_matmul": _of_first_operand,
    "abq.norm": _of_first_operand,
    "abq.norm_pack": _of_first_operand,
    "abq.selective_scan": _selective_scan,
    "abq.softmax": _of_first_operand,
    "abq.arg_extreme": _of_first_operand,
    "abq.scan": _of_first_operand,
    "abq.hadamard": _of_first_operand,
    "abq.quantize_cache": _of_first_operand,
    "abq.dequantize_cache": _of_first_operand,
    "abq.permute_channels": _of_first_operand,
    "abq.pack": _of_first_operand,
    "abq.fused_pack": _of_first_operand,
    "abq.quantize": _of_first_operand,
    "abq.dequantize": _of_first_operand,
    "abq.fake_quantize": _of_first_operand,
    "abq.direct_conv": _direct_conv,
    "abq.max_pool": _max_pool,
    "abq.polyphase": _polyphase,
    "abq.code_conv": _code_conv,
    "abq.pack_planes": _pack_planes,
    "abq.gather": _gather,
    "abq.scatter": _of_first_operand,
    "abq.top_k": _top_k,
    "abq.update": _update,
    "tensor.collapse_shape": _collapse,
    "tensor.reshape": _reshape,
}
