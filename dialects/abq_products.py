"""The product with an epilogue, and packs with a prologue.

(No postponed annotations here: the bindings read them as Python objects.)
"""

from typing import Any

from .abq import Tensor, TensorResult, VerifiedOperation, _require, element, is_packed
from .abq_conv import _check_epilogue, epilogue_inputs
from .mlir import ext, ir

__all__ = ["FusedMatmulOp", "FusedPackOp"]


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


class FusedPackOp(
    VerifiedOperation, name="fused_pack", traits=[ext.Pure, ir.IsIsolatedFromAboveTrait]
):
    """An `abq.pack` of rows with scales of their own, that makes its rows of others: the `prologue`
    is an f32 of an element of x and of each of `first` to `fourth`. `reads` says of each of these
    whether it has an "element" at the place of x's, or one for each "channel", the last axis of x.
    """

    x: Tensor
    kernel: ir.StringAttr
    result: TensorResult
    prologue: ext.Region
    reads: ir.ArrayAttr = ext.attribute(default_factory=lambda: ir.ArrayAttr.get([]))
    first: Tensor | None = None
    second: Tensor | None = None
    third: Tensor | None = None
    fourth: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        inputs, reads = epilogue_inputs(op), [ir.StringAttr(read).value for read in op.reads]
        _require(is_packed(op.result), "the result is packed")
        _require(len(inputs) == len(reads), "how each input is read")
        _require(set(reads) <= {"element", "channel"}, "inputs are read as elements or channels")
        for value in (op.x, *inputs):
            _require(isinstance(element(value), ir.F32Type), "a prologue reads f32")
        (block,) = op.regions[0].blocks
        _require(len(block.arguments) == 1 + len(inputs), "an argument for each input")
