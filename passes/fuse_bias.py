"""The addition of a constant vector behind an `abq.matmul` becomes its bias."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, register, users, walk
from .loops.generics import dims, expression, inputs, is_elementwise, is_identity, maps, rank

_CONSTANTS = ("arith.constant", "abq.weight")


@register
def fuse_bias(module: ir.Operation, unit: Unit) -> None:
    """Take `matmul(x, w) + b` with a constant b of N elements as one abq.matmul."""
    for matmul in walk(module, "abq.matmul"):
        if matmul.opview.bias is not None:
            continue
        readers = [user.operation for user in users(matmul.results[0])]
        loop = readers[0] if len(readers) == 1 else None
        bias = _bias(loop, matmul) if loop is not None else None
        if loop is None or bias is None:
            continue
        with ir.InsertionPoint(loop), matmul.location:
            view = matmul.opview
            new = abq.MatmulOp(
                view.x,
                view.w,
                matmul.attributes["node"],
                loop.results[0].type,
                bias=bias,
                x_scale=view.x_scale,
                x_zero=view.x_zero,
                w_scale=view.w_scale,
                w_zero=view.w_zero,
            )
        loop.results[0].replace_all_uses_with(new.result)
        loop.erase()
        matmul.erase()


def _bias(loop: ir.Operation, matmul: ir.Operation) -> ir.Value | None:
    """The constant vector that `loop` adds to the product, if that is all it does."""
    if not is_elementwise(loop) or loop.results[0].type != matmul.results[0].type:
        return None
    if len(inputs(loop)) != 2 or expression(loop) != ("arith.addf", ("in", 0), ("in", 1)):
        return None
    at = inputs(loop).index(matmul.results[0])
    bias, map_ = inputs(loop)[1 - at], maps(loop)[1 - at]
    made = defining_op(bias)
    if made is None or made.name not in _CONSTANTS or not is_identity(maps(loop)[at]):
        return None
    columns = abq.shape(matmul.results[0])[-1]
    if abq.shape(bias) != [columns] or dims(map_) != [rank(loop) - 1]:
        return None
    return bias
