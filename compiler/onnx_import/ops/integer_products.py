"""MatMulInteger, ConvInteger, QLinearMatMul, QLinearConv, and com.microsoft's relatives.

Sums are exact 32-bit integers. What is scaled to codes again is so in onnxruntime's order:
`round(float(sum) * (x_scale * w_scale / y_scale)) + zero`.
"""

from __future__ import annotations

import numpy as np

from ..building.scalars import Scalar
from ..building.shaping import reshape, slice_axis
from ..parts.affine import along, code_of, dequantize, quantize
from ..parts.integer_products import (
    EXACT_TERMS,
    exact_product,
    in_f32,
    is_code,
    is_exact,
    one_number,
    shifted,
    to_integers,
    weight_steps,
    whole_steps,
)
from ..registry import MICROSOFT, Node, lowers
from ..values.constants import from_array
from ..values.element_types import F32, I32, ElementType
from ..values.symbolic import ONE
from ..values.value import Value, constant_value
from .convolution import conv_windows, convolve
from .matmul import is_vector, product_of
from .quantization import measure


@lowers("MatMulInteger")
def matmul_integer(node: Node) -> Value:
    return multiply(node, node.input(0), node.optional(2), node.input(1), node.optional(3))


def multiply(node: Node, a: Value, a_zero: Value | None, w: Value, w_zero: Value | None) -> Value:
    """`(a - a_zero) @ (w - w_zero)` as 32-bit integers; zeros per row of `a` and column of `w`."""
    for codes in (a, w):
        if not is_code(codes):
            raise node.error(f"it multiplies integers of at most 8 bits, not {codes}")
    constant_zero = w_zero is None or w_zero.is_constant
    if w.constant is not None and w.rank == 2 and w.size and one_number(a_zero) and constant_zero:
        zero = None if w_zero is None else w_zero.as_constant
        steps = weight_steps(w.constant, zero, axis=1)
        if steps is None:
            raise node.error(f"zero point {w_zero} does not fit weight {w}")
        return exact_product(
            node.b,
            whole_steps(node, a, a_zero, -1),
            steps,
            lambda x, weight: product_of(node, x, weight),
            reduced=0,
            lane=1,
        )
    return _of_tensors(node, shifted(node, a, a_zero, -2), shifted(node, w, w_zero, -1))


def _of_tensors(node: Node, a: Value, w: Value) -> Value:
    """The product of two tensors of differences of codes, exact: by f32 in parts that f32 holds."""
    b, size = node.b, a.shape[-1]
    if a.rank < 2 or w.rank < 2 or size is None:
        return product_of(node, a, w)
    left, right = (b.elementwise([v], F32, lambda q: q.cast(F32)) for v in (a, w))
    node.b.require_equal(a.dims[-1], w.dims[-2], f"{a} is multiplied by {w}: the sizes differ")
    total: Value | None = None
    for begin in range(0, max(size, 1), EXACT_TERMS):
        length = min(EXACT_TERMS, size - begin)
        part = product_of(
            node,
            slice_axis(b, left, left.rank - 1, begin, length),
            slice_axis(b, right, right.rank - 2, begin, length),
        )
        whole = to_integers(b, part)
        total = whole if total is None else b.elementwise([total, whole], I32, lambda p, q: p + q)
    assert total is not None
    return total


def multiply_in_f32(
    node: Node, a: Value, a_zero: Value | None, w: Value, w_zero: Value | None
) -> Value:
    """As `multiply`, for a sum that is scaled: of two tensors it is as exact as f32."""
    if w.is_constant or a.rank < 2 or w.rank < 2:
        return in_f32(node.b, multiply(node, a, a_zero, w, w_zero))
    sides = (shifted(node, a, a_zero, -2), shifted(node, w, w_zero, -1))
    left, right = (node.b.elementwise([side], F32, lambda q: q.cast(F32)) for side in sides)
    return product_of(node, left, right)


@lowers("ConvInteger")
def conv_integer(node: Node) -> Value:
    return convolved(node, node.input(0), node.optional(2), node.input(1), node.optional(3))


def convolved(node: Node, x: Value, x_zero: Value | None, w: Value, w_zero: Value | None) -> Value:
    """The convolution of `x - x_zero` with `w - w_zero` as 32-bit integers."""
    for codes in (x, w):
        if not is_code(codes):
            raise node.error(f"it convolves integers of at most 8 bits, not {codes}")
    if not one_number(x_zero):
        raise node.error("the zero point of its input has one element")
    windows, groups = conv_windows(node, x, w), node.int("group", 1)

    def convolution(image: Value, weight: Value) -> Value:
        return convolve(node, image, weight, None, windows, groups)

    constant_zero = w_zero is None or w_zero.is_constant
    if w.constant is not None and w.size and constant_zero:
        zero = None if w_zero is None else w_zero.as_constant
        steps = weight_steps(w.constant, zero, axis=0)
        if steps is None:
            raise node.error(f"zero point {w_zero} does not fit weight {w}")
        image = whole_steps(node, x, x_zero, 1)
        # Channels of groups are not cut by ranges of all channels.
        if groups == 1 or is_exact(image, steps, lane=0):
            return exact_product(node.b, image, steps, convolution, reduced=1, lane=0)
    return convolution(shifted(node, x, x_zero, 1), shifted(node, w, w_zero, 0))


@lowers("QLinearMatMul")
def qlinear_matmul(node: Node) -> Value:
    a, a_scale, a_zero, w, w_scale, w_zero, y_scale, y_zero = (node.input(i) for i in range(8))
    if not (is_code(a) and is_code(w)):  # 8-bit floats
        x = dequantize(node, a, a_scale, a_zero, axis=-2)
        product = product_of(node, x, dequantize(node, w, w_scale, w_zero, axis=-1))
        return quantize(node, product, y_scale, y_zero, y_zero.dtype)
    sums = multiply_in_f32(node, a, a_zero, w, w_zero)
    rows = along(node, a_scale, sums, -2) if a.rank > 1 else along(node, a_scale, sums, 0)
    columns = along(node, w_scale, sums, -1)
    return requantize(node, sums, [rows, columns], y_scale, y_zero, y_zero.dtype)


@lowers("QLinearConv")
def qlinear_conv(node: Node) -> Value:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (node.input(i) for i in range(8))
    sums = in_f32(node.b, convolved(node, x, x_zero, w, w_zero))
    bias = node.optional(8)
    if bias is not None:
        wide = reshape(node.b, bias, [bias.dims[0], *[ONE] * (sums.rank - 2)])
        sums = node.b.elementwise([sums, wide], F32, lambda v, c: v + c.cast(F32))
    scales = [along(node, x_scale, sums, 1), along(node, w_scale, sums, 1)]
    return requantize(node, sums, scales, y_scale, y_zero, y_zero.dtype)


def requantize(
    node: Node,
    sums: Value,
    scales: list[Value],
    y_scale: Value,
    y_zero: Value | None,
    to: ElementType,
) -> Value:
    """Codes of `sums * scales[0] * scales[1]`; the scales broadcast against the sums."""
    if y_zero is not None and y_zero.dtype != to:
        raise node.error(f"codes of {to.name} and a zero point of {y_zero.dtype.name}")
    parts = [sums, _ratio(node, scales[0], scales[1], along(node, y_scale, sums, -2))]
    if y_zero is not None:
        parts.append(along(node, y_zero, sums, -2))

    def body(total: Scalar, scale: Scalar, *zero: Scalar) -> Scalar:
        return code_of(total * scale, zero[0] if zero else None, to)

    return node.b.elementwise(parts, to, body)


def _ratio(node: Node, first: Value, second: Value, out: Value) -> Value:
    """`first * second / out` in f32; a constant where they are constants."""
    arrays = [value.numpy() for value in (first, second, out)]
    known = [array.astype(np.float32) for array in arrays if array is not None]
    if len(known) == 3:
        return constant_value(from_array(np.asarray(known[0] * known[1] / known[2])), F32)

    def body(s: Scalar, t: Scalar, u: Scalar) -> Scalar:
        return s.cast(F32) * t.cast(F32) / u.cast(F32)

    return node.b.elementwise([first, second, out], F32, body)


@lowers("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(node: Node) -> Value:
    """`(a - a_zero) @ (w - w_zero) * (a_scale * w_scale) + bias`."""
    x = dequantize(node, node.input(0), node.input(2), node.optional(4), axis=-2)
    w = dequantize(node, node.input(1), node.input(3), node.optional(5), axis=-1)
    return with_bias(node, x, w, node.optional(6))


@lowers("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(node: Node) -> Value:
    """As `MatMulIntegerToFloat` of the codes that DynamicQuantizeLinear makes of `a`."""
    x = on_measured_grid(node, node.input(0))
    w = dequantize(node, node.input(1), node.input(2), node.optional(3), axis=-1)
    return with_bias(node, x, w, node.optional(4))


def on_measured_grid(node: Node, x: Value) -> Value:
    """What DynamicQuantizeLinear and DequantizeLinear make of `x`, one after the other."""
    scale, zero = measure(node, x)
    codes = quantize(node, x, scale, zero, zero.dtype)
    return dequantize(node, codes, scale, zero)


def with_bias(node: Node, x: Value, w: Value, bias: Value | None) -> Value:
    """`x @ w + bias`."""
    fused = bias is not None and is_vector(bias, w)
    product = product_of(node, x, w, bias if fused else None)
    if bias is None or fused:
        return product
    return node.b.elementwise([product, bias], product.dtype, lambda v, c: v + c)
