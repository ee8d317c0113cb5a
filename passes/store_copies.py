"""A loop stores what would be copied behind it at both places.

    y = loop(...)     copy(y, rows[t])     ->     y, rows[t] = loop(...)

So a step of a recurrence, whose new state is a row of the result too, is one launch less.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir, linalg

from .infrastructure import Unit, defining_op, is_used, operand_segments, register, walk
from .loops.effects import can_move
from .loops.generics import groups, is_identity, maps
from .ownership import root, uses

_RESHAPES = ("memref.collapse_shape", "memref.expand_shape")


@register
def store_copies(module: ir.Operation, unit: Unit) -> None:
    """Make copies of what loops have made a result of these."""
    for copy in walk(module, "memref.copy"):
        found = _made_by(copy)
        if found is None:
            continue
        loop, number = found
        map_ = _map_of_copy(copy, loop, number)
        if map_ is not None and _is_apart(copy.operands[1], loop) and _can_stand_at(copy, loop):
            _store_too(loop, number, copy, map_)


def _made_by(copy: ir.Operation) -> tuple[ir.Operation, int] | None:
    """The loop that writes the copied buffer, the last one before the copy to touch it, and the
    number of the operand that this is."""
    behind = [
        (op, number)
        for op, number in uses(root(copy.operands[0]))
        if op.block == copy.block and op.is_before_in_block(copy) and op.name != "memref.dim"
    ]
    loops = [(op, number) for op, number in behind if op.name == "linalg.generic"]
    for op, number in loops:
        last = all(other == op or other.is_before_in_block(op) for other, _ in behind)
        if last and number >= _inputs(op):
            return op, number
    return None


def _inputs(loop: ir.Operation) -> int:
    return operand_segments(loop)[0]


def _map_of_copy(copy: ir.Operation, loop: ir.Operation, number: int) -> ir.AffineMap | None:
    """Where the loop finds its element in what is copied to; None where it cannot know that."""
    value, made = copy.operands[0], loop.operands[number]
    if "reduction" in linalg.iterators(loop) or not is_identity(maps(loop)[number]):
        return None
    if len(loop.regions[0].blocks[0].operations) == 1:
        return None  # it moves elements, which is done by blocks where it turns them
    type_ = ir.MemRefType(copy.operands[1].type)
    if ir.MemRefType(value.type).shape != type_.shape:
        return None  # which axes are of size 1 is known of one of them alone
    if not _differ_by_unit_axes(value, made) or type_.get_strides_and_offset()[0][-1:] != [1]:
        return None
    loops = iter(d for d, size in enumerate(ir.MemRefType(made.type).shape) if size != 1)
    results: list[ir.AffineExpr] = [
        ir.AffineConstantExpr.get(0) if size == 1 else ir.AffineDimExpr.get(next(loops))
        for size in type_.shape
    ]
    return ir.AffineMap.get(maps(loop)[number].n_dims, 0, results)


def _differ_by_unit_axes(value: ir.Value, made: ir.Value) -> bool:
    """Whether a buffer is another one but for axes of size 1 that were added or removed."""
    while value != made:
        op = defining_op(value)
        if op is None or op.name not in _RESHAPES:
            return False
        wide = op.results[0] if op.name == "memref.expand_shape" else op.operands[0]
        shape = ir.MemRefType(wide.type).shape
        if any(sum(shape[axis] != 1 for axis in group) > 1 for group in groups(op)):
            return False
        value = op.operands[0]
    return True


def _is_apart(target: ir.Value, loop: ir.Operation) -> bool:
    """Whether what is copied to surely is no buffer that the loop touches."""
    operands = {o for op in walk(loop) for o in op.operands}
    buffers = [o for o in operands if isinstance(o.type, ir.MemRefType)]
    own = _allocations(root(target), frozenset())
    others = [_allocations(root(buffer), frozenset()) for buffer in buffers]
    return own is not None and all(other is not None and not own & other for other in others)


def _allocations(value: ir.Value, seen: frozenset[ir.Value]) -> frozenset[ir.Value] | None:
    """The allocations and weights that a buffer may be; None where others may be, too."""
    if value in seen:
        return frozenset()
    op = defining_op(value)
    if op is not None:
        return frozenset([value]) if op.name in ("memref.alloc", "memref.get_global") else None
    block = value.owner
    assert isinstance(block, ir.Block)
    loop = block.owner.operation
    number = ir.BlockArgument(value).arg_number
    if loop.name == "func.func":
        return frozenset([value])
    if loop.name != "scf.for" or number == 0:
        return None
    end = block.operations[len(block.operations) - 1].operation
    first = _allocations(root(loop.operands[number + 2]), seen | {value})
    further = _allocations(root(end.operands[number - 1]), seen | {value})
    return None if first is None or further is None else first | further


def _can_stand_at(copy: ir.Operation, loop: ir.Operation) -> bool:
    """Whether the loop can move to its copy: what that writes may be known there only."""
    return copy.block == loop.block and can_move(loop, copy)


def _store_too(loop: ir.Operation, number: int, copy: ir.Operation, map_: ir.AffineMap) -> None:
    target = copy.operands[1]
    block = loop.regions[0].blocks[0]
    block.add_argument(ir.MemRefType(target.type).element_type, loop.location)
    end = block.operations[len(block.operations) - 1].operation
    with ir.InsertionPoint(end), end.location:
        linalg.YieldOp([*end.operands, end.operands[number - _inputs(loop)]])
    end.erase()
    attributes = {name: loop.attributes[name] for name in loop.attributes}
    attributes["operandSegmentSizes"] = ir.DenseI32ArrayAttr.get(
        [_inputs(loop), len(loop.operands) - _inputs(loop) + 1]
    )
    attributes["indexing_maps"] = ir.ArrayAttr.get(
        [*ir.ArrayAttr(loop.attributes["indexing_maps"]), ir.AffineMapAttr.get(map_)]
    )
    with ir.InsertionPoint(copy):
        made = ir.Operation.create(
            "linalg.generic",
            operands=[*loop.operands, target],
            attributes=attributes,
            regions=1,
            loc=loop.location,
        )
    block.append_to(made.regions[0])
    loop.erase()
    source = copy.operands[0]
    copy.erase()
    _drop_views(source)


def _drop_views(value: ir.Value) -> None:
    """Erase the views behind a buffer that only the copy has used."""
    op = defining_op(value)
    while op is not None and op.name in _RESHAPES and not is_used(value):
        value = op.operands[0]
        op.erase()
        op = defining_op(value)
