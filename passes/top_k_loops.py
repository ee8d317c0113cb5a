"""`abq.top_k` on a CPU: for every line a heap of k elements, sorted at the end.

The heap lies where the result will be. Its root is the element that comes last of those it has, so
most elements of a long line are compared with the root and forgotten, BLOCK of them at once: n
comparisons in vectors and, for elements in random order, about k * log(n / k) insertions.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, scf

from .lowering import Lowering, product
from .resolve_dims import index
from .written_loops import add, below, load, loop, multiply, run_loops, store, when


def top_k_loops(low: Lowering, op: ir.Operation) -> None:
    """Lowers an `abq.top_k`; x is outer x n x inner, one task a line."""
    view = op.opview
    axis = ir.IntegerAttr(view.axis).value
    largest = bool(ir.IntegerAttr(view.largest).value)
    sizes = low.sizes(view.x)
    outer, n, inner = product(sizes[:axis]), sizes[axis], product(sizes[axis + 1 :])
    results = [*sizes[:axis], view.k, *sizes[axis + 1 :]]
    count = product(results)
    is_last = axis == len(sizes) - 1
    values = low.allocate(count, abq.element(view.x))
    places = low.allocate(count, ir.IntegerType.get_signless(64))

    def emit(line: ir.Value, arguments: list[ir.Value]) -> None:
        x, values, places, n, k, inner = arguments
        if is_last:
            inner = index(1)  # so that LLVM knows
        some = arith.MaxUIOp(inner, index(1)).result
        first, rest = arith.DivUIOp(line, some).result, arith.RemUIOp(line, some).result
        read = _Line(x, add(multiply(multiply(first, n), inner), rest), inner)
        begin = add(multiply(multiply(first, k), inner), rest)
        heap = _Heap(_Line(values, begin, inner), _Line(places, begin, inner), largest)
        _select(read, heap, n, k)

    lines = multiply(outer, inner)
    run_loops(low, [low.buffer(view.x), values, places, n, view.k, inner], lines, n, emit)
    low.finish(op, values, results, 0)
    low.finish(op, places, results, 1)


@dataclass(frozen=True)
class _Line:
    """Elements of a buffer at equal distances."""

    buffer: ir.Value
    begin: ir.Value
    stride: ir.Value

    def at(self, i: ir.Value) -> ir.Value:
        return load(self.buffer, self._place(i))

    def put(self, value: ir.Value, i: ir.Value) -> None:
        store(value, self.buffer, self._place(i))

    def _place(self, i: ir.Value) -> ir.Value:
        return add(self.begin, multiply(i, self.stride))


BLOCK = 16  # elements of a line that are compared with the root together

Item = tuple[ir.Value, ir.Value]  # a value and its place in the line


@dataclass(frozen=True)
class _Heap:
    """A binary heap in two lines of the results."""

    values: _Line
    places: _Line
    largest: bool

    def at(self, i: ir.Value) -> Item:
        return self.values.at(i), self.places.at(i)

    def put(self, item: Item, i: ir.Value) -> None:
        self.values.put(item[0], i)
        self.places.put(item[1], i)

    def before(self, a: Item, b: Item) -> ir.Value:
        """Whether `a` comes before `b` in the result; NaN is larger than any number."""
        ahead = self._larger(a[0], b[0]) if self.largest else self._larger(b[0], a[0])
        behind = self._larger(b[0], a[0]) if self.largest else self._larger(a[0], b[0])
        equal = arith.XOrIOp(arith.OrIOp(ahead, behind).result, _flag(1)).result
        earlier = arith.CmpIOp(arith.CmpIPredicate.slt, a[1], b[1]).result
        return arith.OrIOp(ahead, arith.AndIOp(equal, earlier).result).result

    def _larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        if not isinstance(a.type, ir.FloatType):
            return arith.CmpIOp(arith.CmpIPredicate.sgt, a, b).result
        number = arith.CmpFOp(arith.CmpFPredicate.OGT, a, b).result
        a_nan = arith.CmpFOp(arith.CmpFPredicate.UNO, a, a).result
        b_number = arith.CmpFOp(arith.CmpFPredicate.ORD, b, b).result
        return arith.OrIOp(number, arith.AndIOp(a_nan, b_number).result).result

    def may_be_before(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Whether a value that is found later than `b` comes before it; perhaps, with NaN."""
        if isinstance(a.type, ir.FloatType):
            floats = arith.CmpFPredicate
            return arith.CmpFOp(floats.UGT if self.largest else floats.ULT, a, b).result
        integers = arith.CmpIPredicate
        return arith.CmpIOp(integers.sgt if self.largest else integers.slt, a, b).result

    def sink(self, item: Item, hole: ir.Value, size: ir.Value) -> None:
        """Put `item` at `hole` or below it: up come children that come later than it does."""
        turns = scf.WhileOp([index(0).type, _flag(1).type], [hole, _flag(1)])
        before = turns.operation.regions[0].blocks.append(
            index(0).type, _flag(1).type, arg_locs=[ir.Location.current] * 2
        )
        with ir.InsertionPoint(before):
            at, goes_on = before.arguments
            left = add(add(at, at), index(1))
            more = arith.AndIOp(goes_on, below(left, size)).result
            scf.ConditionOp(more, [at, goes_on])
        after = turns.operation.regions[1].blocks.append(
            index(0).type, _flag(1).type, arg_locs=[ir.Location.current] * 2
        )
        with ir.InsertionPoint(after):
            at = after.arguments[0]
            left = add(add(at, at), index(1))
            right = add(left, index(1))
            has_right = below(right, size)
            second = arith.SelectOp(has_right, right, left).result
            worse = self.before(self.at(left), self.at(second))
            child = arith.SelectOp(worse, second, left).result
            found = self.at(child)
            rises = self.before(item, found)
            when(rises, lambda: self.put(found, at))
            scf.YieldOp([arith.SelectOp(rises, child, at).result, rises])
        self.put(item, turns.results[0])


def _flag(value: int) -> ir.Value:
    i1 = ir.IntegerType.get_signless(1)
    return arith.ConstantOp(i1, ir.IntegerAttr.get(i1, value)).result


def _select(read: _Line, heap: _Heap, n: ir.Value, k: ir.Value) -> None:
    i64 = ir.IntegerType.get_signless(64)

    def item(i: ir.Value) -> Item:
        return read.at(i), arith.IndexCastOp(i64, i).result

    loop(index(0), k, lambda i: heap.put(item(i), i))
    half = arith.DivUIOp(k, index(2)).result
    loop(index(0), half, lambda i: heap.sink(heap.at(i), i, k), backwards=True)

    def meet(i: ir.Value) -> None:
        candidate = item(i)
        better = heap.before(candidate, heap.at(index(0)))
        when(better, lambda: heap.sink(candidate, index(0), k))

    def meet_block(number: ir.Value) -> None:
        begin = add(k, multiply(number, index(BLOCK)))
        root = heap.values.at(index(0))
        turns = scf.ForOp(index(0), index(BLOCK), index(1), [_flag(0)])
        with ir.InsertionPoint(turns.body):
            value = read.at(add(begin, turns.induction_variable))
            found = heap.may_be_before(value, root)
            scf.YieldOp([arith.OrIOp(turns.inner_iter_args[0], found).result])
        some_found = turns.results[0]
        when(some_found, lambda: loop(begin, add(begin, index(BLOCK)), meet))

    def meet_all() -> None:
        blocks = arith.DivUIOp(arith.SubIOp(n, k).result, index(BLOCK)).result
        loop(index(0), blocks, meet_block)
        loop(add(k, multiply(blocks, index(BLOCK))), n, meet)

    some = below(index(0), k)
    when(some, meet_all)

    def sort(i: ir.Value) -> None:
        last = heap.at(i)
        heap.put(heap.at(index(0)), i)
        heap.sink(last, index(0), i)

    when(some, lambda: loop(index(1), k, sort, backwards=True))
