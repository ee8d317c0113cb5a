"""Rows that are rotated, or rotated back, at run time: a product with the rotation's matrix in f32.

Where a stream begins at something that is no weight, or ends at something that is no product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, linalg, tensor

from ..loops.constant_values import weight
from ..loops.reshape import reshape
from ..loops.row_loops import over_rows, widened
from ..resolve_dims import index, mixed_sizes
from .maps import Rotation


def rotated_rows(
    value: ir.Value, axis: int, rotation: Rotation, store: Any, *, back: bool = False
) -> ir.Value:
    """`R v` of each vector v along an axis, or `R^T v`, at the insertion point."""
    order = list(range(len(abq.shape(value))))
    order[axis], order[-1] = order[-1], order[axis]
    if axis == len(order) - 1:
        return _turned(value, rotation, store, back)
    return _transposed(_turned(_transposed(value, order), rotation, store, back), order)


def _transposed(value: ir.Value, order: list[int]) -> ir.Value:
    sizes = mixed_sizes(value)
    empty = tensor.EmptyOp([sizes[i] for i in order], abq.element(value)).result
    return linalg.transpose(value, outs=[empty], permutation=order).operation.results[0]


def _turned(rows: ir.Value, rotation: Rotation, store: Any, back: bool) -> ir.Value:
    width, f32 = rotation.width, ir.F32Type.get()
    symbol = f"{rotation.tag} matrix"
    if symbol not in store:
        store.add_lazy(symbol, (1, width, width), np.float32, lambda: _matrix(rotation))
    matrix = weight(symbol, [1, width, width])
    sizes = mixed_sizes(rows)
    static = [size for size in sizes[:-1] if isinstance(size, int)]
    count: int | ir.Value = int(np.prod(static, dtype=np.int64))
    if len(static) < len(sizes) - 1:
        total = index(count)
        for size in sizes[:-1]:
            if not isinstance(size, int):
                total = arith.MulIOp(total, size).result
        count = total
    shape = [1, count if isinstance(count, int) else abq.DYNAMIC, width]
    flat_type = ir.RankedTensorType.get(shape, f32)
    flat_sizes = [index(size) if isinstance(size, int) else size for size in (1, count, width)]
    flat = reshape(rows, flat_type, flat_sizes)
    i64 = ir.IntegerType.get_signless(64)
    turned = abq.BatchMatmulOp(flat, matrix, ir.IntegerAttr.get(i64, int(back)), flat_type).result
    as_values = [index(size) if isinstance(size, int) else size for size in sizes]
    return reshape(turned, rows.type, as_values)


def with_gains(rows: ir.Value, weight_: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    """`rows * weight + bias`, vectors of one row, either of which may be missing."""
    vectors = [vector for vector in (weight_, bias) if vector is not None]
    if not vectors:
        return rows

    def scaled(elements: list[ir.Value]) -> ir.Value:
        value, *rest = elements
        if weight_ is not None:
            value = arith.MulFOp(value, widened(rest.pop(0))).result
        return arith.AddFOp(value, widened(rest.pop(0))).result if rest else value

    return over_rows([rows], scaled, columns=vectors)


def _matrix(rotation: Rotation) -> np.ndarray:
    """Row i is what becomes of the i-th unit vector."""
    return rotation.produce(np.eye(rotation.width)).astype(np.float32)[None]
