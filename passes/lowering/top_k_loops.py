"""`abq.top_k` on a CPU: for every line the best k elements so far, where the result will be.

A few are kept in order, and a better one is inserted; many are a heap, sorted at the end. Of both
the worst element is at hand, so most elements of a long line are compared with it and forgotten,
BLOCK of them at once: n comparisons in vectors and, for elements in random order, about
k * log(n / k) insertions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, scf

from ..resolve_dims import index
from .rules import Lowering, product
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
        best = _Best(_Line(values, begin, inner), _Line(places, begin, inner), largest)
        is_few = arith.CmpIOp(arith.CmpIPredicate.ule, k, index(FEW)).result
        branch = scf.IfOp(is_few, has_else=True)
        with ir.InsertionPoint(branch.then_block):
            _select_few(read, best, n, k)
            scf.YieldOp([])
        with ir.InsertionPoint(branch.else_block):
            _select_many(read, best, n, k)
            scf.YieldOp([])

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


BLOCK = 16  # elements of a line that are compared with the worst together
FEW = 64  # so many are kept in order: moving them up is faster than the branches of a heap

Item = tuple[ir.Value, ir.Value]  # a value and its place in the line


@dataclass(frozen=True)
class _Best:
    """The elements chosen so far, in two lines of the results: in order, or a binary heap."""

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
        """Put `item` at `hole` of a heap or below it: up come children that come later than it."""

        def child_of(at: ir.Value) -> ir.Value:
            left = add(add(at, at), index(1))
            right = add(left, index(1))
            second = arith.SelectOp(below(right, size), right, left).result
            worse = self.before(self.at(left), self.at(second))
            return arith.SelectOp(worse, second, left).result

        def has_child(at: ir.Value) -> ir.Value:
            return below(add(add(at, at), index(1)), size)

        self._move(item, hole, has_child, child_of, self.before)

    def insert(self, item: Item, size: ir.Value) -> None:
        """Put `item` into `size` elements in order; those that come later move up by one."""

        def previous(at: ir.Value) -> ir.Value:
            return arith.SubIOp(at, index(1)).result

        self._move(item, size, lambda at: below(index(0), at), previous, self.before)

    def _move(
        self,
        item: Item,
        hole: ir.Value,
        goes_on: Callable[[ir.Value], ir.Value],
        following: Callable[[ir.Value], ir.Value],
        moves: Callable[[Item, Item], ir.Value],
    ) -> None:
        """Fill the hole with the `following` element while `moves(item, it)`, then with `item`."""
        types = [index(0).type, _flag(1).type]
        locations = [ir.Location.current] * 2
        turns = scf.WhileOp(types, [hole, _flag(1)])
        before = turns.operation.regions[0].blocks.append(*types, arg_locs=locations)
        with ir.InsertionPoint(before):
            at, more = before.arguments
            scf.ConditionOp(arith.AndIOp(more, goes_on(at)).result, [at, more])
        after = turns.operation.regions[1].blocks.append(*types, arg_locs=locations)
        with ir.InsertionPoint(after):
            at = after.arguments[0]
            source = following(at)
            found = self.at(source)
            moved = moves(item, found)
            when(moved, lambda: self.put(found, at))
            scf.YieldOp([arith.SelectOp(moved, source, at).result, moved])
        self.put(item, turns.results[0])


def _flag(value: int) -> ir.Value:
    i1 = ir.IntegerType.get_signless(1)
    return arith.ConstantOp(i1, ir.IntegerAttr.get(i1, value)).result


def _item(read: _Line, i: ir.Value) -> Item:
    return read.at(i), arith.IndexCastOp(ir.IntegerType.get_signless(64), i).result


def _select_few(read: _Line, best: _Best, n: ir.Value, k: ir.Value) -> None:
    loop(index(0), k, lambda i: best.insert(_item(read, i), i))

    def meet() -> None:
        last = arith.SubIOp(k, index(1)).result
        _meet_others(read, best, n, k, last, lambda item: best.insert(item, last))

    when(below(index(0), k), meet)


def _select_many(read: _Line, best: _Best, n: ir.Value, k: ir.Value) -> None:
    loop(index(0), k, lambda i: best.put(_item(read, i), i))
    half = arith.DivUIOp(k, index(2)).result
    loop(index(0), half, lambda i: best.sink(best.at(i), i, k), backwards=True)
    root = index(0)
    _meet_others(read, best, n, k, root, lambda item: best.sink(item, root, k))

    def sort(i: ir.Value) -> None:
        last = best.at(i)
        best.put(best.at(root), i)
        best.sink(last, root, i)

    loop(index(1), k, sort, backwards=True)


def _meet_others(
    read: _Line,
    best: _Best,
    n: ir.Value,
    k: ir.Value,
    worst: ir.Value,
    take: Callable[[Item], None],
) -> None:
    """`take` the elements from k on that come before the one at place `worst`."""

    def meet(i: ir.Value) -> None:
        candidate = _item(read, i)
        when(best.before(candidate, best.at(worst)), lambda: take(candidate))

    def meet_block(number: ir.Value) -> None:
        begin = add(k, multiply(number, index(BLOCK)))
        limit = best.values.at(worst)
        turns = scf.ForOp(index(0), index(BLOCK), index(1), [_flag(0)])
        with ir.InsertionPoint(turns.body):
            value = read.at(add(begin, turns.induction_variable))
            found = best.may_be_before(value, limit)
            scf.YieldOp([arith.OrIOp(turns.inner_iter_args[0], found).result])
        some_found = turns.results[0]
        when(some_found, lambda: loop(begin, add(begin, index(BLOCK)), meet))

    blocks = arith.DivUIOp(arith.SubIOp(n, k).result, index(BLOCK)).result
    loop(index(0), blocks, meet_block)
    loop(add(k, multiply(blocks, index(BLOCK))), n, meet)
