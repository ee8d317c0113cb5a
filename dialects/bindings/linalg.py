"""linalg without OpDSL, whose import takes longer than that of all other dialects.

The wheel's `dialects.linalg` interprets the definition of every named operation in Python, only to
have functions that build them; the classes that TableGen makes can do that as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch_mlir import ir
from torch_mlir._mlir_libs._mlirDialectsLinalg import fill_builtin_region
from torch_mlir.dialects._linalg_ops_gen import (
    BatchMatmulOp,
    FillOp,
    GenericOp,
    IndexOp,
    TransposeOp,
    YieldOp,
)

__all__ = ["GenericOp", "IndexOp", "YieldOp", "batch_matmul", "fill", "transpose"]


def fill(value: ir.Value, *, outs: Sequence[ir.Value]) -> ir.Value:
    """The tensor in `outs` with `value` in all places."""
    return _computing(FillOp([outs[0].type], [value], outs)).operation.results[0]


def transpose(x: ir.Value, *, outs: Sequence[ir.Value], permutation: Sequence[int]) -> TransposeOp:
    """Axis i of the result is axis `permutation[i]` of `x`."""
    return _computing(TransposeOp([outs[0].type], x, outs[0], permutation))


def batch_matmul(a: ir.Value, b: ir.Value, *, outs: Sequence[ir.Value]) -> ir.Value:
    """The tensor in `outs` plus `a[i] @ b[i]`."""
    op = BatchMatmulOp(result_tensors=[outs[0].type], inputs=[a, b], outputs=outs)
    return _computing(op).operation.results[0]


def _computing(op: ir.OpView) -> ir.OpView:
    """A named operation, whose region now says what it computes."""
    fill_builtin_region(op.operation)
    return op
