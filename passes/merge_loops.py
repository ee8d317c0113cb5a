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
from .loops.effects import conflicts, read_and_written

MAX_LOOPS = 4  # of a kernel


@register
def merge_loops(module: ir.Operation, unit: Unit) -> None:
    """Bring independent loops together and mark them."""
    for op in walk(module):
        for region in op.regions:
            for block in region.blocks:
                _merge([inner.operation for inner in block.operations])


def _merge(operations: list[ir.Operation]) -> None:
    """Merge the loops of a block, whose operations these are in their order."""
    merged: list[ir.Operation] = []
    for first in [op for op in operations if _is_plain(op)]:
        if first in merged:
            continue
        group = _group(operations[operations.index(first) :], merged)
        *others, last = group
        if not others:
            continue
        merged += group
        for member in others:
            member.move_before(last)
            member.attributes[WITH_NEXT] = ir.UnitAttr.get()
            operations.remove(member)
        at = operations.index(last)
        operations[at:at] = others


def _group(operations: list[ir.Operation], merged: list[ir.Operation]) -> list[ir.Operation]:
    """The first one and those behind it that join it: all can stand where the last one does. Those
    that are `merged` already do not."""
    group = operations[:1]
    for op in operations[1:]:
        if len(group) == MAX_LOOPS or any(conflicts(member, op) for member in group):
            break
        if not _is_plain(op) or op in merged:
            continue
        if any(conflicts(op, member) for member in group):
            break
        group.append(op)
    return group


def _is_plain(op: ir.Operation) -> bool:
    """Whether every element is made by itself, of buffers, without a check. Fills stay where they
    are: reductions take them over."""
    if op.name != "linalg.generic":
        return False
    buffers = bool(read_and_written(op)[0]) and all(
        isinstance(operand.type, ir.MemRefType) for operand in op.operands
    )
    return buffers and "reduction" not in linalg.iterators(op) and not checks_of(op)
