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
from .loops.generics import dims, groups, is_elementwise
from .patterns.heads import (
    IN_BATCH,
    Heads,
    collapse_from_four_axes,
    collapse_of_heads,
    match_heads,
    permutation,
    put_one_head_in_batch,
)
from .patterns.score_chain import Chain, Mask, match_chain
from .patterns.softmax import match_softmax
from .resolve_dims import mixed_sizes
from .share_heads import GROUP

# Wider heads have no kernel (codegen/gpu/attention/spec.py).
MAX_HEAD = 256

_ROWS_AND_HEADS = (0, 2, 1, 3)


@dataclass(frozen=True)
class _Match:
    q: Heads
    k: Heads
    v: Heads
    chain: Chain | None
    guarded: bool

    @property
    def factors(self) -> tuple[Heads, Heads, Heads]:
        return self.q, self.k, self.v

    @property
    def apart(self) -> bool:
        """Heads are an axis of a factor; otherwise all are those of one batch."""
        return not all(factor.flat for factor in self.factors)

    @property
    def alike(self) -> bool:
        """Heads are an axis of all factors or of none."""
        return len({factor.flat for factor in self.factors}) == 1


@register
def fuse_attention(module: ir.Operation, unit: Unit) -> None:
    """Turn softmax(q k^T) v into abq.attention."""
    products = walk(module, "abq.batch_matmul")
    for product in products:
        put_one_head_in_batch(product)
    for product in products:
        collapse_from_four_axes(product)
        match = _match(product)
        if match is not None:
            _rewrite(product, match)


def _match(product: ir.Operation) -> _Match | None:
    """What the second product of an attention is made of; None for other products."""
    p, v = product.operands
    if _is_transposed(product):
        return None
    collapse = collapse_of_heads(p)
    weights = collapse.operands[0] if collapse is not None else p
    softmax = match_softmax(weights)
    if softmax is None or not _has_one_user(p) or not _has_one_user(weights):
        return None
    x = defining_op(softmax.x)
    chain = match_chain(x) if is_elementwise(x) else None
    scores = defining_op(chain.scores if chain is not None else softmax.x)
    if scores is not None and scores.name == "tensor.expand_shape":
        if groups(scores) != IN_BATCH:
            return None
        scores = defining_op(scores.operands[0])
    if scores is None or scores.name != "abq.batch_matmul" or not _share_alike(scores, product):
        return None
    q, k = scores.operands
    columns = (abq.shape(q)[2], abq.shape(v)[2])
    if max(columns) > MAX_HEAD or abq.DYNAMIC in columns:
        return None
    queries, values = match_heads(q, scaled=True), match_heads(v)
    keys = match_heads(k, scaled=True, swapped=not _is_transposed(scores))
    if queries is None or keys is None or values is None:
        return None
    match = _Match(queries, keys, values, chain, softmax.guarded)
    return match if GROUP not in product.attributes or match.alike else None


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


def _rewrite(product: ir.Operation, match: _Match) -> None:
    mask = match.chain.mask() if match.chain is not None else None
    if mask is not None:
        mask = _mask_of_heads(mask, match.apart)
        if mask is None:
            return  # it tells batches from heads, q does not
    with ir.InsertionPoint(product), product.location:
        q, k, v = (factor.made() for factor in match.factors)
        told = next((factor for factor in (q, k, v) if not factor.flat), None)
        sizes = told.batch_and_heads() if told is not None else None
        q, k, v = (x.apart(sizes or [1, *mixed_sizes(x.value)[:1]]) for x in (q, k, v))
        match = replace(match, q=q, k=k, v=v)
        expand, transpose = _output(product) if told is not None else (None, None)
        y = _attention(match, mask, transpose, expand, product)
        if transpose is not None:
            transpose.results[0].replace_all_uses_with(y)
            return
        product.results[0].replace_all_uses_with(
            tensor.CollapseShapeOp(product.results[0].type, y, IN_BATCH).result
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


def _output(product: ir.Operation) -> tuple[ir.Operation | None, ir.Operation | None]:
    """The reshape of y to [B, H, M, E] if that is its only use, and likewise the transpose to
    [B, M, H, E] after it."""
    expand = _only_user(product)
    if expand is None or expand.name != "tensor.expand_shape" or groups(expand) != IN_BATCH:
        return None, None
    transpose = _only_user(expand)
    if transpose is None or transpose.name != "linalg.transpose":
        return expand, None
    if permutation(transpose.results[0]) != _ROWS_AND_HEADS:
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
