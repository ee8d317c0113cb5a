"""A buffer that nothing reads after it was copied takes the place of its copy.

What an iteration or a branch hands on is a copy that it owns (onnx_import/building/regions.py):
where the original is a buffer of the same block whose last use is the copy, it can be handed on
itself.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, register, walk
from .ownership import escapes, in_block, last_use, root

# Views of all elements, in their order.
_WHOLE = frozenset(("memref.cast", "memref.collapse_shape", "memref.expand_shape"))


@register
def forward_copies(module: ir.Operation, unit: Unit) -> None:
    """Erase copies of buffers that end there."""
    for op in walk(module, "memref.copy"):
        source, target = op.operands
        if _ends_at(source, op) and _begins_at(target, op) and source.type == target.type:
            target.replace_all_uses_except(source, [op])
            allocation = defining_op(target)
            op.erase()
            assert allocation is not None
            allocation.erase()


def _ends_at(source: ir.Value, copy: ir.Operation) -> bool:
    """Whether a buffer of the block is copied as a whole, and then used no more."""
    owner = root(source)
    made = defining_op(owner)
    if made is None or made.name != "memref.alloc" or made.block != copy.block:
        return False
    return _is_whole(source, owner) and not escapes(owner) and last_use(owner) == copy


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
