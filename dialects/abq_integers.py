"""Operations of the abq dialect that integer-only graphs are made by (docs/numerics.md).

(No postponed annotations here: the bindings read them as Python objects.)
"""

from typing import Any

from .abq import Tensor, TensorResult, VerifiedOperation, _require
from .mlir import ext, ir

__all__ = ["FakeQuantizeOp"]


class FakeQuantizeOp(VerifiedOperation, name="fake_quantize", traits=[ext.Pure]):
    """`x` rounded to codes of `format` with one scale, and back: scale * (code - zero).

    The weight store has the scale and zero point, as f64 [2], under `symbol` once calibration has
    fixed them. `node` is the ONNX node that computes x, which recipes match.
    """

    x: Tensor
    node: ir.StringAttr
    symbol: ir.StringAttr
    format: ir.StringAttr
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        _require(op.x.type == op.result.type, "x and the result have one type")
