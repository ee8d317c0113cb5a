"""Attention, spelled out as two products around a softmax, becomes `abq.attention`.

    scores = abq.batch_matmul(q, k) {transposed}
    x      = scale * scores + mask                score_chain.py: the forms
    p      = softmax(x)                           softmax.py
    y      = abq.batch_matmul(p, v)

Heads are an axis of q, k and v that was collapsed into the batch; their transposes (rows before
heads) are read in place. What is not of this form stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import ir, tensor

from .generics import dims, groups, is_elementwise
from .infrastructure import Unit, defining_op, register, users, walk
from .resolve_dims import dimension_or_query
from .score_chain import Chain, Mask, match_chain
from .softmax import match_softmax

# Wider heads have no kernel (codegen/gpu/attention_spec.py).
MAX_HEAD = 256

_HEADS_IN_BATCH = [[0, 1], [2], [3]]
_ROWS_AND_HEADS = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Match:
    q: ir.Value
    k: ir.Value
    v: ir.Value
    chain: Chain | None


@register
def fuse_attention(module: ir.Operation, unit: Unit) -> None:
    """Turn softmax(q k^T) v into abq.attention."""
    for product in walk(module, "abq.batch_matmul"):
        match = _match(product)
        if match is not None:
            _rewrite(product, match)


def _match(product: ir.Operation) -> _Match | None:
    """What the second product of an attention is made of; None for other products."""
    p, v = product.operands
    if _is_transposed(product):
        return None
    collapse = _collapse_of_heads(p)
    softmax = match_softmax(collapse.operands[0] if collapse is not None else p)
    if (
        softmax is None
        or not _has_one_user(p)
        or (collapse and not _has_one_user(collapse.operands[0]))
    ):
        return None
    x = softmax.x
    chain = match_chain(defining_op(x)) if is_elementwise(defining_op(x)) else None
    scores = chain.scores if chain is not None else x
    expand = defining_op(scores)
    if expand is not None and expand.name == "tensor.expand_shape":
        if groups(expand) != _HEADS_IN_BATCH:
            return None
        scores = expand.operands[0]
    first = defining_op(scores)
    if first is None or first.name != "abq.batch_matmul" or not _is_transposed(first):
        return None
    q, k = first.operands
    if max(abq.shape(q)[2], abq.shape(v)[2]) > MAX_HEAD or abq.DYNAMIC in (
        abq.shape(q)[2],
        abq.shape(v)[2],
    ):
        return None
    return _Match(q, k, v, chain)


def _is_transposed(product: ir.Operation) -> bool:
    return bool(ir.IntegerAttr(product.attributes["transposed"]).value)


def _has_one_user(value: ir.Value) -> bool:
    return sum(1 for user in users(value) if user.operation.name != "tensor.dim") == 1


def _collapse_of_heads(value: ir.Value) -> ir.Operation | None:
    """The reshape [B, H, ., .] -> [B * H, ., .] that makes `value`."""
    op = defining_op(value)
    if op is None or op.name != "tensor.collapse_shape" or groups(op) != _HEADS_IN_BATCH:
        return None
    return op


def _rewrite(product: ir.Operation, match: _Match) -> None:
    collapses = [_collapse_of_heads(value) for value in (match.q, match.k, match.v)]
    apart = all(collapse is not None for collapse in collapses)
    mask = match.chain.mask() if match.chain is not None else None
    if mask is not None:
        mask = _mask_of_heads(mask, apart)
        if mask is None:
            return  # it tells batches from heads, q does not
    with ir.InsertionPoint(product), product.location:
        if apart:
            sources = [_in_place(c.operands[0]) for c in collapses if c is not None]
        else:
            sources = [(_one_batch(value), 0) for value in (match.q, match.k, match.v)]
        expand, transpose = _output(product) if apart else (None, None)
        y = _attention(sources, mask, match, transpose, expand, product)
        if transpose is not None:
            transpose.results[0].replace_all_uses_with(y)
            return
        flat = product.results[0].type
        product.results[0].replace_all_uses_with(
            tensor.CollapseShapeOp(flat, y, _HEADS_IN_BATCH).result
        )


def _mask_of_heads(mask: Mask, apart: bool) -> Mask | None:
    """The mask by (b, h, m, t), whatever loops the scores had; None where they cannot be told.

    Without axes for batch and head all heads are one batch's.
    """
    places = {
        (4, True): (0, 1, 2, 3),
        (4, False): (None, None, 2, 3),
        (3, True): (None, 2, 3),
        (3, False): (1, 2, 3),
    }.get((mask.map_.n_dims, apart))
    read = dims(mask.map_)
    if places is None or read is None or any(places[d] is None for d in read):
        return None
    results: list[ir.AffineExpr] = []
    for result in mask.map_.results:
        if isinstance(result, ir.AffineDimExpr):
            place = places[ir.AffineDimExpr(result).position]
            assert place is not None
            results.append(ir.AffineDimExpr.get(place))
        else:
            results.append(ir.AffineConstantExpr.get(0))
    return Mask(mask.value, ir.AffineMap.get(4, 0, results))


def _in_place(value: ir.Value) -> tuple[ir.Value, int]:
    """[B, H, M, D], or the [B, M, H, D] that it is a transpose of; which of them, as 0 or 1."""
    op = defining_op(value)
    if op is not None and _exchanges_rows_and_heads(op):
        return op.operands[0], 1
    return value, 0


def _exchanges_rows_and_heads(op: ir.Operation) -> bool:
    if op.name != "linalg.transpose":
        return False
    return list(ir.DenseI64ArrayAttr(op.attributes["permutation"])) == _ROWS_AND_HEADS


def _one_batch(value: ir.Value) -> ir.Value:
    """[H, M, D] as [1, H, M, D]."""
    type_ = ir.RankedTensorType(value.type)
    sizes = [dimension_or_query(value, i) for i, s in enumerate(type_.shape) if s == abq.DYNAMIC]
    shape = [1, *type_.shape]
    expanded = ir.RankedTensorType.get(shape, type_.element_type)
    return tensor.ExpandShapeOp(expanded, value, _HEADS_IN_BATCH, sizes, shape).result


def _output(product: ir.Operation) -> tuple[ir.Operation | None, ir.Operation | None]:
    """The reshape of y to [B, H, M, E] if that is its only use, and likewise the transpose to
    [B, M, H, E] after it."""
    expand = _only_user(product)
    if expand is None or expand.name != "tensor.expand_shape" or groups(expand) != _HEADS_IN_BATCH:
        return None, None
    transpose = _only_user(expand)
    if transpose is None or not _exchanges_rows_and_heads(transpose):
        return expand, None
    return expand, transpose


def _only_user(op: ir.Operation) -> ir.Operation | None:
    found = [user.operation for user in users(op.results[0]) if user.operation.name != "tensor.dim"]
    return found[0] if len(found) == 1 else None


def _attention(
    sources: list[tuple[ir.Value, int]],
    mask: Mask | None,
    match: _Match,
    transpose: ir.Operation | None,
    expand: ir.Operation | None,
    product: ir.Operation,
) -> ir.Value:
    rows_first = [flag for _, flag in sources] + [int(transpose is not None)]
    q, flag = sources[0]
    if transpose is not None:
        type_ = transpose.results[0].type
    elif expand is not None:
        type_ = expand.results[0].type
    else:
        shape = abq.shape(q)
        batch, heads, rows = shape[0], shape[2 if flag else 1], shape[1 if flag else 2]
        columns = abq.shape(product.results[0])[2]
        type_ = ir.RankedTensorType.get([batch, heads, rows, columns], ir.F32Type.get())
    scale, kind = 1.0, "none"
    if match.chain is not None:
        scale = match.chain.affine.scale
        if mask is not None:
            kind = "replace" if match.chain.affine.replaces else "add"
    return abq.AttentionOp(
        q,
        sources[1][0],
        sources[2][0],
        ir.FloatAttr.get(ir.F32Type.get(), scale),
        ir.DenseI64ArrayAttr.get(rows_first),
        ir.StringAttr.get(kind),
        ir.AffineMapAttr.get(mask.map_ if mask is not None else ir.AffineMap.get(4, 0, [])),
        type_,
        mask=mask.value if mask is not None else None,
    ).result
