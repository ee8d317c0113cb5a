"""Tables of +-1 in a kernel's module: Hadamard matrices that are too large to be code."""

from __future__ import annotations

import numpy as np
from abqc.codegen.builder import Builder, Value, buffer, type_of
from abqc.codegen.codes.module_constants import add_once
from abqc.dialects.hadamard_bases import base_matrix
from abqc.dialects.mlir import ir, memref


def sign_table(b: Builder, base: int, tile: int) -> Value:
    """`base_matrix(base)` as memref<?xf32>, a constant of the module that is being emitted.

    Rows stand in tiles of `tile`, the last tile of what is left; a tile begins at its first row
    times `base`, and has its rows' elements of one column side by side.
    """
    matrix = base_matrix(base).astype(np.float32)
    parts = [matrix[i : i + tile].T.reshape(-1) for i in range(0, base, tile)]
    name = f"hadamard_signs_{base}_{tile}"
    type_ = ir.MemRefType.get([base * base], type_of("f32"))
    add_once(
        name,
        lambda: memref.GlobalOp(
            name,
            ir.TypeAttr.get(type_),
            sym_visibility=ir.StringAttr.get("private"),
            initial_value=ir.DenseElementsAttr.get(np.concatenate(parts)),
            constant=True,
            alignment=64,
        ),
    )
    return Value(memref.cast(type_of(buffer("f32")), memref.get_global(type_, name)))
