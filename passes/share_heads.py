"""Heads of keys and values that are repeated for groups of query heads are read where they are.

    w = broadcast of [B, Hk, 1, T, D] to [B, Hk, G, T, D]
    c = collapse_shape w to [B * Hk * G, T, D]
    y = abq.batch_matmul(a, c)

Consecutive matrices of `a` may share one of `c`, so `c` is the collapse of what was not repeated:
the cache of a decoder with grouped queries (Ainslie et al., 2023) is not copied, but read G times.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from abqc.dialects import abq
from abqc.dialects.mlir import ir, tensor

from .generics import expression, groups, inputs, is_elementwise, maps
from .infrastructure import Unit, defining_op, register, walk


@dataclass(frozen=True)
class _Repeated:
    """Axes of a batch, of which the last ones, of size 1 in `source`, were repeated."""

    source: ir.Value
    batch: list[int]
    repeated: list[int]


@register
def share_heads(module: ir.Operation, unit: Unit) -> None:
    """Take repetitions off the second operand of abq.batch_matmul."""
    for product in walk(module, "abq.batch_matmul"):
        found = _match(product.operands[1])
        if found is not None:
            with ir.InsertionPoint(product), product.location:
                product.operands[1] = _collapse_batch(found)


def _match(c: ir.Value) -> _Repeated | None:
    """What was repeated along the innermost axes of the batch, if that is all that was done."""
    collapse = defining_op(c)
    if collapse is None or collapse.name != "tensor.collapse_shape":
        return None
    batch, *matrix = groups(collapse)
    if any(len(group) != 1 for group in matrix):
        return None
    repeat = defining_op(collapse.operands[0])
    if not is_elementwise(repeat) or len(inputs(repeat)) != 1 or expression(repeat) != ("in", 0):
        return None
    (source,), reads = inputs(repeat), list(maps(repeat)[0].results)
    zero = ir.AffineConstantExpr.get(0)
    repeated = [i for i, size in enumerate(abq.shape(source)) if size == 1 and reads[i] == zero]
    kept = [i for i in range(len(reads)) if i not in repeated]
    if not repeated or repeated != batch[-len(repeated) :] or repeated == batch:
        return None
    if any(reads[i] != ir.AffineDimExpr.get(i) for i in kept):
        return None
    return _Repeated(source, batch, repeated)


def _collapse_batch(found: _Repeated) -> ir.Value:
    """The source as [batch, T, D]."""
    heads = _without_repeated(found)
    batch = len(found.batch) - len(found.repeated)
    return _collapse(heads, [list(range(batch)), [batch], [batch + 1]])


def _without_repeated(found: _Repeated) -> ir.Value:
    sizes = abq.shape(found.source)
    kept = [size for i, size in enumerate(sizes) if i not in found.repeated]
    made = defining_op(found.source)
    expanded = made is not None and made.name == "tensor.expand_shape"
    if made is not None and expanded and abq.shape(made.operands[0]) == kept:
        return made.operands[0]
    last = found.repeated[0] - 1  # the axis that takes the repeated ones in
    joined = [*([i] for i in range(last)), [last, *found.repeated]]
    joined += [[i] for i in range(found.repeated[-1] + 1, len(sizes))]
    return _collapse(found.source, joined)


def _collapse(value: ir.Value, axes: list[list[int]]) -> ir.Value:
    sizes = abq.shape(value)
    shape = [
        abq.DYNAMIC
        if any(sizes[i] == abq.DYNAMIC for i in group)
        else prod(sizes[i] for i in group)
        for group in axes
    ]
    type_ = ir.RankedTensorType.get(shape, abq.element(value))
    return tensor.CollapseShapeOp(type_, value, axes).result
