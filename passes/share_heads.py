"""Heads of keys and values that are repeated for groups of query heads are read where they are.

    w = broadcast of [B, Hk, 1, T, D] to [B, Hk, G, T, D]
    c = collapse_shape w to [B * Hk * G, T, D]            or k = .. to [B, Hk * G, T, D]
    y = abq.batch_matmul(a, c)                            or abq.attention(q, k, v)

Consecutive matrices of `a` may share one of `c`, and consecutive heads of `q` one of `k` and `v`.
So these are what was not repeated: the cache of a decoder with grouped queries (Ainslie et al.,
"GQA", 2023) is not copied, but read G times. Between repetition and collapse, matrices may have
been transposed and computed with element by element; that is then done to each once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg, tensor

from .infrastructure import Unit, defining_op, register, walk
from .loops.axis_blocks import clone_body, parallel_loop
from .loops.generics import (
    expression,
    groups,
    ignores_init,
    inputs,
    is_elementwise,
    is_identity,
    maps,
    rank,
)
from .resolve_dims import mixed_sizes

# How many consecutive matrices of the first operand share one of the second, where this pass made
# it so; DYNAMIC: that is known at run time.
GROUP = "group"


@dataclass(frozen=True)
class _Repeated:
    """A tensor, which of its axes of size 1 were repeated, what was done to it then, last step
    first, and what was made one axis in the end."""

    source: ir.Value
    repeated: list[int]
    steps: list[ir.Operation]
    groups: list[list[int]]
    times: int


@register
def share_heads(module: ir.Operation, unit: Unit) -> None:
    """Take repetitions off the operands of abq.batch_matmul and abq.attention."""
    for product in walk(module, "abq.batch_matmul"):
        found = _match(product.operands[1], 0)
        if found is not None:
            with ir.InsertionPoint(product), product.location:
                product.operands[1] = _not_repeated(found)
            product.attributes[GROUP] = ir.IntegerAttr.get(ir.IndexType.get(), found.times)
    for attention in walk(module, "abq.attention"):
        _share(attention)


def _share(attention: ir.Operation) -> None:
    """Both keys and values, or neither: they have as many heads."""
    rows_first = list(ir.DenseI64ArrayAttr(attention.attributes["rows_first"]))
    found = [_match(attention.operands[i], 1) for i in (1, 2)]
    known = [repeated for repeated in found if repeated is not None]
    if any(rows_first[1:3]) or len(known) != 2:
        return
    with ir.InsertionPoint(attention), attention.location:
        k, v = (_not_repeated(repeated) for repeated in known)
    if abq.shape(k)[1] == abq.shape(v)[1] != abq.DYNAMIC:
        attention.operands[1], attention.operands[2] = k, v


def _match(value: ir.Value, heads: int) -> _Repeated | None:
    """What was repeated along the innermost axes of group `heads` of a collapse."""
    collapse = defining_op(value)
    if collapse is None or collapse.name != "tensor.collapse_shape":
        return None
    of_axes = groups(collapse)
    if any(len(group) != 1 for i, group in enumerate(of_axes) if i != heads):
        return None
    made, steps = defining_op(collapse.operands[0]), []
    while made is not None and _keeps_batch(made):
        steps.append(made)
        made = defining_op(made.operands[0])
    repeated = _repeated_axes(made)
    if made is None or not repeated or repeated == of_axes[heads]:
        return None
    if repeated != of_axes[heads][-len(repeated) :]:
        return None
    sizes = [abq.shape(made.results[0])[i] for i in repeated]
    times = abq.DYNAMIC if abq.DYNAMIC in sizes else prod(sizes)
    return _Repeated(inputs(made)[0], repeated, steps, of_axes, times)


def _repeated_axes(op: ir.Operation | None) -> list[int]:
    """Along which axes a loop repeats a tensor, if that is all that it does."""
    if op is None or not is_elementwise(op) or len(inputs(op)) != 1:
        return []
    source, reads = inputs(op)[0], list(maps(op)[0].results)
    if expression(op) != ("in", 0) or len(reads) != rank(op):
        return []
    zero = ir.AffineConstantExpr.get(0)
    repeated = [i for i, size in enumerate(abq.shape(source)) if size == 1 and reads[i] == zero]
    kept = [i for i in range(len(reads)) if i not in repeated]
    return repeated if all(reads[i] == ir.AffineDimExpr.get(i) for i in kept) else []


def _keeps_batch(op: ir.Operation) -> bool:
    """Whether `op` does the same to every matrix, whatever its number in the batch."""
    if op.name == "linalg.transpose":
        order = list(ir.DenseI64ArrayAttr(op.attributes["permutation"]))
        batch = len(order) - 2
        return order == [*range(batch), batch + 1, batch]
    if not is_elementwise(op) or len(inputs(op)) != 1 or not is_identity(maps(op)[0]):
        return False
    return ignores_init(op) and not list(walk(op, "linalg.index"))


def _step(op: ir.Operation, value: ir.Value) -> ir.Value:
    """The same as `op` does, of a tensor without the repeated axes."""
    element = abq.element(op.results[0])
    sizes = mixed_sizes(value)
    if op.name == "linalg.transpose":
        batch = len(sizes) - 2
        order = [*range(batch), batch + 1, batch]
        empty = tensor.EmptyOp([sizes[i] for i in order], element).result
        return linalg.transpose(value, outs=[empty], permutation=order).operation.results[0]
    empty = tensor.EmptyOp(sizes, element).result
    identity = ir.AffineMap.get_identity(len(sizes))
    return parallel_loop([value], [identity], empty, lambda elements: clone_body(op, elements))


def _not_repeated(found: _Repeated) -> ir.Value:
    """The source, its axes made one as those of what was repeated."""
    value = _without_repeated(found)
    for step in reversed(found.steps):
        value = _step(step, value)
    axes: list[list[int]] = []
    for group in found.groups:
        begin = sum(map(len, axes))
        kept = len(group) - sum(i in found.repeated for i in group)
        axes.append(list(range(begin, begin + kept)))
    return value if all(len(group) == 1 for group in axes) else _collapse(value, axes)


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
