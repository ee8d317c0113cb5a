"""What a reduction makes of every element of a convolution's result is a loop of its own again.

    max over a window of prelu(conv(x))        the loop prelu, then the reduction
    sum over an image of silu(conv(x))

Loops were fused with what reads them. The convolution takes this one as its epilogue, so that it is
in registers, and computed once where windows overlap.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir, tensor

from .infrastructure import Unit, defining_op, is_used, register, users, walk
from .loops.axis_blocks import parallel_loop
from .loops.generics import clone_op, groups, inputs, iterators, maps, without_unit_axes
from .resolve_dims import mixed_sizes

_CONVOLUTIONS = ("abq.direct_conv", "abq.code_conv")


@register
def split_reductions(module: ir.Operation, unit: Unit) -> None:
    """Take what reductions compute of single elements of convolutions out of them."""
    for op in walk(module, "linalg.generic"):
        if len(op.results) == 1 and "reduction" in iterators(op):
            _split(op)


def _split(op: ir.Operation) -> None:
    combined = _combined(op)
    body = None if combined is None else _slice(combined)
    if combined is None or not body:
        return
    block = op.regions[0].blocks[0]
    numbers = [
        i for i, argument in enumerate(list(block.arguments)[:-1]) if _is_read(argument, body)
    ]
    found = next((i for i in numbers if _is_of_convolution(op, i)), None)
    if found is None or combined.type != abq.element(op.operands[found]):
        return
    value, others = op.operands[found], [i for i in numbers if i != found]
    x = without_unit_axes(value)
    indices = _indices(value, maps(op)[found])
    reads = [_by(indices, maps(op)[i]) for i in others]
    known = [map_ for map_ in reads if map_ is not None]
    if len(known) < len(others):
        return
    with ir.InsertionPoint(op), op.location:
        init = tensor.EmptyOp(mixed_sizes(x), abq.element(x)).result
        identity = ir.AffineMap.get_identity(len(abq.shape(x)))
        operands = [x, *(op.operands[i] for i in others)]
        arguments = [block.arguments[i] for i in (found, *others)]
        made = parallel_loop(
            operands,
            [identity, *known],
            init,
            lambda elements: _cloned(body, dict(zip(arguments, elements, strict=True)), combined),
        )
        if x != value:
            wide = value.owner.clone().operation
            wide.operands[0] = made
            made = wide.results[0]
    op.operands[found] = made
    if x != value and not is_used(value):  # for its sizes
        value.owner.erase()
    combined.replace_all_uses_with(block.arguments[found])
    for inner in reversed(body):
        if not any(is_used(result) for result in inner.results):
            inner.erase()


def _combined(op: ir.Operation) -> ir.Value | None:
    """What the body adds to its accumulator, where that is one operation that it yields."""
    block = op.regions[0].blocks[0]
    *rest, last = block.operations
    accumulator = block.arguments[len(block.arguments) - 1]
    readers = [user.operation for user in users(accumulator)]
    made = defining_op(last.operation.operands[0])
    if not rest or made is None or readers != [made] or len(made.operands) != 2:
        return None
    a, b = made.operands
    return b if a == accumulator else a


def _slice(value: ir.Value) -> list[ir.Operation]:
    """The operations of a body that make a value, in order; none where they are not of numbers
    alone."""
    owner = defining_op(value)
    if owner is None:
        return []
    found: set[ir.Operation] = set()
    pending = [value]
    while pending:
        op = defining_op(pending.pop())
        if op is None or op in found or op.block != owner.block:
            continue
        if op.name.partition(".")[0] not in ("arith", "math") or len(op.results) != 1:
            return []
        found.add(op)
        pending += op.operands
    return [inner.operation for inner in owner.block.operations if inner.operation in found]


def _is_read(argument: ir.Value, body: list[ir.Operation]) -> bool:
    return any(operand == argument for op in body for operand in op.operands)


def _expands(reshape: ir.Operation | None, x: ir.Value) -> bool:
    if reshape is None or reshape.name != "tensor.expand_shape":
        return False
    return bool(reshape.operands[0] == x)


def _is_of_convolution(op: ir.Operation, number: int) -> bool:
    """Whether an input is what a convolution makes, for this loop alone; axes of size 1 may have
    been added."""
    value = op.operands[number]
    x = without_unit_axes(value)
    made, reshape = defining_op(x), defining_op(value)
    if made is None or made.name not in _CONVOLUTIONS or made.block != op.block:
        return False
    if x != value and not _expands(reshape, x):
        return False
    readers = [user.operation for each in (x, value) for user in users(each)]
    return (
        inputs(op).count(value) == 1
        and isinstance(abq.element(value), ir.F32Type)
        and all(user in (op, reshape) or user.name == "tensor.dim" for user in readers)
    )


def _indices(value: ir.Value, map_: ir.AffineMap) -> list[ir.AffineExpr]:
    """Those of `map_`, which reads `value`, that are indices of what it was without the axes of
    size 1 that were added."""
    owner = defining_op(value)
    if owner is None or owner.name != "tensor.expand_shape":
        return list(map_.results)
    shape = abq.shape(value)
    kept = [max(group, key=lambda axis: shape[axis] != 1) for group in groups(owner)]
    return [map_.results[axis] for axis in kept]


def _by(indices: list[ir.AffineExpr], other: ir.AffineMap) -> ir.AffineMap | None:
    """The map from these indices of a tensor to what `other` reads."""
    places: list[ir.AffineExpr] = []
    for expression in other.results:
        axes = [axis for axis, index in enumerate(indices) if index == expression]
        if axes:
            places.append(ir.AffineDimExpr.get(axes[0]))
        elif isinstance(expression, ir.AffineConstantExpr):
            places.append(expression)
        else:
            return None
    return ir.AffineMap.get(len(indices), 0, places)


def _cloned(body: list[ir.Operation], known: dict[ir.Value, ir.Value], value: ir.Value) -> ir.Value:
    """Clone operations at the insertion point; what `value` is there."""
    for op in body:
        clone_op(op, known)
    return known[value]
