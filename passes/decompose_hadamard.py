"""`abq.hadamard` that no packing kernel does on its way becomes a product with its matrix.

    y[r, c B + j] = sum over i of x[r, c B + i] H[j, i]        rows of blocks of B

Blocks are short: the matrix of the 64 columns of a head has 16 KB, and rows in front of products
whose activations stay float have blocks of at most 128 (`quantize.py`).
"""

from __future__ import annotations

import numpy as np
from abqc.dialects import abq, hadamard
from abqc.dialects.mlir import ir, tensor

from .infrastructure import Unit, register, walk
from .loops.constant_values import weight
from .resolve_dims import dimension_or_query, expand_shape


@register
def decompose_hadamard(module: ir.Operation, unit: Unit) -> None:
    """Rewrite abq.hadamard as abq.batch_matmul."""
    for op in walk(module, "abq.hadamard"):
        with ir.InsertionPoint(op), op.location:
            op.results[0].replace_all_uses_with(_product(op, unit))
        op.erase()


def _product(op: ir.Operation, unit: Unit) -> ir.Value:
    x = op.operands[0]
    shape, block = abq.shape(x), ir.IntegerAttr(op.attributes["block"]).value
    blocks = [*shape[:-1], shape[-1] // block, block]  # all are rows of one matrix
    rows = abq.DYNAMIC if abq.DYNAMIC in shape else int(np.prod(blocks[:-1], dtype=np.int64))
    last = len(shape) - 1
    cut = [*([i] for i in range(last)), [last, last + 1]]
    joined = [[*range(last + 1)], [last + 1]]
    f32 = ir.F32Type.get()
    flat_type = ir.RankedTensorType.get([rows, block], f32)
    apart = expand_shape(x, cut, blocks)
    flat = tensor.CollapseShapeOp(flat_type, apart, joined).result
    one = expand_shape(flat, [[0, 1], [2]], [1, rows, block])
    transposed = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 1)
    y = abq.BatchMatmulOp(one, _matrix(block, unit), transposed, one.type).result
    y = tensor.CollapseShapeOp(flat_type, y, [[0, 1], [2]]).result
    sizes = [dimension_or_query(x, i) for i, n in enumerate(shape) if n == abq.DYNAMIC]
    y = tensor.ExpandShapeOp(apart.type, y, joined, sizes, blocks).result
    return tensor.CollapseShapeOp(x.type, y, cut).result


def _matrix(block: int, unit: Unit) -> ir.Value:
    """The matrix [1, block, block], which all transforms of its size share."""
    symbol = f"abqc.hadamard.{block}"
    if symbol not in unit.store:
        scaled = hadamard.matrix(block).astype(np.float32) / np.float32(np.sqrt(block))
        unit.store.add(symbol, scaled[None].astype(np.float32))
    return weight(symbol, [1, block, block])
