"""Constants of the module in which a kernel is being emitted."""

from __future__ import annotations

from collections.abc import Callable

from abqc.dialects.mlir import ir


def add_once(name: str, emit: Callable[[], object]) -> None:
    """`emit` the constant `name` at the module's beginning, unless the module has it."""
    op = ir.InsertionPoint.current.block.owner
    while op.name != "builtin.module":
        op = op.operation.parent
    module = op.operation
    if name not in ir.SymbolTable(module):
        with ir.InsertionPoint.at_block_begin(module.regions[0].blocks[0]):
            emit()
