"""No buffer gets a negative size.

Sizes that depend on data (Range, Pad) or on a window larger than its input can come out below zero;
an allocation or a loop must not see them. Sizes made of sizes by additions, products and the like
need no check.
"""

from __future__ import annotations

from abqc.dialects.mlir import arith, cf, ir

from .infrastructure import Unit, blame, constant_index, defining_op, register, walk
from .resolve_dims import index

# Operations whose result is not negative where their operands are not.
MONOTONE = frozenset(
    (
        "arith.addi",
        "arith.ceildivsi",
        "arith.ceildivui",
        "arith.divsi",
        "arith.divui",
        "arith.extsi",
        "arith.floordivsi",
        "arith.index_cast",
        "arith.maxui",
        "arith.minsi",
        "arith.minui",
        "arith.muli",
        "arith.remsi",
        "arith.remui",
    )
)


@register
def check_sizes(module: ir.Operation, unit: Unit) -> None:
    """Check the sizes of memref.alloc that could be negative."""
    checked: set[ir.Value] = set()
    for op in walk(module, "memref.alloc"):
        for size in op.operands:
            if _is_natural(size) or size in checked:
                continue
            owner = defining_op(size)
            if owner is not None and owner.block == op.block:
                checked.add(size)  # its other uses come later, in this block or inside of it
            with ir.InsertionPoint(op), op.location:
                natural = arith.CmpIOp(arith.CmpIPredicate.sge, size, index(0)).result
                cf.AssertOp(natural, f"{blame(op)}: a size is negative")


def _is_natural(size: ir.Value) -> bool:
    constant = constant_index(size)
    if constant is not None:
        return constant >= 0
    owner = defining_op(size)
    if owner is None:
        return False
    if owner.name == "memref.dim":
        return True
    if owner.name == "arith.maxsi":
        return any(map(_is_natural, owner.operands))
    if owner.name == "arith.select":
        return all(map(_is_natural, list(owner.operands)[1:]))
    return owner.name in MONOTONE and all(map(_is_natural, owner.operands))
