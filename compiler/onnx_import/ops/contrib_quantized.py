"""com.microsoft's operators on codes: decode, compute in f32, encode again.

Results are onnxruntime's to one step of the result's scale: where its kernels compute in another
order, a value halfway between two codes may round to the other one.
"""

from __future__ import annotations

from collections.abc import Callable

from ..building.scalars import Scalar
from ..building.shaping import channels_last, channels_second, concat, reshape, transpose
from ..parts.affine import along, code_of, dequantize, quantize
from ..parts.integer_products import in_f32, shifted
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import F32, I32
from ..values.value import Value
from .integer_products import multiply, requantize
from .integer_products import qlinear_conv as standard_qlinear_conv
from .matmul import product_of
from .normalization import embed_layer_normalization
from .pooling import average_pool, global_average_pool
from .reductions import summed
from .softmax import softmax

Body = Callable[[list[Scalar], list[Scalar], list[Scalar]], Scalar]


def decoded(node: Node, i: int) -> Value:
    """Inputs i, i + 1 and i + 2: codes, their scale and their zero point, which may be left out."""
    return dequantize(node, node.input(i), node.input(i + 1), node.optional(i + 2))


def encoded(node: Node, x: Value, i: int, like: int = 0) -> Value:
    """`x` as codes, with the scale in input i and the zero point, if there is one, in i + 1."""
    return quantize(node, x, node.input(i), node.optional(i + 1), node.input(like).dtype)


@lowers("QLinearAdd", domain=MICROSOFT)
def qlinear_add(node: Node) -> Value:
    """Rounded as onnxruntime does, `p a + (q b + r)` with p and q the ratios of the scales.

    Where scales are multiples of each other many sums lie halfway between two codes.
    """

    def body(codes: list[Scalar], scales: list[Scalar], zeros: list[Scalar]) -> Scalar:
        a, c = codes
        first, second = scales[0] / scales[2], scales[1] / scales[2]
        rest = zeros[2] - (first * zeros[0] + second * zeros[1])
        return first * a + (second * c + rest)

    return _of_codes(node, body)


@lowers("QLinearMul", domain=MICROSOFT)
def qlinear_mul(node: Node) -> Value:
    """Rounded as onnxruntime does: after the zero point is added."""

    def body(codes: list[Scalar], scales: list[Scalar], zeros: list[Scalar]) -> Scalar:
        product = (codes[0] - zeros[0]) * (codes[1] - zeros[1])
        return product * (scales[0] * scales[1] / scales[2]) + zeros[2]

    return _of_codes(node, body)


def _of_codes(node: Node, body: Body) -> Value:
    """Of two tensors, each with scale and zero point, and the scale and zero point of the result.

    `body` gets the codes, the scales and the zero points, all as f32, and gives the result's code,
    not rounded.
    """
    b, to = node.b, node.input(0).dtype
    given = [i for i in range(8) if node.given(i)]
    for i in given:
        if i not in (0, 3) and node.input(i).size != 1:
            raise node.error(f"input {i} must have one element: a scale or zero point for all")
    values = [node.input(i) if i in (0, 3) else reshape(b, node.input(i), []) for i in given]

    def whole(*elements: Scalar) -> Scalar:
        parts = {i: element.cast(F32) for i, element in zip(given, elements, strict=True)}
        zeros = [parts[i] if i in parts else parts[0].like(0) for i in (2, 5, 7)]
        steps = body([parts[0], parts[3]], [parts[1], parts[4], parts[6]], zeros)
        return code_of(steps, None, to)

    return b.elementwise(values, to, whole)


def _unary(op_type: str, body: Callable[[Node, Scalar], Scalar]) -> None:
    """Registers an operator of one tensor: x and the result, each with scale and zero point."""

    @lowers(op_type, domain=MICROSOFT)
    def lower(node: Node) -> Value:
        x = decoded(node, 0)
        return encoded(node, node.b.elementwise([x], F32, lambda v: body(node, v)), 3)


def _leaky(node: Node, x: Scalar) -> Scalar:
    return (x >= 0).select(x, x * node.float("alpha", 0.01))


_unary("QLinearSigmoid", lambda node, x: x.sigmoid())
_unary("QLinearLeakyRelu", _leaky)


@lowers("QLinearWhere", domain=MICROSOFT)
def qlinear_where(node: Node) -> Value:
    x, y = decoded(node, 1), decoded(node, 4)
    chosen = node.b.elementwise([node.input(0), x, y], F32, lambda c, a, d: c.select(a, d))
    return encoded(node, chosen, 7, like=1)


@lowers("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(node: Node) -> Value:
    """Inputs: the result's scale and zero point, then each tensor with its own."""
    count = len(node.inputs) - 2
    if count < 3 or count % 3:
        raise node.error("each tensor comes with its scale and its zero point")
    parts = [encoded(node, decoded(node, i), 0, like=i) for i in range(2, len(node.inputs), 3)]
    return concat(node.b, parts, node.axis("axis", parts[0].rank))


@lowers("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(node: Node) -> Value:
    """`opset` says which Softmax it was: before 13 all axes from `axis` on are one."""
    x = decoded(node, 0)
    if node.int("opset") >= 13:
        axes = [node.axis("axis", x.rank, -1)]
    else:
        axes = list(range(node.axis("axis", x.rank, 1), x.rank))
    return encoded(node, softmax(node.b, x, axes), 3)


def channels_first(node: Node, x: Value) -> Value:
    """With the channels behind the batch, where the node says that they are last."""
    return channels_second(node.b, x) if node.int("channels_last", 0) else x


def as_given(node: Node, y: Value) -> Value:
    """The inverse of `channels_first`."""
    return channels_last(node.b, y) if node.int("channels_last", 0) else y


@lowers("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(node: Node) -> Value:
    x = channels_first(node, decoded(node, 0))
    return encoded(node, as_given(node, average_pool(node.as_standard(x))), 3)


@lowers("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(node: Node) -> Value:
    x = channels_first(node, decoded(node, 0))
    return encoded(node, as_given(node, global_average_pool(node.as_standard(x))), 3)


@lowers("QLinearConv", domain=MICROSOFT)
def qlinear_conv(node: Node) -> Value:
    """ONNX's, or with images whose channels are last."""
    inputs = list(node.inputs)
    inputs[0] = channels_first(node, node.input(0))
    return as_given(node, standard_qlinear_conv(node.as_standard(*inputs)))


@lowers("QGemm", domain=MICROSOFT)
def qgemm(node: Node) -> Value:
    """`alpha * (a' @ b') + c`: codes where a scale of the result is given, else floats.

    The integers of c are in steps of the product's scales.
    """
    b = node.b
    a, a_scale, a_zero = node.input(0), node.input(1), node.optional(2)
    w, w_scale, w_zero = node.input(3), node.input(4), node.optional(5)
    if node.int("transA", 0):
        a = transpose(b, a, [1, 0])
    if node.int("transB", 0):
        w = transpose(b, w, [1, 0])
    sums = in_f32(b, multiply(node, a, a_zero, w, w_zero))
    c = node.optional(6)
    if c is not None:
        sums = b.elementwise([sums, c], F32, lambda v, added: v + added.cast(F32))
    alpha = node.float("alpha", 1.0)
    columns = along(node, w_scale, sums, -1)
    scale = b.elementwise([along(node, a_scale, sums, 0), columns], F32, lambda s, t: s * t * alpha)
    if not node.given(7):
        return b.elementwise([sums, scale], F32, lambda v, s: v * s)
    y_zero = node.optional(8)
    to = a.dtype if y_zero is None else y_zero.dtype
    return requantize(node, sums, [scale, b.constant(1.0, F32)], node.input(7), y_zero, to)


@lowers("MulInteger", domain=MICROSOFT)
def mul_integer(node: Node) -> Value:
    """`(a - a_zero) * (b - b_zero)` as 32-bit integers."""
    left = shifted(node, node.input(0), node.optional(1), 0)
    right = shifted(node, node.input(2), node.optional(3), 0)
    return node.b.elementwise([left, right], I32, lambda x, y: x * y)


@lowers("MatMulInteger16", domain=MICROSOFT)
def matmul_integer16(node: Node) -> Value:
    """The product of 16-bit integers as 32-bit integers, which wrap around."""
    left, right = (shifted(node, node.input(i), None, 0) for i in range(2))
    return product_of(node, left, right)


@lowers("ReduceSumInteger", domain=MICROSOFT)
def reduce_sum_integer(node: Node) -> Value:
    """The 32-bit sum of 8-bit integers along `axes`."""
    x = shifted(node, node.input(0), None, 0)
    axes = [node.counted(axis, x.rank) for axis in node.ints("axes")]
    return summed(node.b, x, axes, keepdims=bool(node.int("keepdims", 1)))


@lowers("QEmbedLayerNormalization", domain=MICROSOFT)
def qembed_layer_normalization(node: Node) -> list[Value | None]:
    """EmbedLayerNormalization with tables, gamma and beta of codes, one scale for each."""
    real: list[Value | None] = []
    for i in range(5):
        codes = node.optional(2 + i)
        if codes is None:
            real.append(None)
            continue
        real.append(dequantize(node, codes, node.input(8 + i), node.input(13 + i)))
    inputs = [node.input(0), node.optional(1), *real, node.optional(7)]
    return embed_layer_normalization(node.as_standard(*inputs))[:2]
