"""Operations of the abq dialect that go along a sequence with a state.

(No postponed annotations here: the bindings read them as Python objects.)
"""

from typing import Any

from .abq import (
    DYNAMIC,
    Tensor,
    TensorResult,
    VerifiedOperation,
    _agree,
    _require,
    element,
    shape,
)
from .mlir import ext, ir

__all__ = ["SCANNED", "SelectiveScanOp"]

# The operands of a selective scan that have a row for each step, which may be bytes.
SCANNED = ("x", "delta", "b", "c")


class SelectiveScanOp(VerifiedOperation, name="selective_scan", traits=[ext.Pure]):
    """The recurrence of a selective state space model (Mamba; Gu and Dao, arXiv 2312.00752):

        h[t] = exp(d[t] * a) * h[t - 1] + d[t] * b[t] * x[t],   y[t] = sum over n of c[t] * h[t]

    for every sample and channel. `x` and `delta` are B x T x D, `a` is D x N, `b` and `c` are
    B x T x N, `y` is B x T x D; `state`, h after the last step, and `initial`, h before the first
    (zeros where it is absent), are B x D x N. d is `delta`, its softplus where `softplus` is 1.

    x, delta, b and c may be signed bytes; a value is then scale * (byte - zero), with a scale (f32)
    and a zero point (i32) for each of them, tensors of one element. `node` is the name of the ONNX
    node, which recipes match.
    """

    x: Tensor
    delta: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    softplus: ir.IntegerAttr  # 0 or 1
    node: ir.StringAttr
    y: TensorResult
    state: TensorResult
    initial: Tensor | None = None
    x_scale: Tensor | None = None
    x_zero: Tensor | None = None
    delta_scale: Tensor | None = None
    delta_zero: Tensor | None = None
    b_scale: Tensor | None = None
    b_zero: Tensor | None = None
    c_scale: Tensor | None = None
    c_zero: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        ranks = [len(shape(value)) for value in (op.x, op.delta, op.a, op.b, op.c, op.y, op.state)]
        _require(ranks == [3, 3, 2, 3, 3, 3, 3], "a has rank 2, all others have rank 3")
        (batch, steps, channels), states = shape(op.x), shape(op.a)[1]
        _require(DYNAMIC not in (channels, states), "channels and states are static")
        for name, expected in (
            ("delta", [batch, steps, channels]),
            ("y", [batch, steps, channels]),
            ("a", [channels, states]),
            ("b", [batch, steps, states]),
            ("c", [batch, steps, states]),
            ("state", [batch, channels, states]),
            ("initial", [batch, channels, states]),
        ):
            value = getattr(op, name)
            agree = value is None or all(map(_agree, shape(value), expected))
            _require(agree, f"{name} must be {expected}, with x {shape(op.x)}")
        for name in SCANNED:
            scale, zero = getattr(op, f"{name}_scale"), getattr(op, f"{name}_zero")
            codes = isinstance(element(getattr(op, name)), ir.IntegerType)
            _require(codes == (scale is not None), f"{name}_scale belongs to bytes")
            _require((scale is None) == (zero is None), f"{name}: a scale with a zero point")
