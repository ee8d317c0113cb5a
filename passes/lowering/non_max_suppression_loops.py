"""`abq.non_max_suppression`: a task for each line, which goes through its boxes in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.dialects.mlir import arith, ir, scf

from ..resolve_dims import index
from .rules import Lowering, product
from .written_loops import add, below, load, loop, multiply, run_loops, store, when

Box = list[ir.Value]  # least y, least x, largest y, largest x


def non_max_suppression_loops(low: Lowering, op: ir.Operation) -> None:
    """Lowers an `abq.non_max_suppression`."""
    view = op.opview
    images, boxes, _ = low.sizes(view.boxes)
    lines, _ = low.sizes(view.order)
    i64 = ir.IntegerType.get_signless(64)
    chosen, counts = low.allocate(product([lines, view.limit]), i64), low.allocate(lines, i64)
    some = arith.MaxUIOp(images, index(1)).result
    classes = arith.MaxUIOp(arith.DivUIOp(lines, some).result, index(1)).result

    def emit(line: ir.Value, arguments: list[ir.Value]) -> None:
        corners, order, candidates, chosen, counts, boxes, classes, limit, threshold = arguments
        image = multiply(arith.DivUIOp(line, classes).result, boxes)
        zero = arith.ConstantOp(i64, ir.IntegerAttr.get(i64, 0)).result
        store(zero, counts, line)

        def box_of(number: ir.Value) -> Box:
            at = multiply(add(image, _index(number)), index(4))
            return [load(corners, add(at, index(i))) for i in range(4)]

        def candidate(i: ir.Value) -> None:
            number = load(order, add(multiply(line, boxes), i))
            box, count = box_of(number), _index(load(counts, line))
            begin = multiply(line, limit)

            def overlaps(j: ir.Value) -> ir.Value:
                return _overlap(box, box_of(load(chosen, add(begin, j))), threshold)

            def choose() -> None:
                store(number, chosen, add(begin, count))
                store(arith.IndexCastOp(i64, add(count, index(1))).result, counts, line)

            when(below(count, limit), lambda: when(_none(count, overlaps), choose))

        loop(index(0), _index(load(candidates, line)), candidate)

    buffers = [low.buffer(v) for v in (view.boxes, view.order, view.candidates)]
    arguments = [*buffers, chosen, counts, boxes, classes, view.limit, view.threshold]
    run_loops(low, arguments, lines, multiply(boxes, index(16)), emit)
    low.finish(op, chosen, [lines, view.limit], 0)
    low.finish(op, counts, [lines], 1)


def _index(number: ir.Value) -> ir.Value:
    return arith.IndexCastOp(ir.IndexType.get(), number).result


def _none(count: ir.Value, test: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """Whether `test(j)` holds for no j < count; it ends at the first for which it does."""
    i1 = ir.IntegerType.get_signless(1)
    yes = arith.ConstantOp(i1, ir.IntegerAttr.get(i1, 1)).result
    types = [ir.IndexType.get(), i1]
    turns = scf.WhileOp(types, [index(0), yes])
    locations = [ir.Location.current] * 2
    before = turns.operation.regions[0].blocks.append(*types, arg_locs=locations)
    with ir.InsertionPoint(before):
        j, free = before.arguments
        scf.ConditionOp(arith.AndIOp(free, below(j, count)).result, [j, free])
    after = turns.operation.regions[1].blocks.append(*types, arg_locs=locations)
    with ir.InsertionPoint(after):
        j = after.arguments[0]
        scf.YieldOp([add(j, index(1)), arith.XOrIOp(test(j), yes).result])
    return turns.results[1]


def _overlap(a: Box, b: Box, threshold: ir.Value) -> ir.Value:
    """Whether intersection / union > threshold; a box without area overlaps nothing."""
    zero = arith.ConstantOp(threshold.type, ir.FloatAttr.get(threshold.type, 0.0)).result

    def area(box: Sequence[ir.Value]) -> ir.Value:
        height = arith.SubFOp(box[2], box[0]).result
        width = arith.SubFOp(box[3], box[1]).result
        sides = [arith.MaximumFOp(side, zero).result for side in (height, width)]
        return arith.MulFOp(*sides).result

    low = [arith.MaximumFOp(a[i], b[i]).result for i in (0, 1)]
    high = [arith.MinimumFOp(a[i], b[i]).result for i in (2, 3)]
    both = area([*low, *high])
    union = arith.SubFOp(arith.AddFOp(area(a), area(b)).result, both).result
    ratio = arith.DivFOp(both, union).result  # NaN, so false, where there is no area at all
    greater = arith.CmpFPredicate.OGT
    beyond = arith.CmpFOp(greater, ratio, threshold).result
    return arith.AndIOp(beyond, arith.CmpFOp(greater, both, zero).result).result
