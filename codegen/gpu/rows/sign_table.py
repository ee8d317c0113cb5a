"""Tables of signs in a kernel's module: Hadamard matrices that are too large to be code."""

from __future__ import annotations

import numpy as np
from abqc.codegen.builder import Value, type_of
from abqc.codegen.codes.module_constants import add_once
from abqc.dialects.hadamard_bases import base_matrix
from abqc.dialects.mlir import ir, linkage, llvm

from ..builder import POINTER

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
    add_once(
        name,
        lambda: llvm.GlobalOp(
            type_of(f"!llvm.array<{words.size} x i32>"),
            name,
            linkage("internal"),
            value=ir.DenseElementsAttr.get(words),
            constant=True,
            addr_space=1,
            alignment=4,
        ),
    )
    return Value(llvm.AddressOfOp(type_of(POINTER), name).result)
