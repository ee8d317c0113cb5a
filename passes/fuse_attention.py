"""Attention, spelled out as two products around a softmax, becomes `abq.attention`.

    scores = abq.batch_matmul(q, k) {transposed}
    x      = scale * scores + mask                patterns/score_chain.py: the forms
    p      = softmax(x)                           patterns/softmax.py
    y      = abq.batch_matmul(p, v)

Heads are an axis of q, k and v that was collapsed into the batch; their transposes (rows before
heads, keys by columns) are read in place, and constant factors of q and k become part of the scale.
What is not of this form stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from abqc.dialects import abq
from abqc.dialects.mlir import ir, tensor

from .infrastructure import Unit, defining_op, register, users, walk
from .loops.generics import dims, expression, groups, inputs, is_elementwise
from .patterns.score_chain import Chain, Mask, match_chain
from .patterns.softmax import match_softmax, operand_in_order
from .resolve_dims import expand_shape
from .share_heads import GROUP

# Wider heads have no kernel (codegen/gpu/attention/spec.py).
MAX_HEAD = 256

_HEADS_IN_BATCH = [[0, 1], [2], [3]]
_ROWS_AND_HEADS = (0, 2, 1, 3)


@dataclass(frozen=True)
class _Operand:
    """A factor of a product as [B, H, M, D], or [B, M, H, D]; `scale` times it is the factor."""

    value: ir.Value
    rows_first: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class _Match:
    q: _Operand
    k: _Operand
    v: _Operand
    apart: bool  # heads are an axis; otherwise all are one batch's
    chain: Chain | None
    guarded: bool


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
    weights = collapse.operands[0] if collapse is not None else p
    softmax = match_softmax(weights)
    if softmax is None or not _has_one_user(p) or not _has_one_user(weights):
        return None
    x = defining_op(softmax.x)
    chain = match_chain(x) if is_elementwise(x) else None
    scores = defining_op(chain.scores if chain is not None else softmax.x)
    if scores is not None and scores.name == "tensor.expand_shape":
        if groups(scores) != _HEADS_IN_BATCH:
            return None
        scores = defining_op(scores.operands[0])
    if scores is None or scores.name != "abq.batch_matmul" or not _share_alike(scores, product):
        return None
    q, k = scores.operands
    columns = (abq.shape(q)[2], abq.shape(v)[2])
    if max(columns) > MAX_HEAD or abq.DYNAMIC in columns:
        return None
    swapped = not _is_transposed(scores)
    for apart, read in ((True, _heads), (False, _one_batch)):
        queries, values = read(q, scaled=True), read(v)
        keys = read(k, scaled=True, swapped=swapped)
        if queries is not None and keys is not None and values is not None:
            return _Match(queries, keys, values, apart, chain, softmax.guarded)
    return None


def _heads(value: ir.Value, *, scaled: bool = False, swapped: bool = False) -> _Operand | None:
    """The heads that were collapsed into the batch of `value`, [B * H, M, D].

    `scaled`: a factor may be taken off them. `swapped`: `value` is [B * H, D, M], which must be a
    transpose.
    """
    collapse = _collapse_of_heads(value)
    if collapse is None:
        return None
    value, scale = _unscaled(collapse.operands[0]) if scaled else (collapse.operands[0], 1.0)
    order = _permutation(value)
    in_place = {(0, 1, 3, 2): 0, (0, 2, 3, 1): 1} if swapped else {(0, 2, 1, 3): 1}
    if order not in in_place:
        return None if swapped else _Operand(value, scale=scale)
    source, more = _unscaled(_source(value)) if scaled else (_source(value), 1.0)
    return _Operand(source, in_place[order], scale * more)


def _one_batch(value: ir.Value, *, scaled: bool = False, swapped: bool = False) -> _Operand | None:
    """[H, M, D] as the heads of one batch; not yet expanded."""
    value, scale = _unscaled(value) if scaled else (value, 1.0)
    if not swapped:
        return _Operand(value, scale=scale)
    return _Operand(_source(value), scale=scale) if _permutation(value) == (0, 2, 1) else None


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """What a loop multiplied by a constant, and the constant."""
    op = defining_op(value)
    if not is_elementwise(op):
        return value, 1.0
    tree, source = expression(op), operand_in_order(op, 0) if inputs(op) else None
    if source is None or len(tree) != 3 or tree[0] != "arith.mulf":
        return value, 1.0
    factors = [side[1] for side in tree[1:] if side[0] == "const"]
    if len(factors) != 1 or ("in", 0) not in tree or source.type != value.type:
        return value, 1.0
    return source, factors[0]


def _permutation(value: ir.Value) -> tuple[int, ...] | None:
    """Of the transpose that makes `value`."""
    op = defining_op(value)
    if op is None or op.name != "linalg.transpose":
        return None
    return tuple(ir.DenseI64ArrayAttr(op.attributes["permutation"]))


def _source(value: ir.Value) -> ir.Value:
    """What a transpose reads."""
    op = defining_op(value)
    assert op is not None
    return op.operands[0]


def _share_alike(scores: ir.Operation, product: ir.Operation) -> bool:
    """Whether keys and values have as many heads (share_heads.py)."""
    groups = [
        ir.IntegerAttr(op.attributes[GROUP]).value if GROUP in op.attributes else 1
        for op in (scores, product)
    ]
    return groups[0] == groups[1] != abq.DYNAMIC


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
    mask = match.chain.mask() if match.chain is not None else None
    if mask is not None:
        mask = _mask_of_heads(mask, match.apart)
        if mask is None:
            return  # it tells batches from heads, q does not
    with ir.InsertionPoint(product), product.location:
        if not match.apart:
            flat = (match.q, match.k, match.v)
            q, k, v = (replace(x, value=_with_batch(x.value)) for x in flat)
            match = replace(match, q=q, k=k, v=v)
        expand, transpose = _output(product) if match.apart else (None, None)
        y = _attention(match, mask, transpose, expand, product)
        if transpose is not None:
            transpose.results[0].replace_all_uses_with(y)
            return
        product.results[0].replace_all_uses_with(
            tensor.CollapseShapeOp(product.results[0].type, y, _HEADS_IN_BATCH).result
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


def _with_batch(value: ir.Value) -> ir.Value:
    """[H, M, D] as [1, H, M, D]."""
    return expand_shape(value, _HEADS_IN_BATCH, [1, *abq.shape(value)])


def _output(product: ir.Operation) -> tuple[ir.Operation | None, ir.Operation | None]:
    """The reshape of y to [B, H, M, E] if that is its only use, and likewise the transpose to
    [B, M, H, E] after it."""
    expand = _only_user(product)
    if expand is None or expand.name != "tensor.expand_shape" or groups(expand) != _HEADS_IN_BATCH:
        return None, None
    transpose = _only_user(expand)
    if transpose is None or transpose.name != "linalg.transpose":
        return expand, None
    if _permutation(transpose.results[0]) != _ROWS_AND_HEADS:
        return expand, None
    return expand, transpose


def _only_user(op: ir.Operation) -> ir.Operation | None:
    found = [user.operation for user in users(op.results[0]) if user.operation.name != "tensor.dim"]
    return found[0] if len(found) == 1 else None


def _attention(
    match: _Match,
    mask: Mask | None,
    transpose: ir.Operation | None,
    expand: ir.Operation | None,
    product: ir.Operation,
) -> ir.Value:
    q, k, v = match.q, match.k, match.v
    if transpose is not None:
        type_ = transpose.results[0].type
    elif expand is not None:
        type_ = expand.results[0].type
    else:
        batch, heads, rows, _ = abq.shape(q.value)
        if q.rows_first:
            heads, rows = rows, heads
        columns = abq.shape(product.results[0])[2]
        type_ = ir.RankedTensorType.get([batch, heads, rows, columns], ir.F32Type.get())
    scale, kind = q.scale * k.scale, "none"
    if match.chain is not None:
        scale *= match.chain.affine.scale
        if mask is not None:
            kind = "replace" if match.chain.affine.replaces else "add"
    rows_first = [q.rows_first, k.rows_first, v.rows_first, int(transpose is not None)]
    return abq.AttentionOp(
        q.value,
        k.value,
        v.value,
        ir.FloatAttr.get(ir.F32Type.get(), scale),
        ir.DenseI64ArrayAttr.get(rows_first),
        ir.StringAttr.get(kind),
        ir.AffineMapAttr.get(mask.map_ if mask is not None else ir.AffineMap.get(4, 0, [])),
        ir.IntegerAttr.get(ir.IntegerType.get_signless(64), int(match.guarded)),
        type_,
        mask=mask.value if mask is not None else None,
    ).result
