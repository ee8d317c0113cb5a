"""Every buffer is given back after its last use, so that the arena stays small.

Buffers that loops carry are freed in each iteration (ownership.py says by whom), so that the memory
of a loop does not grow with the number of its iterations.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir, memref

from .infrastructure import Unit, register
from .kernels.launch import WITH_NEXT
from .ownership import Owners, last_use


@register
def insert_frees(module: ir.Operation, unit: Unit) -> None:
    """Insert memref.dealloc after the last use of every buffer that has an owner."""
    for value in Owners(module).frees():
        last = last_use(value)
        if last is None:
            assert isinstance(value.owner, ir.Block)
            place = ir.InsertionPoint.at_block_begin(value.owner)
        else:
            place = ir.InsertionPoint.after(last)
        if last is not None and WITH_NEXT in last.attributes:
            place = ir.InsertionPoint.after(_end_of_launch(last))
        with place, ir.Location.unknown() if last is None else last.location:
            memref.DeallocOp(value)


def _end_of_launch(op: ir.Operation) -> ir.Operation:
    """The last one of the launches that run at the same time as `op`."""
    behind = False
    for other in op.block.operations:
        behind |= other.operation == op
        launch = behind and other.operation.name == "func.call"
        if launch and WITH_NEXT not in other.operation.attributes:
            return other.operation
    raise AssertionError("another launch follows")
