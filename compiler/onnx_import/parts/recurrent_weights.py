"""Weights of recurrent operators: one direction's rows of them, and products with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..building.shaping import reshape, slice_axes, transpose
from ..ops.matmul import batched, is_weight
from ..registry import Node
from ..values.constants import Constant, QuantizedConstant
from ..values.symbolic import Dim
from ..values.value import Value, constant_value
from .affine import product_operand


def of_direction(node: Node, x: Value, direction: int, begin: Dim, size: Dim) -> Value:
    """`x[direction, begin : begin + size]`, a constant if `x` is one."""
    if x.constant is not None and begin.value is not None and size.value is not None:
        part = slice(begin.value, begin.value + size.value)
        return constant_value(_part(x.constant, direction, part), x.dtype)
    begins = [Dim.of(direction), begin, *[Dim.of(0)] * (x.rank - 2)]
    taken = slice_axes(node.b, x, begins, [Dim.of(1), size, *x.dims[2:]])
    return reshape(node.b, taken, taken.dims[1:])


def _part(constant: Constant, direction: int, rows: slice) -> Constant:
    """`constant[direction, rows]`, read when it is asked for; its codes too, where it has some."""
    load = constant.load
    shape = (rows.stop - rows.start, *constant.shape[2:])
    part = Constant(shape, constant.elem_type, lambda: load()[direction, rows], name=constant.name)
    source = constant.quantized
    if source is None or len(source.codes.shape) != len(constant.shape):
        return part
    scale = source.scale and _spread_part(source.scale, direction, rows)
    zero = source.zero and _spread_part(source.zero, direction, rows)
    codes = _part(source.codes, direction, rows)
    return replace(part, quantized=QuantizedConstant(codes, scale, zero))


def _spread_part(constant: Constant, direction: int, rows: slice) -> Constant:
    """As `_part`, of scales or zero points, whose axes may be 1."""
    one = slice(0, 1)
    return _part(
        constant,
        direction if constant.shape[0] > 1 else 0,
        rows if len(constant.shape) > 1 and constant.shape[1] > 1 else one,
    )


@dataclass(frozen=True)
class Product:
    """`x @ w^T + bias` for rows `w`, N x K. `label` tells products of one node apart.

    Constant weights are `abq.matmul`, which recipes quantize.
    """

    node: Node
    w: Value
    label: str
    bias: Value | None = None

    def of(self, x: Value) -> Value:
        node, b = self.node, self.node.b
        dims = (*x.dims[:-1], self.w.dims[0])
        if is_weight(self.w):
            assert self.w.constant is not None
            name = f"{node.name}/{self.label}"
            weight = node.weight(self.w.constant, "matmul", self.label)
            bias = None if self.bias is None else b.tensor(self.bias)
            operand, scales = product_operand(b, x, self.w.constant)
            ssa = abq.MatmulOp(
                operand, weight, ir.StringAttr.get(name), b.type(x.dtype, dims),
                bias=bias, **scales,
            ).result  # fmt: skip
            return Value(x.dtype, dims, ssa=ssa)
        result = batched(b, x, transpose(b, self.w, [1, 0]))
        if self.bias is not None:
            result = b.elementwise([result, self.bias], x.dtype, lambda v, w: v + w)
        return reshape(b, result, dims)
