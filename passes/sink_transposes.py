"""Elementwise loops over transposed tensors become transposes of loops over what these were.

    t = linalg.transpose x                y' = linalg.generic x, ..
    y = linalg.generic t, ..        ->    y = linalg.transpose y'

Models whose channels come last have transposes around every convolution. Behind it, loops then are
in the order of its result and can become its epilogue, and the transpose in front of the next
convolution undoes that of y: the two are nothing.

That is done where the last axis moves (others are copied row by row, and cost little), where all
that a loop reads besides has the same transpose or one axis, such as numbers for each channel, and
where a transpose goes away: one that nothing else reads, or the one that undoes y's.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg, tensor

from .infrastructure import Unit, defining_op, register, users, walk
from .loops.generics import dims, ignores_init, inputs, is_elementwise, is_identity, maps
from .resolve_dims import mixed_sizes

_PLACES = ("linalg.index", "tensor.extract")  # what a body has that knows the order of the loops


@register
def sink_transposes(module: ir.Operation, unit: Unit) -> None:
    """Let transposes follow elementwise loops, and undo one another."""
    for op in walk(module):
        if op.name == "linalg.transpose":
            _join(op)
        elif is_elementwise(op):
            order = _order(op)
            if order is not None and (_frees_one(op) or _is_undone(op, order)):
                with ir.InsertionPoint(op), op.location:
                    _sink(op, order)


def _order(loop: ir.Operation) -> list[int] | None:
    """The permutation of the transposes that a loop reads; None where it stays as it is."""
    if not ignores_init(loop) or any(map(_knows_places, _body(loop))):
        return None
    orders, shape = [], abq.shape(loop.results[0])
    for source, map_ in zip(_sources(loop), maps(loop), strict=False):
        if source is not None:
            orders.append(_permutation(source))
            continue
        read = dims(map_)
        if read is None or sum(shape[axis] != 1 for axis in read) > 1:
            return None
    if not orders or any(order != orders[0] for order in orders):
        return None
    return orders[0] if orders[0][-1] != len(orders[0]) - 1 else None


def _body(loop: ir.Operation) -> list[ir.Operation]:
    return [inner.operation for inner in loop.regions[0].blocks[0].operations]


def _knows_places(op: ir.Operation) -> bool:
    return op.name in _PLACES or len(op.regions) > 0


def _transpose(value: ir.Value) -> ir.Operation | None:
    op = defining_op(value)
    return op if op is not None and op.name == "linalg.transpose" else None


def _sources(loop: ir.Operation) -> list[ir.Operation | None]:
    """For each input the transpose that it is, if it is one and read element by element."""
    pairs = zip(inputs(loop), maps(loop), strict=False)
    return [_transpose(value) if is_identity(map_) else None for value, map_ in pairs]


def _permutation(op: ir.Operation) -> list[int]:
    return list(ir.DenseI64ArrayAttr(op.attributes["permutation"]))


def _readers(value: ir.Value) -> set[ir.Operation]:
    return {user.operation for user in users(value) if user.operation.name != "tensor.dim"}


def _frees_one(loop: ir.Operation) -> bool:
    """Whether a transpose has no other reader."""
    return any(_transpose(v) is not None and _readers(v) == {loop} for v in inputs(loop))


def _is_undone(loop: ir.Operation, order: list[int]) -> bool:
    """Whether the result is transposed back."""
    readers = [op for op in _readers(loop.results[0]) if op.name == "linalg.transpose"]
    return any(_joined(order, _permutation(op)) == sorted(order) for op in readers)


def _joined(first: list[int], second: list[int]) -> list[int]:
    """The permutation of a transpose behind another."""
    return [first[axis] for axis in second]


def _sink(loop: ir.Operation, order: list[int]) -> None:
    """`loop` over the sources of its transposes, whose axis order[i] is axis i of its result."""
    sources = _sources(loop)
    given = [
        value if source is None else source.operands[0]
        for value, source in zip(inputs(loop), sources, strict=True)
    ]
    sizes: list[int | ir.Value] = [0] * len(order)
    out = loop.operands[len(loop.operands) - 1]
    for axis, size in zip(order, mixed_sizes(out), strict=True):
        sizes[axis] = size
    empty = tensor.EmptyOp(sizes, abq.element(loop.results[0])).result
    identity = ir.AffineMap.get_identity(len(order))
    read = [
        _of_source(map_, order) if source is None else identity
        for map_, source in zip(maps(loop), sources, strict=False)
    ]
    new = linalg.GenericOp(
        [empty.type],
        given,
        [empty],
        ir.ArrayAttr.get([ir.AffineMapAttr.get(map_) for map_ in (*read, identity)]),
        loop.attributes["iterator_types"],
    ).operation
    loop.regions[0].blocks[0].append_to(new.regions[0])
    back = linalg.transpose(new.results[0], outs=[out], permutation=order)
    loop.results[0].replace_all_uses_with(back.operation.results[0])
    loop.erase()


def _of_source(map_: ir.AffineMap, order: list[int]) -> ir.AffineMap:
    """What reads by a loop's number, by the numbers of the source's axes."""
    results = [
        ir.AffineDimExpr.get(order[ir.AffineDimExpr(result).position])
        if isinstance(result, ir.AffineDimExpr)
        else result
        for result in map_.results
    ]
    return ir.AffineMap.get(map_.n_dims, 0, results)


def _join(op: ir.Operation) -> None:
    """A transpose of a transpose is one of its source, or that itself."""
    first = _transpose(op.operands[0])
    if first is None:
        return
    order = _joined(_permutation(first), _permutation(op))
    if order == sorted(order):
        op.results[0].replace_all_uses_with(first.operands[0])
        op.erase()
        return
    op.operands[0] = first.operands[0]
    op.attributes["permutation"] = ir.DenseI64ArrayAttr.get(order)
