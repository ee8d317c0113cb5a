"""The product with an epilogue.

(No postponed annotations here: the bindings read them as Python objects.)
"""

from typing import Any

from .abq import Tensor, TensorResult, VerifiedOperation, _require, element, is_packed
from .abq_conv import Abq, _check_epilogue
from .mlir import ext, ir

__all__ = ["Abq", "FusedMatmulOp"]


class FusedMatmulOp(
    VerifiedOperation, name="fused_matmul", traits=[ext.Pure, ir.IsIsolatedFromAboveTrait]
):
    """An `abq.matmul` whose weight is packed, with an `epilogue` as `abq.direct_conv` has it: what
    becomes of every element of the result, [..., n], in f32.

    It has the attributes of an `abq.matmul` that `pack-layouts` has made.
    """

    x: Tensor
    w: Tensor
    node: ir.StringAttr
    result: TensorResult
    epilogue: ext.Region
    maps: ir.ArrayAttr = ext.attribute(default_factory=lambda: ir.ArrayAttr.get([]))
    bias: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None
    third: Tensor | None = None
    fourth: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        _require(is_packed(op.w), "w is packed")
        _require(isinstance(element(op.result), ir.F32Type), "an epilogue is of floats")
        _require(bool(len(op.regions[0].blocks)), "there is an epilogue")
        _check_epilogue(op)
