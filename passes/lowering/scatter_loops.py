"""`abq.scatter` on a CPU: one update after the other, a part of each slice for every task."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, memref

from ..resolve_dims import index
from .rules import Lowering, dynamic, product
from .written_loops import add, below, load, loop, multiply, run_loops, store, when

BLOCK = 4096  # elements of a slice that one task updates


def scatter_loops(low: Lowering, op: ir.Operation) -> None:
    """Lowers an `abq.scatter`: a copy of x, then the updates in their order."""
    view = op.opview
    combine = ir.StringAttr(view.combine).value
    sizes = low.sizes(view.x)
    depth = abq.shape(view.indices)[1]
    count, _ = low.sizes(view.indices)
    total, length = product(sizes), product(sizes[depth:])
    y = low.allocate(total, abq.element(view.x))
    memref.CopyOp(dynamic(low.buffer(view.x)), y)

    def emit(number: ir.Value, arguments: list[ir.Value]) -> None:
        indices, updates, y, count, length, *limits = arguments
        begin = multiply(number, index(BLOCK))
        end = arith.MinUIOp(add(begin, index(BLOCK)), length).result

        def update(u: ir.Value) -> None:
            slot, inside = index(0), _true()
            for i, limit in enumerate(limits):
                place = load(indices, add(multiply(u, index(depth)), index(i)))
                place = arith.IndexCastOp(index(0).type, place).result
                inside = arith.AndIOp(inside, below(place, limit)).result
                slot = add(multiply(slot, limit), place)
            target, source = multiply(slot, length), multiply(u, length)

            def element(at: ir.Value) -> None:
                new, where = load(updates, add(source, at)), add(target, at)
                if combine != "replace":
                    old = load(y, where)
                    made = ir.Operation.create(
                        f"arith.{combine}", results=[old.type], operands=[old, new]
                    )
                    new = made.results[0]
                store(new, y, where)

            when(inside, lambda: loop(begin, end, element))

        loop(index(0), count, update)

    tasks = arith.CeilDivUIOp(length, index(BLOCK)).result
    arguments = [low.buffer(view.indices), low.buffer(view.updates), y, count, length]
    run_loops(low, [*arguments, *sizes[:depth]], tasks, multiply(count, index(BLOCK)), emit)
    low.finish(op, y, sizes)


def _true() -> ir.Value:
    i1 = ir.IntegerType.get_signless(1)
    return arith.ConstantOp(i1, ir.IntegerAttr.get(i1, 1)).result
