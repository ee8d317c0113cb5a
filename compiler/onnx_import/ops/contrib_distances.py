"""CDist: the distance of every row of one matrix to every row of another."""

from __future__ import annotations

from abqc.dialects.mlir import ir

from ..building.scalars import Scalar
from ..registry import MICROSOFT, Node, lowers
from ..values.value import Value


@lowers("CDist", domain=MICROSOFT)
def cdist(node: Node) -> Value:
    """A [M, N] and B [K, N] to [M, K]; the two metrics that onnxruntime has kernels for."""
    a, c, b = node.input(0), node.input(1), node.b
    metric = node.choice("metric", "sqeuclidean", "euclidean")
    if a.rank != 2 or c.rank != 2:
        raise node.error(f"it compares rows of matrices, not {a} and {c}")
    if a.dtype is not c.dtype:
        raise node.error(f"its inputs differ in type: {a.dtype.name} and {c.dtype.name}")
    b.require_equal(a.dims[1], c.dims[1], f"the rows of {a} and {c} differ in length")
    row, other, column = (ir.AffineDimExpr.get(i) for i in range(3))
    maps = [
        ir.AffineMap.get(3, 0, at) for at in ([row, column], [other, column], [row, other])
    ]  # fmt: skip
    dims = (a.dims[0], c.dims[0])

    def body(x: ir.Value, y: ir.Value, so_far: ir.Value) -> list[ir.Value]:
        apart = Scalar(x, a.dtype) - Scalar(y, a.dtype)
        return [(apart * apart + Scalar(so_far, a.dtype)).ssa]

    (squares,) = b.structured(
        [b.tensor(a), b.tensor(c)], [b.full(a.dtype, dims, 0)], maps, [True, True, False], body
    )
    result = Value(a.dtype, dims, ssa=squares)
    if metric == "sqeuclidean":
        return result
    return b.elementwise([result], a.dtype, Scalar.sqrt)
