"""Every buffer is given back after its last use, so that the arena stays small.

Buffers flow through views (subview, cast, expand, collapse) only; a buffer that a loop or a branch
yields, or that the function returns, is left to the end of the run.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir, memref

from .infrastructure import Unit, register, users, walk

VIEWS = frozenset(
    (
        "memref.cast",
        "memref.collapse_shape",
        "memref.expand_shape",
        "memref.memory_space_cast",
        "memref.reinterpret_cast",
        "memref.reshape",
        "memref.subview",
        "memref.transpose",
        "memref.view",
    )
)
ESCAPES = frozenset(("func.return", "scf.yield", "scf.condition", "cf.br", "cf.cond_br", "scf.for",
                     "scf.while"))  # fmt: skip


@register
def insert_frees(module: ir.Operation, unit: Unit) -> None:
    """Insert memref.dealloc after the last use of every memref.alloc."""
    for op in walk(module, "memref.alloc"):
        last = _last_use(op)
        if last is not None:
            with ir.InsertionPoint.after(last), op.location:
                memref.DeallocOp(op.results[0])


def _last_use(alloc: ir.Operation) -> ir.Operation | None:
    """The last operation of the block in or under which the buffer is used; None if it escapes."""
    last = alloc
    pending = [alloc.results[0]]
    while pending:
        for user in users(pending.pop()):
            op = user.operation
            if op.name in ESCAPES:
                return None
            if op.name in VIEWS:
                pending.append(op.results[0])
            elif any(isinstance(r.type, ir.MemRefType) for r in op.results):
                return None  # an unknown way to make an alias
            outer = _in_block(op, alloc.block)
            if last.is_before_in_block(outer):
                last = outer
    return last


def _in_block(op: ir.Operation, block: ir.Block) -> ir.Operation:
    """The ancestor of `op` that stands in `block`."""
    while op.block != block:
        op = op.block.owner.operation
    return op
