"""onnxruntime's fusions of elementwise operators, products and activations."""

from __future__ import annotations

from collections.abc import Callable

from ..building.scalars import Scalar
from ..building.shaping import transpose
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import ElementType
from ..values.value import Value
from .convolution import conv
from .matmul import gemm, product_of

Activation = Callable[[Scalar], Scalar]


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


def activation(node: Node, name: str, parameters: list[float]) -> Activation:
    """An activation by the name that onnxruntime's fusions give it."""

    def parameter(i: int, default: float) -> float:
        return parameters[i] if i < len(parameters) else default

    alpha, beta = parameter(0, 0.0), parameter(1, 0.0)
    table: dict[str, Activation] = {
        "": lambda x: x,
        "Relu": lambda x: x.maximum(0),
        "Tanh": lambda x: x.tanh(),
        "Sigmoid": lambda x: x.sigmoid(),
        "LeakyRelu": lambda x: (x >= 0).select(x, x * parameter(0, 0.01)),
        "Clip": lambda x: x.maximum(alpha).minimum(beta),
        "HardSigmoid": lambda x: (x * parameter(0, 0.2) + parameter(1, 0.5)).clamp(0.0, 1.0),
        "HardSwish": lambda x: x * (x * (1 / 6) + 0.5).clamp(0.0, 1.0),
        "Elu": lambda x: (x >= 0).select(x, (x.exp() - 1.0) * parameter(0, 1.0)),
        "Gelu": Scalar.gelu,
        "QuickGelu": lambda x: x * (x * parameter(0, 1.702)).sigmoid(),
        "Softplus": lambda x: x.maximum(0) + (-x.abs()).exp().log1p(),
        "Softsign": lambda x: x / (x.abs() + 1.0),
    }
    if name not in table:
        raise node.error(f"activation '{name}' is not supported")
    return table[name]


def activated(node: Node, x: Value, dtype: ElementType | None = None) -> Value:
    """`x` behind the activation that the node's attributes name."""
    name = node.string("activation", "")
    if not name:
        return x
    parameters = node.floats("activation_params", None)
    if parameters is None:
        given = [node.float(f"activation_{part}", None) for part in ("alpha", "beta", "gamma")]
        parameters = [value for value in given if value is not None]
    return node.b.elementwise([x], dtype or x.dtype, activation(node, name, parameters))


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
