"""Operators on quantized tensors, spelled out in floats.

torch-mlir misreads some of their forms (scales along an axis, batches of matrices), and a product
with a constant becomes an abq operation this way.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from .build import Nodes
from .model import Model, attribute

RANGES = {
    TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767), TensorProto.UINT16: (0, 65535),
}  # fmt: skip
FLOAT = TensorProto.FLOAT


class _Quantized(Nodes):
    """Adds the steps of dequantizing and quantizing; `parts` name their values."""

    def dequantize(self, x: str, scale: str, zero: str, axis: int, part: str) -> str | None:
        """scale * (x - zero) in f32, "" for 1 and 0; None for forms that are not spelled out."""
        spread_scale = self._along(scale, x, axis, f"{part}scale") if scale else ""
        spread_zero = self._along(zero, x, axis, f"{part}zero") if zero else ""
        if spread_scale is None or spread_zero is None:
            return None
        values = self.add("Cast", [x], f"{part}values", to=FLOAT)
        if spread_zero:
            shift = self.add("Cast", [spread_zero], f"{part}shift", to=FLOAT)
            values = self.add("Sub", [values, shift], f"{part}shifted")
        return self.add("Mul", [values, spread_scale], f"{part}real") if spread_scale else values

    def quantize(self, x: str, scale: str, zero: str, to: int, axis: int) -> bool:
        """The origin's output: saturated round(x / scale) + zero. False if not spelled out."""
        spread_scale = self._along(scale, x, axis, "yscale")
        spread_zero = self._along(zero, x, axis, "yzero") if zero else ""
        if spread_scale is None or spread_zero is None or to not in RANGES:
            return False
        steps = self.add("Round", [self.add("Div", [x, spread_scale], "steps")], "rounded")
        if spread_zero:
            shift = self.add("Cast", [spread_zero], "yshift", to=FLOAT)
            steps = self.add("Add", [steps, shift], "yshifted")
        low, high = (self.scalar(f"limit{i}", value) for i, value in enumerate(RANGES[to]))
        limited = self.add("Min", [self.add("Max", [steps, low], "atleast"), high], "limited")
        whole = self.add("Cast", [limited], "whole", to=TensorProto.INT32)
        self.add("Cast", [whole], to=to)
        return True

    def _along(self, part: str, x: str, axis: int, name: str) -> str | None:
        """A scale or zero point that broadcasts against `x`."""
        shape, whole = self.model.shape(part), self.model.shape(x)
        if shape is None or len(shape) > 1:
            return None  # blocked, or unknown
        if not shape or shape == (1,):
            return part
        if whole is None:
            return None
        behind = len(whole) - 1 - axis % len(whole)
        if not behind:
            return part
        target = self.constant(f"{name}/shape", np.array([-1] + [1] * behind, np.int64))
        return self.add("Reshape", [part, target], name)


def dequantize_linear(model: Model, node: NodeProto) -> list[NodeProto] | None:
    x, scale, zero = _inputs(node, 3)
    if model.elem_type(scale) != FLOAT or attribute(node, "block_size", 0):
        return None
    new = _Quantized(model, node)
    real = new.dequantize(x, scale, zero, attribute(node, "axis", 1), "")
    if real is None:
        return None
    new[-1].output[0] = node.output[0]
    return new


def quantize_linear(model: Model, node: NodeProto) -> list[NodeProto] | None:
    x, scale, zero = _inputs(node, 3)
    to = model.elem_type(zero) if zero else attribute(node, "output_dtype", 0) or TensorProto.UINT8
    if {model.elem_type(x), model.elem_type(scale)} != {FLOAT}:
        return None
    if attribute(node, "block_size", 0) or attribute(node, "precision", 0) not in (0, FLOAT):
        return None
    new = _Quantized(model, node)
    return new if new.quantize(x, scale, zero, to, attribute(node, "axis", 1)) else None


def qlinear_matmul(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """quantize(dequantize(a) @ dequantize(b))."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
    if {model.elem_type(scale) for scale in (a_scale, b_scale, y_scale)} != {FLOAT}:
        return None
    new = _Quantized(model, node)
    left = new.dequantize(a, a_scale, a_zero, -2, "a/")
    right = new.dequantize(b, b_scale, b_zero, -1, "b/")
    if left is None or right is None:
        return None
    product = new.add("MatMul", [left, right], "product")
    new[-1].name = node.name
    return new if _requantize(model, new, product, y_scale, y_zero) else None


def qlinear_conv(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """quantize(conv(dequantize(x), dequantize(w)) + bias), the bias in steps of both scales."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = _inputs(node, 9)
    new = _Quantized(model, node)
    image = new.dequantize(x, x_scale, x_zero, 1, "x/")
    window = new.dequantize(w, w_scale, w_zero, 0, "w/")
    if image is None or window is None:
        return None
    inputs = [image, window]
    if bias:
        step = new.add("Mul", [x_scale, w_scale], "step")
        real = new.add("Mul", [new.add("Cast", [bias], "bias", to=FLOAT), step], "offset")
        inputs.append(real)
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    product = new.add("Conv", inputs, "product", **attributes)
    new[-1].name = node.name
    return new if _requantize(model, new, product, y_scale, y_zero) else None


def matmul_integer(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """With a constant on the right: a float product, exact up to 2^24, cast back."""
    a, b, a_zero, b_zero = _inputs(node, 4)
    if b not in model.constants:
        return None
    new = _Quantized(model, node)
    left = new.dequantize(a, "", a_zero, -2, "a/")
    right = new.dequantize(b, new.scalar("one", 1.0), b_zero, -1, "b/")  # folded, as codes
    if left is None or right is None:
        return None
    product = new.add("MatMul", [left, right], "product")
    new[-1].name = node.name
    new.add("Cast", [product], to=TensorProto.INT32)
    new[-1].name = f"{node.name}/integers"
    return new


def _requantize(model: Model, new: _Quantized, product: str, scale: str, zero: str) -> bool:
    if not new.quantize(product, scale, zero, model.elem_type(zero), 1):
        return False
    new[-1].name = f"{new.origin.name}/codes"
    return True


def _inputs(node: NodeProto, count: int) -> list[str]:
    """All inputs, "" for those left out."""
    return [*node.input, *[""] * (count - len(node.input))]
