"""linalg without OpDSL, whose import takes longer than that of all other dialects.

The wheel's `dialects.linalg` interprets the definition of every named operation in Python, only to
have functions that build them; the classes that TableGen makes can do that as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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

__all__ = [
    "GenericOp",
    "IndexOp",
    "YieldOp",
    "batch_matmul",
    "fill",
    "iterator_types",
    "iterators",
    "transpose",
]

PARALLEL, REDUCTION = "parallel", "reduction"


def iterator_types(names: Iterable[str]) -> ir.ArrayAttr:
    """The attribute of a generic: "parallel" or "reduction" for each of its loops."""
    return ir.ArrayAttr.get([_iterator_type(name) for name in names])


def iterators(op: ir.Operation) -> list[str]:
    """The iterator types of a generic: "parallel", "reduction"."""
    reduction = _iterator_type(REDUCTION, op.context)
    kinds = ir.ArrayAttr(op.attributes["iterator_types"])
    return [REDUCTION if kind == reduction else PARALLEL for kind in kinds]


def _iterator_type(name: str, context: ir.Context | None = None) -> ir.Attribute:
    return ir.Attribute.parse(f"#linalg.iterator_type<{name}>", context)  # it has no class


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
