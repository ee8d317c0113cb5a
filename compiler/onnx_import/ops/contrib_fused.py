"""onnxruntime's fusions of elementwise operators, products and activations."""

from __future__ import annotations

import math

from ..building.scalars import Scalar
from ..building.shaping import slice_axis, transpose
from ..parts.activations import Activation, activation
from ..parts.experts import SwiGlu
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import ElementType
from ..values.symbolic import ZERO
from ..values.value import Value
from .convolution import conv
from .matmul import gemm, is_vector, product_of


@lowers("Gelu", domain=MICROSOFT)
def gelu(node: Node) -> Value:
    return _biased(node, Scalar.gelu)


@lowers("BiasGelu", domain=MICROSOFT)
def bias_gelu(node: Node) -> Value:
    return _biased(node, Scalar.gelu)


@lowers("FastGelu", domain=MICROSOFT)
def fast_gelu(node: Node) -> Value:
    return _biased(node, Scalar.tanh_gelu)


@lowers("QuickGelu", domain=MICROSOFT)
def quick_gelu(node: Node) -> Value:
    alpha = node.float("alpha", 1.702)
    return _biased(node, lambda x: x * (x * alpha).sigmoid())


def _biased(node: Node, body: Activation) -> Value:
    """`body` of the first input, or of its sum with the second."""
    x, bias = node.input(0), node.optional(1)
    if bias is None:
        return node.b.elementwise([x], x.dtype, body)
    return node.b.elementwise([x, bias], x.dtype, lambda v, w: body(v + w))


@lowers("BiasAdd", domain=MICROSOFT)
def bias_add(node: Node) -> Value:
    """x [B, S, C] + bias [C] + skip."""
    x, bias, skip = (node.input(i) for i in range(3))
    return node.b.elementwise([x, bias, skip], x.dtype, lambda v, w, s: v + w + s)


@lowers("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(node: Node) -> Value:
    from .softmax import softmax

    x, bias = node.input(0), node.input(1)
    axis = node.axis("axis", x.rank, 1)
    total = node.b.elementwise([x, bias], x.dtype, lambda v, w: v + w)
    return softmax(node.b, total, range(axis, x.rank))


def activated(node: Node, x: Value, dtype: ElementType | None = None) -> Value:
    """`x` behind the activation that the node's attributes name."""
    name = node.string("activation", "")
    if not name:
        return x
    parameters = node.floats("activation_params", None)
    if parameters is None:
        parameters = [node.float(f"activation_{part}", None) for part in ("alpha", "beta")]
    return node.b.elementwise([x], dtype or x.dtype, activation(node, name, parameters))


@lowers("SwiGLU", domain=MICROSOFT)
def swiglu(node: Node) -> Value:
    """`g * sigmoid(alpha * g) * (l + beta)`: a gate and a linear part, or both side by side.

    Both are cut at `limit` where it is positive. The product of the gate is f32, whatever
    `round_activation` says of a type of 16 bits.
    """
    b, gate, linear = node.b, node.input(0), node.optional(1)
    if linear is None:
        axis, half = gate.rank - 1, gate.dims[-1] // 2
        b.require_equal(half * 2, gate.dims[-1], f"the columns of {gate} are no even number")
        gate, linear = (slice_axis(b, gate, axis, begin, half) for begin in (ZERO, half))
    limit = node.float("limit", 0.0)
    body = SwiGlu(
        node.float("activation_alpha", 1.0),
        node.float("activation_beta", 0.0),
        limit if limit > 0 else math.inf,
    )
    return b.elementwise([gate, linear], gate.dtype, body)


@lowers("FusedMatMul", domain=MICROSOFT)
@lowers("TransposeMatMul", domain=MICROSOFT)
def fused_matmul(node: Node) -> Value:
    """`alpha * A' @ B'`; with `transBatchA` the batch axes come behind the rows."""
    b, sides = node.b, []
    for i, side in enumerate("AB"):
        x = node.input(i)
        if node.int(f"transBatch{side}", 0) and x.rank > 2:
            # [rows, batch..., columns]
            x = transpose(b, x, [*range(1, x.rank - 1), 0, x.rank - 1])
        if node.int(f"trans{side}", 0) and x.rank > 1:
            x = transpose(b, x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])
        sides.append(x)
    alpha = node.float("alpha", 1.0)
    result = product_of(node, *sides)
    if alpha == 1.0:
        return result
    return b.elementwise([result], result.dtype, lambda v: v * alpha)


@lowers("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(node: Node) -> Value:
    """FastGelu of x @ w + bias, a vector."""
    x, w, bias = node.input(0), node.input(1), node.optional(2)
    fused = bias if bias is not None and is_vector(bias, w) else None
    y = product_of(node, x, w, fused)
    if bias is None or fused is not None:
        return node.b.elementwise([y], y.dtype, Scalar.tanh_gelu)
    return node.b.elementwise([y, bias], y.dtype, lambda v, c: (v + c).tanh_gelu())


@lowers("FusedGemm", domain=MICROSOFT)
def fused_gemm(node: Node) -> Value:
    return activated(node, gemm(node))


@lowers("FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul_activation(node: Node) -> Value:
    return activated(node, fused_matmul(node))


@lowers("FusedConv", domain=MICROSOFT)
def fused_conv(node: Node) -> Value:
    """The activation of Conv, or of its sum with Z, of the same shape."""
    y, z = conv(node), node.optional(3)
    if z is not None:
        y = node.b.elementwise([y, z], y.dtype, lambda v, w: v + w)
    return activated(node, y)
