"""Tables of signs in a kernel's module: Hadamard matrices that are too large to be code."""

from __future__ import annotations

import numpy as np

from ...dialects.hadamard_bases import base_matrix
from ...dialects.mlir import ir, llvm
from ..builder import Value, type_of
from .builder import POINTER

TILE = 32  # rows whose signs are one word


def tiles_of(base: int) -> int:
    return -(-base // TILE)


def sign_table(base: int) -> Value:
    """`base_matrix(base)` in global memory, a constant of the module that is being emitted.

    Word `tile * base + j` has the signs of column j: its bit t is set where element
    `(32 * tile + t, j)` is -1, and not set beyond the last row.
    """
    matrix = base_matrix(base)
    negative = np.zeros((tiles_of(base) * TILE, base), np.uint8)
    negative[:base] = matrix < 0
    bits = np.packbits(negative.reshape(-1, TILE, base), axis=1, bitorder="little")
    words = np.ascontiguousarray(bits.transpose(0, 2, 1)).view(np.int32).reshape(-1)
    name = f"hadamard_signs_{base}"
    module = _module()
    if name not in ir.SymbolTable(module):
        with ir.InsertionPoint.at_block_begin(module.regions[0].blocks[0]):
            llvm.GlobalOp(
                type_of(f"!llvm.array<{words.size} x i32>"),
                name,
                ir.Attribute.parse("#llvm.linkage<internal>"),
                value=ir.DenseElementsAttr.get(words),
                constant=True,
                addr_space=1,
                alignment=4,
            )
    return Value(llvm.AddressOfOp(type_of(POINTER), name).result)


def _module() -> ir.Operation:
    op = ir.InsertionPoint.current.block.owner
    while op.name != "builtin.module":
        op = op.operation.parent
    return op.operation
