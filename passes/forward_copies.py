"""A buffer that nothing changes after it was copied takes the place of its copy.

What an iteration or a branch hands on is a copy that it owns (onnx_import/building/regions.py):
where the original is a buffer of the same block that is at most read behind the copy, and no more
once the copy is used, it can be handed on itself.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, operand_segments, register, walk
from .ownership import escapes, in_block, root, uses

# Views of all elements, in their order.
_WHOLE = frozenset(("memref.cast", "memref.collapse_shape", "memref.expand_shape"))

# What only reads its first operand.
_READERS = frozenset(("memref.copy", "memref.dim", "memref.load"))


@register
def forward_copies(module: ir.Operation, unit: Unit) -> None:
    """Erase copies of buffers that end there."""
    for op in walk(module, "memref.copy"):
        source, target = op.operands
        if source.type == target.type and _begins_at(target, op) and _ends_at(source, op):
            target.replace_all_uses_except(source, [op])
            allocation = defining_op(target)
            op.erase()
            assert allocation is not None
            allocation.erase()


def _ends_at(source: ir.Value, copy: ir.Operation) -> bool:
    """Whether a buffer of the block is copied as a whole, and behind that only read, before what it
    is copied to is used."""
    owner = root(source)
    made = defining_op(owner)
    if made is None or made.name != "memref.alloc" or made.block != copy.block:
        return False
    if not _is_whole(source, owner) or escapes(owner):
        return False
    readers = _behind(owner, copy)
    users = [in_block(op, copy.block) for op, _ in _behind(copy.operands[1], copy)]
    return all(
        _reads(op, number) and all(in_block(op, copy.block).is_before_in_block(u) for u in users)
        for op, number in readers
    )


def _behind(buffer: ir.Value, copy: ir.Operation) -> list[tuple[ir.Operation, int]]:
    """The uses of a buffer behind its copy."""
    return [
        (op, number)
        for op, number in uses(buffer)
        if copy.is_before_in_block(in_block(op, copy.block))
    ]


def _reads(op: ir.Operation, number: int) -> bool:
    """Whether an operation only reads the buffer that is operand `number`."""
    if op.name == "linalg.generic":
        return number < operand_segments(op)[0]
    return op.name in _READERS and number == 0


def _is_whole(view: ir.Value, owner: ir.Value) -> bool:
    while view != owner:
        op = defining_op(view)
        if op is None or op.name not in _WHOLE:
            return False
        view = op.operands[0]
    return True


def _begins_at(target: ir.Value, copy: ir.Operation) -> bool:
    """Whether a buffer of the block is used after the copy into it alone."""
    made = defining_op(target)
    if made is None or made.name != "memref.alloc" or made.block != copy.block:
        return False
    others = [use.owner.operation for use in target.uses if use.owner.operation != copy]
    return all(copy.is_before_in_block(in_block(op, copy.block)) for op in others)
