"""MatMul and Gemm: products with weights are `abq.matmul`, others batched products."""

from __future__ import annotations

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import expand, reshape, transpose, unsqueeze
from ..parts.affine import product_operand
from ..parts.rounded_rows import rounded_operand
from ..registry import Node, lowers
from ..values.constants import Constant
from ..values.element_types import F32
from ..values.symbolic import ONE, product
from ..values.value import Value, constant_value


@lowers("MatMul")
def matmul(node: Node) -> Value:
    return product_of(node, node.input(0), node.input(1))


def product_of(node: Node, x: Value, y: Value, bias: Value | None = None) -> Value:
    """`x @ y` as numpy multiplies, plus `bias`, a constant vector, if there is one."""
    b = node.b
    if not x.rank or not y.rank:
        raise node.error("its inputs must have one axis or more")
    if x.dtype != y.dtype:
        raise node.error(f"its inputs differ in type: {x.dtype.name} and {y.dtype.name}")
    left, right = x, y
    if x.rank == 1:
        left = unsqueeze(b, x, [0])
    if y.rank == 1:
        right = unsqueeze(b, y, [1])
    b.require_equal(
        left.dims[-1], right.dims[-2], f"it multiplies {x} by {y}: the inner sizes differ"
    )
    result = _product(node, left, right, bias)
    dims = list(result.dims)
    if y.rank == 1:
        dims.pop()
    if x.rank == 1:
        dims.pop(len(result.dims) - 2)
    return reshape(b, result, dims)


def _product(node: Node, x: Value, y: Value, bias: Value | None) -> Value:
    if is_weight(y) and x.dtype.inside() == F32.inside():
        return with_weight(node, x, y, bias)
    if is_weight(x) and y.dtype.inside() == F32.inside():
        result = _with_weight_first(node, x, y)
    else:
        result = batched(node.b, x, y)
    if bias is None:
        return result
    return node.b.elementwise([result, bias], result.dtype, lambda v, w: v + w)


def is_weight(y: Value) -> bool:
    """A constant matrix of floats that are f32 inside."""
    elements = y.rank == 2 and bool(y.size)  # no kernel packs weights without any
    return elements and y.constant is not None and y.dtype.inside() == F32.inside()


def with_weight(node: Node, x: Value, w: Value, bias: Value | None = None) -> Value:
    """`x @ w + bias` with a constant K x N `w` (stored N x K) as one `abq.matmul`."""
    b = node.b
    assert w.constant is not None
    rows = transpose(b, w, [1, 0]).constant
    assert rows is not None
    rows = b.weights.of_product(rows)
    weight = node.weight(rows, "matmul")
    dims = (*x.dims[:-1], w.dims[1])
    operand, scales = rounded_operand(b, x, rows) or product_operand(b, x, rows)
    ssa = abq.MatmulOp(
        operand, weight, ir.StringAttr.get(node.name), b.type(x.dtype, dims),
        bias=b.tensor(bias) if bias is not None else None, **scales,
    ).result  # fmt: skip
    return Value(x.dtype, dims, ssa=ssa)


def _with_weight_first(node: Node, w: Value, x: Value) -> Value:
    """`w @ x` with a constant `w`: the transpose of `x' @ w'`."""
    swap = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    product = with_weight(node, transpose(node.b, x, swap), transpose(node.b, w, [1, 0]))
    return transpose(node.b, product, swap)


def batched(b: Builder, x: Value, y: Value) -> Value:
    """`x @ y` of activations of rank 2 or more, their leading axes broadcast together."""
    if x.rank > 2 and all(dim == ONE for dim in y.dims[:-2]) and y.rank <= x.rank:
        return _of_one_matrix(b, x, y)
    lead = b.broadcast_dims([x.dims[:-2], y.dims[:-2]])
    x, y = _with_lead(b, x, lead), _with_lead(b, y, lead)
    batch, m, n, k = product(lead), x.dims[-2], y.dims[-1], x.dims[-1]
    if k.value is None and y.dims[-2].value is not None:
        k = y.dims[-2]
    flat_x, flat_y = reshape(b, x, [batch, m, k]), reshape(b, y, [batch, k, n])
    dims = (batch, m, n)
    zeros = b.full(x.dtype, dims, 0)
    if x.dtype.is_float and x.dtype.inside() == F32.inside():
        ssa = linalg.batch_matmul(b.tensor(flat_x), b.tensor(flat_y), outs=[zeros])
    else:
        ssa = _loops(b, flat_x, flat_y, zeros)
    return reshape(b, Value(x.dtype, dims, ssa=ssa), [*lead, m, n])


def _of_one_matrix(b: Builder, x: Value, y: Value) -> Value:
    """All rows of x times one matrix, as a single product."""
    *lead, k = x.dims
    n = y.dims[-1]
    result = batched(b, reshape(b, x, [product(lead), k]), reshape(b, y, y.dims[-2:]))
    return reshape(b, result, [*lead, n])


def _with_lead(b: Builder, x: Value, lead: tuple) -> Value:
    """Leading axes as they are in the result."""
    if x.dims[:-2] == lead:
        return x
    if x.rank == len(lead) + 2 or any(dim != ONE for dim in lead):
        dims = (*lead, *x.dims[-2:])
        return expand(b, x, dims)
    return reshape(b, x, [*lead, *x.dims[-2:]])


def _loops(b: Builder, x: Value, y: Value, zeros: ir.Value) -> ir.Value:
    """Integers and f64, multiplied in their own type."""
    d = [ir.AffineDimExpr.get(i) for i in range(4)]
    maps = [
        ir.AffineMap.get(4, 0, [d[0], d[1], d[3]]),
        ir.AffineMap.get(4, 0, [d[0], d[3], d[2]]),
        ir.AffineMap.get(4, 0, [d[0], d[1], d[2]]),
    ]

    def body(a: ir.Value, c: ir.Value, total: ir.Value) -> list[ir.Value]:
        left, right = Scalar(a, x.dtype), Scalar(c, x.dtype)
        return [(left * right + Scalar(total, x.dtype)).ssa]

    return b.structured([b.tensor(x), b.tensor(y)], [zeros], maps, [True, True, True, False], body)[
        0
    ]


@lowers("Gemm")
def gemm(node: Node) -> Value:
    """`alpha * A' * B' + beta * C`."""
    b = node.b
    x, y, c = node.input(0), node.input(1), node.optional(2)
    alpha, beta = node.float("alpha", 1.0), node.float("beta", 1.0)
    if x.rank != 2 or y.rank != 2:
        raise node.error(f"it multiplies matrices, not {x} and {y}")
    if node.int("transA", 0):
        x = transpose(b, x, [1, 0])
    if node.int("transB", 0):
        y = transpose(b, y, [1, 0])
    if alpha != 1.0 and is_weight(y) and y.constant is not None and not y.constant.quantized:
        y, alpha = constant_value(_scaled(y.constant, alpha), y.dtype), 1.0
    if beta != 1.0 and c is not None and c.constant is not None and c.dtype.is_float:
        c, beta = constant_value(_scaled(c.constant, beta), c.dtype), 1.0
    fused = c is not None and alpha == beta == 1.0 and is_vector(c, y)
    result = product_of(node, x, y, c if fused else None)
    if alpha != 1.0:
        result = b.elementwise([result], result.dtype, lambda v: v * alpha)
    if c is None or fused:
        return result
    scaled = c
    if beta != 1.0:
        scaled = b.elementwise([c], c.dtype, lambda v: v * beta)
    return b.elementwise([result, scaled], result.dtype, lambda v, w: v + w)


def _scaled(constant: Constant, factor: float) -> Constant:
    """The values times a factor, computed when they are asked for."""
    load, dtype = constant.load, constant.dtype
    number = np.float32(factor)
    return Constant(
        constant.shape, constant.elem_type, lambda: (load() * number).astype(dtype),
        name=constant.name,
    )  # fmt: skip


def is_vector(c: Value, w: Value) -> bool:
    """A constant bias of one element for each column of a weight."""
    return (
        c.constant is not None
        and c.dims == w.dims[1:]
        and is_weight(w)
        and c.dtype.inside() == F32.inside()
    )
