"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, of ONNX and of com.microsoft."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..building.shaping import reshape
from ..parts.affine import FLOATS, dequantize, kernel_scheme, quantize
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import F32, I32, U8, ElementType
from ..values.symbolic import ONE, product
from ..values.value import Value


@lowers("DequantizeLinear")
@lowers("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(node: Node) -> Value:
    to = node.type_of("output_dtype") if node.int("output_dtype", 0) else None
    return dequantize(
        node,
        node.input(0),
        node.input(1),
        node.optional(2),
        axis=node.int("axis", 1),
        block=node.int("block_size", 0),
        to=to,
    )


@lowers("QuantizeLinear")
@lowers("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(node: Node) -> Value:
    """The division is done in f32 whatever the types (as onnxruntime does)."""
    x, scale, zero = node.input(0), node.input(1), node.optional(2)
    to = _code_type(node, zero)
    if x.dtype not in (*FLOATS, I32):
        raise node.error(f"it quantizes floats and 32-bit integers, not {x.dtype.name}")
    if not (to.is_small_float or (to.is_integer and to.bits <= 16)):
        raise node.error(f"{to.name} is no type of codes")
    return quantize(
        node,
        x,
        scale,
        zero,
        to,
        axis=node.int("axis", 1),
        block=node.int("block_size", 0),
        saturate=bool(node.int("saturate", 1)),
    )


def _code_type(node: Node, zero: Value | None) -> ElementType:
    """Of the result: the zero point's type, else what `output_dtype` says, else uint8."""
    asked = node.type_of("output_dtype") if node.int("output_dtype", 0) else None
    if zero is None:
        return asked or U8
    if asked not in (None, zero.dtype):
        raise node.error(
            f"output_dtype is {asked.name} and the zero point of {zero.dtype.name}"  # type: ignore[union-attr]
        )
    return zero.dtype


@lowers("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: Node) -> list[Value]:
    x = node.input(0)
    scale, zero = measure(node, x)
    return [quantize(node, x, scale, zero, U8), scale, zero]


def measure(node: Node, x: Value) -> tuple[Value, Value]:
    """The scale and zero point (uint8) that ONNX's DynamicQuantizeLinear gives a tensor."""
    b = node.b
    if x.dtype.inside() != F32.inside():
        raise node.error(f"it quantizes floats of at most 32 bits, not {x.dtype.name}")
    row = reshape(b, x, [ONE, product(x.dims)])
    i32 = ir.IntegerType.get_signless(32)
    measured = abq.MeasureOp(
        b.tensor(row),
        ir.StringAttr.get(kernel_scheme(symmetric=False)),
        ir.RankedTensorType.get([1], F32.inside()),
        ir.RankedTensorType.get([1], i32),
    )
    scale = reshape(b, Value(F32, (ONE,), ssa=measured.scale), [])
    zero = reshape(b, Value(I32, (ONE,), ssa=measured.zero), [])
    return scale, b.elementwise([zero], U8, lambda z: z.cast(U8))
