"""An axis of n * h elements read as n blocks of h: tensors, and the loops over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, linalg, tensor

from ..resolve_dims import expand_shape, index, mixed_sizes
from .generics import clone_op, dims, ignores_init, inputs, loops_read, maps, rank

Body = Callable[[list[ir.Value]], ir.Value]


def with_blocks(value: ir.Value, axis: int, size: int) -> ir.Value:
    """[.., n * size, ..] as [.., n, size, ..]."""
    old = abq.shape(value)
    shape = [*old[:axis], old[axis] // size, size, *old[axis + 1 :]]
    return expand_shape(value, _groups(axis, len(old)), shape)


def joined(value: ir.Value, axis: int, type_: ir.Type) -> ir.Value:
    """[.., n, size, ..] as [.., n * size, ..], of type `type_`."""
    return tensor.CollapseShapeOp(type_, value, _groups(axis, len(abq.shape(value)) - 1)).result


def last_joined(value: ir.Value) -> ir.Value:
    """A tensor with its last two axes as one."""
    *shape, a, b = abq.shape(value)
    both = abq.DYNAMIC if abq.DYNAMIC in (a, b) else a * b
    type_ = ir.RankedTensorType.get([*shape, both], abq.element(value))
    return joined(value, len(shape), type_)


def reads_last(map_: ir.AffineMap, loop: int) -> bool:
    """Whether a map's last two results are this loop and the next one, which nothing else reads."""
    last = [ir.AffineDimExpr.get(loop), ir.AffineDimExpr.get(loop + 1)]
    results = list(map_.results)
    return results[-2:] == last and not loops_read(results[:-2]) & {loop, loop + 1}


def _groups(axis: int, rank: int) -> list[list[int]]:
    before = [[i] for i in range(axis)]
    return [*before, [axis, axis + 1], *([i] for i in range(axis + 2, rank + 1))]


def parallel_loop(
    operands: Sequence[ir.Value], reads: Sequence[ir.AffineMap], init: ir.Value, body: Body
) -> ir.Value:
    """An elementwise linalg.generic that writes `init` in order; `body` gets the elements read."""
    loops = len(abq.shape(init))
    generic = linalg.GenericOp(
        [init.type],
        list(operands),
        [init],
        ir.ArrayAttr.get(
            [ir.AffineMapAttr.get(m) for m in [*reads, ir.AffineMap.get_identity(loops)]]
        ),
        linalg.iterator_types(["parallel"] * loops),
    )
    elements = [abq.element(value) for value in [*operands, init]]
    locations = [ir.Location.current] * len(elements)
    block = generic.operation.regions[0].blocks.append(*elements, arg_locs=locations)
    with ir.InsertionPoint(block):
        linalg.YieldOp([body(list(block.arguments)[: len(operands)])])
    return generic.operation.results[0]


def clone_body(
    loop: ir.Operation,
    arguments: Sequence[ir.Value],
    index_of: Callable[[int], ir.Value] = lambda d: linalg.IndexOp(d).result,
) -> ir.Value:
    """What the body of a linalg.generic yields for these elements, at the insertion point."""
    block = loop.regions[0].blocks[0]
    known: dict[ir.Value, ir.Value] = dict(zip(block.arguments, arguments, strict=False))
    for view in block.operations:
        op = view.operation
        if op.name == "linalg.yield":
            return known.get(op.operands[0], op.operands[0])
        if op.name == "linalg.index":
            known[op.results[0]] = index_of(ir.IntegerAttr(op.attributes["dim"]).value)
            continue
        clone_op(op, known)
    raise AssertionError("a body ends with linalg.yield")


def selected(axis: int, values: list[ir.Value]) -> ir.Value:
    """The value whose number is the index along `axis`."""
    selected = values[-1]
    if all(value == selected for value in values):
        return selected
    number = linalg.IndexOp(axis).result
    for i in reversed(range(len(values) - 1)):
        here = arith.CmpIOp(arith.CmpIPredicate.eq, number, index(i)).result
        selected = arith.SelectOp(here, values[i], selected).result
    return selected


def in_blocks(loop: ir.Operation, operand: ir.Value, axis: int, size: int) -> None:
    """Rewrite an elementwise loop so that it reads `axis` of `operand` in blocks of `size`, and all
    else along the same loop; loops that cannot stay as they are."""
    all_maps = maps(loop)
    if not ignores_init(loop) or rank(loop) != len(abq.shape(loop.results[0])):
        return
    number = list(loop.operands).index(operand)
    split = _dim(all_maps[number], axis)
    if split is None or any(_places(m, split) is None for m in all_maps):
        return
    if not all(
        abq.shape(value)[place] == abq.shape(operand)[axis]
        for value, map_ in zip(loop.operands, all_maps, strict=True)
        for place in _places(map_, split) or []
    ):
        return
    with ir.InsertionPoint(loop), loop.location:
        blocked = [
            _blocked(value, map_, split, size)
            for value, map_ in zip(inputs(loop), all_maps[:-1], strict=True)
        ]
        init = _init(loop, split, size)

        def index_of(d: int) -> ir.Value:
            if d != split:
                return linalg.IndexOp(d if d < split else d + 1).result
            block = arith.MulIOp(linalg.IndexOp(d).result, index(size)).result
            return arith.AddIOp(block, linalg.IndexOp(d + 1).result).result

        result = parallel_loop(
            [value for value, _ in blocked],
            [map_ for _, map_ in blocked],
            init,
            lambda elements: clone_body(loop, elements, index_of),
        )
        whole = joined(result, split, loop.results[0].type)
    loop.results[0].replace_all_uses_with(whole)
    loop.erase()


def _dim(map_: ir.AffineMap, axis: int) -> int | None:
    result = map_.results[axis]
    return ir.AffineDimExpr(result).position if isinstance(result, ir.AffineDimExpr) else None


def _places(map_: ir.AffineMap, loop: int) -> list[int] | None:
    """The axes (one at most) that are read along a loop; None where the map is no list of loops
    and zeros."""
    if dims(map_) is None:
        return None
    places = [axis for axis in range(len(map_.results)) if _dim(map_, axis) == loop]
    return places if len(places) < 2 else None


def _blocked(
    value: ir.Value, map_: ir.AffineMap, split: int, size: int
) -> tuple[ir.Value, ir.AffineMap]:
    results: list[ir.AffineExpr] = []
    for result in map_.results:
        if not isinstance(result, ir.AffineDimExpr):
            results.append(result)
            continue
        d = ir.AffineDimExpr(result).position
        results.append(ir.AffineDimExpr.get(d if d <= split else d + 1))
        if d == split:
            results.append(ir.AffineDimExpr.get(d + 1))
    for place in _places(map_, split) or []:
        value = with_blocks(value, place, size)
    return value, ir.AffineMap.get(map_.n_dims + 1, 0, results)


def _init(loop: ir.Operation, split: int, size: int) -> ir.Value:
    """An empty tensor like the loop's, in blocks."""
    old = loop.operands[len(loop.operands) - 1]
    shape = abq.shape(old)
    sizes = mixed_sizes(old)
    return tensor.EmptyOp(
        [*sizes[:split], shape[split] // size, size, *sizes[split + 1 :]], abq.element(old)
    ).result
