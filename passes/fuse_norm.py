"""Normalizations of rows, spelled out as several loops, become `abq.norm` and `abq.softmax`.

`patterns/norm_chain.py` finds them. A sum x = a + residual is taken along; its other users read it
from the norm.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir
from abqc.dialects.norm_spec import MAX_COLUMNS

from .infrastructure import Unit, defining_op, is_used, register, users, walk
from .loops.generics import expression, is_elementwise
from .patterns.norm_chain import Norm, match_norm, only_feeds
from .patterns.softmax import match_softmax, operand_in_order

# Longer rows have no kernel (codegen/gpu/rows/norm.py).


@register
def fuse_norm(module: ir.Operation, unit: Unit) -> None:
    """Turn layer norms, RMS norms and softmaxes over the last axis into one operation each."""
    for op in walk(module, "abq.norm"):
        if op.opview.residual is None:
            _rewrite(op, _named(op))
            op.erase()
    for op in walk(module, "linalg.generic"):
        if not is_elementwise(op) or not is_used(op.results[0]):
            continue
        norm = match_norm(op)
        if norm is not None and abq.shape(op.results[0])[-1] <= MAX_COLUMNS:
            _rewrite(op, norm)
            continue
        softmax = match_softmax(op.results[0])
        if softmax is None or softmax.guarded:
            continue
        if softmax.x.type == op.results[0].type:
            with ir.InsertionPoint(op), op.location:
                y = abq.SoftmaxOp(softmax.x, op.results[0].type).result
            op.results[0].replace_all_uses_with(y)


def _named(op: ir.Operation) -> Norm:
    """A norm that the model already had as one operation: its sum is looked for."""
    view = op.opview
    epsilon = ir.FloatAttr(op.attributes["epsilon"]).value
    return Norm(ir.StringAttr(view.kind).value, view.x, epsilon, view.weight, view.bias)


def _rewrite(op: ir.Operation, norm: Norm) -> None:
    a, residual = _residual(op, norm.x)
    type_ = op.results[0].type
    with ir.InsertionPoint(op), op.location:
        new = abq.NormOp(
            a,
            ir.StringAttr.get(norm.kind),
            ir.FloatAttr.get(ir.F32Type.get(), norm.epsilon),
            type_,
            type_,
            residual=residual,
            weight=norm.weight,
            bias=norm.bias,
        )
    if residual is not None:
        for use in list(norm.x.uses):
            if op.is_before_in_block(use.owner.operation):
                use.owner.operands[use.operand_number] = new.sum
    op.results[0].replace_all_uses_with(new.result)
    if op.name == "abq.norm":
        op.results[1].replace_all_uses_with(new.sum)


def _residual(op: ir.Operation, x: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """The parts of x if it is a sum of two tensors of its shape that only the norm, and what comes
    after it, reads; else x itself.

    What comes before the norm would need the sum by itself, and it would be computed twice.
    """
    add = defining_op(x)
    if not is_elementwise(add) or expression(add) != ("arith.addf", ("in", 0), ("in", 1)):
        return x, None
    parts = [operand_in_order(add, i) for i in range(2)]
    if any(part is None or part.type != x.type for part in parts):
        return x, None
    return (parts[0], parts[1]) if _read_by_norm_or_later(x, op) else (x, None)


def _read_by_norm_or_later(x: ir.Value, op: ir.Operation) -> bool:
    """Whether all readers of x are loops of the norm, whose results nothing else reads, or come
    after it."""
    for user in users(x):
        reader = user.operation
        if reader == op or reader.name == "tensor.dim":
            continue
        if reader.block != op.block:
            return False
        if not op.is_before_in_block(reader) and not only_feeds(reader, (op,)):
            return False
    return True
