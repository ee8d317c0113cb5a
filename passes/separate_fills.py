"""Every reduction gets a fill of its own.

`cse` merges equal fills; bufferization would then copy the one buffer for all users but the last.
Filling again costs less, and a fill with one user is folded into it by outline-kernels. What a loop
makes in every iteration has a buffer of the iteration, which it can hand on without a copy.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, register, walk


@register
def separate_fills(module: ir.Operation, unit: Unit) -> None:
    """Give every user of a linalg.fill or tensor.empty its own."""
    for op in walk(module, "linalg.fill"):
        _separate(op)
    for op in walk(module):
        if op.name in ("tensor.expand_shape", "tensor.collapse_shape"):
            source = defining_op(op.operands[0])
            if source is not None and source.name == "tensor.empty":
                _separate(op)
    for op in walk(module, "tensor.empty"):
        _separate(op)


def _separate(op: ir.Operation) -> None:
    moves = op.name == "tensor.empty"
    uses = list(op.results[0].uses)
    own = [use for use in uses if not moves or use.owner.operation.block == op.block]
    for use in [use for use in uses if use not in own[:1]]:
        with ir.InsertionPoint(use.owner), op.location:
            clone = op.clone()
        use.owner.operands[use.operand_number] = clone.results[0]
