"""Booleans in memory, which are bytes of 0 and 1, are loaded and stored as such.

LLVM's vectorizer leaves loops alone that load or store an i1.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir

from ..passes.infrastructure import walk


def move_booleans_as_bytes(module: ir.Module) -> None:
    """Replace loads and stores of single i1 in a module of the LLVM dialect, in place."""
    with module.context:
        i1, i8 = (ir.IntegerType.get_signless(bits) for bits in (1, 8))
    for op in walk(module.operation, "llvm.load"):
        if op.results[0].type == i1:
            byte = _like(op, "llvm.load", [i8], list(op.operands))
            bit = _like(op, "llvm.trunc", [i1], [byte.results[0]], keep=False)
            op.results[0].replace_all_uses_with(bit.results[0])
            op.erase()
    for op in walk(module.operation, "llvm.store"):
        if op.operands[0].type == i1:
            byte = _like(op, "llvm.zext", [i8], [op.operands[0]], keep=False)
            _like(op, "llvm.store", [], [byte.results[0], op.operands[1]])
            op.erase()


def _like(
    op: ir.Operation,
    name: str,
    results: list[ir.Type],
    operands: list[ir.Value],
    *,
    keep: bool = True,
) -> ir.Operation:
    """A new operation in front of `op`, with its attributes where `keep`."""
    attributes = {name: op.attributes[name] for name in op.attributes} if keep else {}
    with ir.InsertionPoint(op), op.location:
        return ir.Operation.create(name, results, operands, attributes)
