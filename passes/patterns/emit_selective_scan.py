"""An `abq.selective_scan` of what the steps of `selective_scan.py` read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from abqc.dialects import abq
from abqc.dialects.abq_recurrent import SelectiveScanOp
from abqc.dialects.mlir import arith, ir, linalg, tensor

from ..infrastructure import defining_op, operand_segments
from ..loops.elements import Element, Symbol
from ..loops.row_loops import over_rows
from ..resolve_dims import dimension_or_query
from .selective_scan import Step

STEP = "t"  # the symbol of the step

Sizes = Mapping[Symbol | None, int | ir.Value]


def emit_scan(
    step: Step, sizes: Sizes, initial: ir.Value | None, node: str
) -> tuple[ir.Value, ir.Value]:
    """y and the last state of the operation, whose operands are taken from what the step reads."""
    row, parameters = row_axes(step), [step.roles.batch, STEP, step.roles.state]
    operands = (
        taken(step.x, row, sizes),
        taken(step.delta, row, sizes),
        taken(step.a, [step.roles.channel, step.roles.state], sizes),
        taken(step.b, parameters, sizes),
        taken(step.c, parameters, sizes),
    )
    f32 = ir.F32Type.get()
    i64 = ir.IntegerType.get_signless(64)
    static = {name: s if isinstance(s, int) else abq.DYNAMIC for name, s in sizes.items()}
    scan = SelectiveScanOp(
        *operands,
        ir.IntegerAttr.get(i64, int(step.softplus)),
        ir.StringAttr.get(node),
        ir.RankedTensorType.get([static[axis] for axis in row], f32),
        ir.RankedTensorType.get([static[axis] for axis in state_axes(step)], f32),
        initial=initial,
    )
    if step.skip is None:
        return scan.y, scan.state
    skip = taken(step.skip, [step.roles.channel], sizes)
    y = over_rows([scan.y, operands[0]], _plus_product, columns=[skip])
    return y, scan.state


def _plus_product(elements: list[ir.Value]) -> ir.Value:
    y, x, skip = elements
    return arith.AddFOp(y, arith.MulFOp(x, skip).result).result


def size_of(value: ir.Value, axis: int) -> int | ir.Value:
    """The size of an axis, as what it was allocated with where that is known."""
    static = abq.shape(value)[axis]
    if static != abq.DYNAMIC:
        return static
    op = defining_op(value)
    while op is not None:
        number = abq.shape(op.results[0])[:axis].count(abq.DYNAMIC)
        if op.name == "tensor.empty":
            return op.operands[number]
        if op.name == "bufferization.alloc_tensor":
            segments = operand_segments(op)
            if not segments[1]:
                return op.operands[number]
            value = op.operands[segments[0]]
        elif op.name.startswith("linalg.") and len(op.results) == 1:
            value = op.operands[len(op.operands) - 1]
        else:
            break
        op = defining_op(value)
    return dimension_or_query(value, axis)


def has_kernel(state: ir.Value, order: Sequence[object], step: Step) -> bool:
    """Whether all is f32, and the numbers of channels and of states of a channel are known."""
    sizes = dict(zip(order, abq.shape(state), strict=True))
    values = [state, *(operand.value for operand in step.operands)]
    return abq.DYNAMIC not in (sizes[step.roles.channel], sizes[step.roles.state]) and all(
        isinstance(abq.element(value), ir.F32Type) for value in values
    )


def row_axes(step: Step) -> list[str]:
    return [step.roles.batch, STEP, step.roles.channel]


def state_axes(step: Step) -> list[str]:
    return [step.roles.batch, step.roles.channel, step.roles.state]


def taken(source: Element, axes: Sequence[str], sizes: Sizes) -> ir.Value:
    """The tensor over `axes` of the elements `source`."""
    value = _before(source.value)
    kept = [index.symbol for index in source.index if index.symbol is not None]
    if not _is_all(value, source, sizes):
        value = _sliced(value, source, sizes)
    elif len(kept) < len(source.index):
        value = _without_unit_axes(value, source)
    return transposed(value, kept, axes)


def is_constant(value: ir.Value) -> bool:
    """Whether a tensor can be made anywhere."""
    op = defining_op(value)
    return op is not None and op.name in ("abq.weight", "arith.constant")


def _before(value: ir.Value) -> ir.Value:
    """A constant again, at the insertion point."""
    op = defining_op(value)
    return op.clone().results[0] if op is not None and is_constant(value) else value


def _is_all(value: ir.Value, source: Element, sizes: Sizes) -> bool:
    """Whether the elements are known to be all of the tensor."""
    for axis, index in enumerate(source.index):
        size = 1 if index.symbol is None else sizes[index.symbol]
        if index.offset or (size != size_of(value, axis)):
            return False
    return True


def _sliced(value: ir.Value, source: Element, sizes: Sizes) -> ir.Value:
    wanted = [1 if i.symbol is None else sizes[i.symbol] for i in source.index]
    shape = [
        size if isinstance(size, int) else abq.DYNAMIC
        for size, index in zip(wanted, source.index, strict=True)
        if index.symbol is not None
    ]
    return tensor.ExtractSliceOp(
        ir.RankedTensorType.get(shape, abq.element(value)),
        value,
        [],
        [size for size in wanted if not isinstance(size, int)],
        [],
        [index.offset for index in source.index],
        [size if isinstance(size, int) else abq.DYNAMIC for size in wanted],
        [1] * len(wanted),
    ).result


def _without_unit_axes(value: ir.Value, source: Element) -> ir.Value:
    shape = abq.shape(value)
    kept = [axis for axis, index in enumerate(source.index) if index.symbol is not None]
    bounds = [0, *kept[1:], len(shape)]
    groups = [list(range(begin, end)) for begin, end in itertools.pairwise(bounds)]
    type_ = ir.RankedTensorType.get([shape[axis] for axis in kept], abq.element(value))
    return tensor.CollapseShapeOp(type_, value, groups).result


def transposed(value: ir.Value, axes: Sequence[object], wanted: Sequence[object]) -> ir.Value:
    """A tensor over `axes` with them in the order `wanted`."""
    order = [list(axes).index(axis) for axis in wanted]
    if order == list(range(len(order))):
        return value
    sizes = [size_of(value, axis) for axis in order]
    empty = tensor.EmptyOp(sizes, abq.element(value)).result
    return linalg.transpose(value, outs=[empty], permutation=order).operation.results[0]


def replace_value(old: ir.Value, new: ir.Value) -> None:
    if old.type != new.type:
        new = tensor.CastOp(old.type, new).result
    old.replace_all_uses_with(new)
