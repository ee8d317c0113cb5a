"""Loops that do not depend on each other become one kernel, whose grid has the blocks of each.

    turned queries, turned keys (to the cache), values (to the cache)      one launch

A loop moves down to the last one of its group; all but that have the attribute `abq.with_next`,
which `outline-gpu-kernels` reads. Loops over the elements of their results are merged, not
reductions; what stands between them must not touch what they write, nor write what they read.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir, linalg

from .infrastructure import Unit, register, walk
from .kernels.checks import checks_of
from .kernels.launch import WITH_NEXT
from .loops.effects import can_move, conflicts, read_and_written

MAX_LOOPS = 4  # of a kernel


@register
def merge_loops(module: ir.Operation, unit: Unit) -> None:
    """Bring independent loops together and mark them."""
    loops = [op for op in walk(module, "linalg.generic") if _is_plain(op)]
    while loops:
        group = [loops.pop(0)]
        for op in list(loops):
            if len(group) < MAX_LOOPS and _joins(op, group):
                loops.remove(op)
                for member in group:
                    member.move_before(op)
                group.append(op)
        for member in group[:-1]:
            member.attributes[WITH_NEXT] = ir.UnitAttr.get()


def _is_plain(op: ir.Operation) -> bool:
    """Whether every element is made by itself, of buffers, without a check. Fills stay where they
    are: reductions take them over."""
    buffers = bool(read_and_written(op)[0]) and all(
        isinstance(operand.type, ir.MemRefType) for operand in op.operands
    )
    return buffers and "reduction" not in linalg.iterators(op) and not checks_of(op)


def _joins(op: ir.Operation, group: list[ir.Operation]) -> bool:
    """Whether all of the group can stand right before `op`, and independent of it."""
    if op.block != group[0].block:
        return False
    return all(
        not conflicts(member, op) and not conflicts(op, member) and can_move(member, op)
        for member in group
    )
