"""What stands between the product of queries and keys and its softmax: a scale and a mask.

The body of one elementwise loop is read as `scale * score + bias`, where the bias does not depend
on the score. Forms of the score s, with c and v constants and e anything without s:

1. s * c, s / c
2. s + e, e + s, s - e
3. select(condition, s, v), select(condition, v, s): the bias is v or 0; a finite v takes the place
   of the score, minus infinity may as well be added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, linalg, tensor

from ..infrastructure import defining_op
from ..loops.generics import dims, float_constant, inputs, is_identity, maps, rank, yielded
from ..resolve_dims import dimension_or_query

MINUS_INFINITY = float("-inf")


@dataclass(frozen=True)
class Term:
    """A part of the bias: `sign * value`, or `fill` (else 0) where `value` (i1) is `where`."""

    value: ir.Value
    sign: int = 1
    fill: float | None = None
    where: bool = True


@dataclass(frozen=True)
class Affine:
    """`scale * score + the sum of terms`; `replaces`: where the term is not 0, it is the score."""

    scale: float = 1.0
    terms: tuple[Term, ...] = ()
    replaces: bool = False


@dataclass(frozen=True)
class Mask:
    """A tensor, and the map from the loops of the scores to its elements."""

    value: ir.Value
    map_: ir.AffineMap


@dataclass(frozen=True)
class Chain:
    """The scores that a loop reads and what it makes of them."""

    scores: ir.Value
    affine: Affine
    loop: ir.Operation

    def mask(self) -> Mask | None:
        """The bias as a tensor, made just before the loop unless it is an operand already."""
        terms = self.affine.terms
        return _mask(self.loop, terms) if terms else None


def match_chain(op: ir.Operation) -> Chain | None:
    """The chain in an elementwise loop, of the first operand for which it has the form."""
    for number, operand in enumerate(inputs(op)):
        if not is_identity(maps(op)[number]) or not isinstance(abq.element(operand), ir.F32Type):
            continue
        score = op.regions[0].blocks[0].arguments[number]
        if _is_product(operand):
            affine = _affine(yielded(op), score, op)
            if affine is not None:
                return Chain(operand, affine, op)
    return None


def _is_product(value: ir.Value) -> bool:
    op = defining_op(value)
    if op is not None and op.name == "tensor.expand_shape":
        op = defining_op(op.operands[0])
    return op is not None and op.name == "abq.batch_matmul"


def _affine(value: ir.Value, score: ir.Value, loop: ir.Operation) -> Affine | None:
    if value == score:
        return Affine()
    op = defining_op(value)
    if op is None or op.block != loop.regions[0].blocks[0]:
        return None
    rule = _RULES.get(op.name)
    return rule(op, score, loop) if rule else None


def _depends(value: ir.Value, score: ir.Value, loop: ir.Operation) -> bool:
    if value == score:
        return True
    op = defining_op(value)
    if op is None or op.block != loop.regions[0].blocks[0]:
        return False
    return any(_depends(operand, score, loop) for operand in op.operands)


def _scaled(op: ir.Operation, score: ir.Value, loop: ir.Operation) -> Affine | None:
    """Form 1."""
    left, right = op.operands
    if op.name == "arith.mulf" and float_constant(left) is not None:
        left, right = right, left
    factor = float_constant(right)
    affine = _affine(left, score, loop)
    if factor is None or affine is None or affine.terms:
        return None
    if op.name == "arith.divf":
        return replace(affine, scale=affine.scale / factor) if factor else None
    return replace(affine, scale=affine.scale * factor)


def _added(op: ir.Operation, score: ir.Value, loop: ir.Operation) -> Affine | None:
    """Form 2."""
    left, right = op.operands
    if op.name == "arith.addf" and not _depends(left, score, loop):
        left, right = right, left
    if _depends(right, score, loop):
        return None
    affine = _affine(left, score, loop)
    if affine is None or affine.replaces:
        return None
    sign = -1 if op.name == "arith.subf" else 1
    return replace(affine, terms=(*affine.terms, Term(right, sign)))


def _selected(op: ir.Operation, score: ir.Value, loop: ir.Operation) -> Affine | None:
    """Form 3."""
    condition, yes, no = op.operands
    if _depends(condition, score, loop):
        return None
    where = float_constant(yes) is not None
    kept, fill = (no, float_constant(yes)) if where else (yes, float_constant(no))
    affine = _affine(kept, score, loop)
    if affine is None or fill is None or affine.replaces:
        return None
    added = fill == MINUS_INFINITY
    if not added and (affine.terms or fill == 0.0):
        return None
    term = Term(condition, fill=fill, where=where)
    return replace(affine, terms=(*affine.terms, term), replaces=not added)


_RULES = {
    "arith.mulf": _scaled,
    "arith.divf": _scaled,
    "arith.addf": _added,
    "arith.subf": _added,
    "arith.select": _selected,
}


def _mask(loop: ir.Operation, terms: tuple[Term, ...]) -> Mask:
    if len(terms) == 1 and terms[0].fill is None and terms[0].sign == 1:
        value = terms[0].value
        if isinstance(value.owner, ir.Block):
            number = ir.BlockArgument(value).arg_number
            if value.owner == loop.regions[0].blocks[0]:
                return Mask(inputs(loop)[number], maps(loop)[number])
    return _computed(loop, terms)


def _computed(loop: ir.Operation, terms: tuple[Term, ...]) -> Mask:
    """A loop of its own for the bias, over those axes only that it depends on."""
    body = _slice(loop, [term.value for term in terms])
    arguments = sorted(
        {
            ir.BlockArgument(operand).arg_number
            for value in [*(o for op in body for o in op.operands), *(t.value for t in terms)]
            for operand in [value]
            if isinstance(operand.owner, ir.Block) and operand.owner == loop.regions[0].blocks[0]
        }
    )
    loop_maps = maps(loop)
    used = sorted(
        {d for number in arguments for d in (dims(loop_maps[number]) or [])}
        | {ir.IntegerAttr(op.attributes["dim"]).value for op in body if op.name == "linalg.index"}
    )
    with ir.InsertionPoint(loop), loop.location:
        value = _emit(loop, terms, body, arguments, used)
    return Mask(value, ir.AffineMap.get(rank(loop), 0, [ir.AffineDimExpr.get(d) for d in used]))


def _slice(loop: ir.Operation, values: list[ir.Value]) -> list[ir.Operation]:
    """The operations of the body that the values need, in order."""
    block = loop.regions[0].blocks[0]
    needed: set[ir.Operation] = set()
    pending = [defining_op(value) for value in values]
    while pending:
        op = pending.pop()
        if op is None or op.block != block or op in needed:
            continue
        needed.add(op)
        pending += [defining_op(operand) for operand in op.operands]
    return [op.operation for op in block.operations if op.operation in needed]


def _emit(
    loop: ir.Operation,
    terms: tuple[Term, ...],
    body: list[ir.Operation],
    arguments: list[int],
    used: list[int],
) -> ir.Value:
    f32 = ir.F32Type.get()
    place = {d: i for i, d in enumerate(used)}
    shape = [abq.shape(loop.results[0])[d] for d in used]
    init = loop.operands[len(loop.operands) - 1]
    sizes = [
        s if s != abq.DYNAMIC else dimension_or_query(init, d)
        for s, d in zip(shape, used, strict=True)
    ]
    all_maps = maps(loop)
    new_maps = [_renumbered(all_maps[number], place) for number in arguments]
    new_maps.append(ir.AffineMap.get_identity(len(used)))
    type_ = ir.RankedTensorType.get(shape, f32)
    operands = [inputs(loop)[number] for number in arguments]
    generic = linalg.GenericOp(
        [type_],
        operands,
        [tensor.EmptyOp(sizes, f32).result],
        ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in new_maps]),
        linalg.iterator_types(["parallel"] * len(used)),
    )
    types = [abq.element(operand) for operand in operands] + [f32]
    block = generic.operation.regions[0].blocks.append(
        *types, arg_locs=[loop.location] * len(types)
    )
    old = loop.regions[0].blocks[0].arguments
    known: dict[ir.Value, ir.Value] = {
        old[number]: block.arguments[i] for i, number in enumerate(arguments)
    }
    with ir.InsertionPoint(block):
        for op in body:
            if op.name == "linalg.index":
                d = ir.IntegerAttr(op.attributes["dim"]).value
                known[op.results[0]] = linalg.IndexOp(place[d]).result
                continue
            clone = op.clone().operation
            for i, operand in enumerate(op.operands):
                clone.operands[i] = known.get(operand, operand)
            known[op.results[0]] = clone.results[0]
        linalg.YieldOp([_total(terms, known)])
    return generic.operation.results[0]


def _renumbered(map_: ir.AffineMap, place: dict[int, int]) -> ir.AffineMap:
    """A map of loops and zeros over fewer loops."""
    results: list[ir.AffineExpr] = []
    for result in map_.results:
        if isinstance(result, ir.AffineDimExpr):
            results.append(ir.AffineDimExpr.get(place[ir.AffineDimExpr(result).position]))
        else:
            results.append(ir.AffineConstantExpr.get(0))
    return ir.AffineMap.get(len(place), 0, results)


def _total(terms: tuple[Term, ...], known: dict[ir.Value, ir.Value]) -> ir.Value:
    total: ir.Value | None = None
    for term in terms:
        value = known.get(term.value, term.value)
        if term.fill is not None:
            fill, zero = _constant(term.fill), _constant(0.0)
            yes, no = (fill, zero) if term.where else (zero, fill)
            value = arith.SelectOp(value, yes, no).result
        if total is None:
            total = value if term.sign == 1 else arith.NegFOp(value).result
        else:
            total = (arith.AddFOp if term.sign == 1 else arith.SubFOp)(total, value).result
    assert total is not None, "a mask has terms"
    return total


def _constant(value: float) -> ir.Value:
    f32 = ir.F32Type.get()
    return arith.ConstantOp(f32, ir.FloatAttr.get(f32, value)).result
