"""Emits loops: a body that is a function of the importer's values becomes scf.for or scf.while.

The body is lowered once for every guess of how its values are carried (carried.py), until one
holds; what the others emitted is erased.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abqc.dialects.mlir import bufferization, ir, scf, tensor
from abqc.errors import ModelError

from ..values import symbolic
from ..values.element_types import BOOL, INDEX, ElementType
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import Value
from .carried import Carried, Form, fitting, widened
from .emit import DYNAMIC, Builder
from .regions import made_after, owned
from .scalars import Scalar
from .shaping import reshape, slice_axis

# Rows collected by a loop that may end early have room for all it can do, up to so many elements.
ROOM = 1 << 18


@dataclass
class Iteration:
    """What a body returns: whether to go on, the carried values, and a row for each collection."""

    condition: Dim
    values: Sequence[Value]
    rows: Sequence[Value] = ()


Body = Callable[[Dim, Sequence[Value]], Iteration]


@dataclass(frozen=True)
class Row:
    """What is collected in each iteration. The sizes of `open_axes` only an iteration knows."""

    dtype: ElementType
    dims: tuple[Dim, ...]
    open_axes: frozenset[int]

    @staticmethod
    def of(value: Value, mark: int) -> Row:
        """A row of a body whose run-time integers were bound after `mark`."""
        inner = frozenset(axis for axis, dim in enumerate(value.dims) if made_after(dim, mark))
        dims = tuple(ZERO if axis in inner else dim for axis, dim in enumerate(value.dims))
        return Row(value.dtype, dims, inner)


@dataclass(frozen=True)
class Guess:
    """How a loop is emitted. `counted`: no iteration asks to stop. `rows`: None if not known."""

    forms: tuple[Form, ...]
    counted: bool
    rows: tuple[Row, ...] | None = None


@dataclass
class Loop:
    """A loop of at most `trip` iterations (None: no limit), none if `start` is 0."""

    b: Builder
    inits: Sequence[Value]
    trip: Dim | None
    start: Dim
    body: Body

    def emit(self) -> tuple[list[Value], list[Value]]:
        """The carried values at the end, and the collections, one row for each iteration.

        A loop in a loop is emitted again whenever the outer one is: it begins with the forms that
        held before, or nesting would cost time exponential in its depth.
        """
        key = (self.b.node, len(self.inits), self.trip is None)
        guess = self._first(self.b.loop_forms.get(key))
        while True:
            emission = _Emission(self, guess)
            try:
                better = emission.emit()
            except BaseException:
                emission.erase()  # the caller may try another body
                raise
            if better == guess:
                self.b.loop_forms[key] = guess
                return emission.results()
            emission.erase()
            guess = better

    def _first(self, known: Guess | None) -> Guess:
        """What to begin with, where `known` held for an earlier emission."""
        if known is None:
            return Guess(tuple(Form() for _ in self.inits), self.trip is not None)
        forms = tuple(map(fitting, known.forms, self.inits))
        # Sizes that only a run knows were those of that emission.
        rows = known.rows or ()
        lasting = not any(made_after(dim, 0) for row in rows for dim in row.dims)
        return Guess(
            forms, known.counted and self.trip is not None, known.rows if lasting else None
        )


class _Emission:
    """One try to emit a loop."""

    def __init__(self, loop: Loop, guess: Guess) -> None:
        self.loop = loop
        self.guess = guess
        self.b = loop.b
        self.carried = [
            Carried(init, form) for init, form in zip(loop.inits, guess.forms, strict=True)
        ]
        self.mark = loop.b.mark
        self.operation: ir.OpView | None = None

    # The loop

    def emit(self) -> Guess:
        """Emits it; the guess that its body asks for."""
        b = self.b
        self.collections = [_Collection(b, row, self._room(row)) for row in self.guess.rows or ()]
        operands = [x for c in self.carried for x in c.operands(b, c.init)]
        operands += [c.begin() for c in self.collections]
        self.mark = b.mark
        if self.guess.counted:
            return self._emit_for(operands)
        return self._emit_while(operands)

    def _trip(self) -> Dim:
        """The number of iterations of a loop that does not end early."""
        assert self.loop.trip is not None
        return symbolic.select(self.loop.start, symbolic.maximum(self.loop.trip, ZERO), ZERO)

    def _room(self, row: Row) -> Dim | None:
        """How many rows there can be; None where that is not known, or too many to set aside."""
        if row.open_axes or self.loop.trip is None:
            return None
        if self.guess.counted:
            return self._trip()
        most = symbolic.maximum(self.loop.trip, ZERO)
        size = symbolic.static_product([most, *row.dims])
        return most if size is not None and size <= ROOM else None

    def _emit_for(self, operands: list[ir.Value]) -> Guess:
        b = self.b
        bounds = [b.index(ZERO), b.index(self._trip()), b.index(ONE)]
        self.operation = scf.ForOp(*bounds, operands)
        block = self.operation.body
        with b.block(block):
            at = b.run_time(block.arguments[0])
            better, state = self._iterate(at, list(block.arguments)[1:])
            scf.YieldOp(state)
        self._ssa = list(self.operation.results)
        self.count = self._trip()
        return better

    def _emit_while(self, operands: list[ir.Value]) -> Guess:
        b = self.b
        go = b.truth(self.loop.start).ssa
        limit = None if self.loop.trip is None else b.index(self.loop.trip)
        state = [b.index(ZERO), go, *operands]
        types = [x.type for x in state]
        self.operation = scf.WhileOp(types, state)
        location = [ir.Location.current] * len(types)
        before = self.operation.before.blocks.append(*types, arg_locs=location)
        after = self.operation.after.blocks.append(*types, arg_locs=location)
        with b.block(before):
            goes_on = Scalar(before.arguments[1], BOOL)
            if limit is not None:
                goes_on = goes_on & (Scalar(before.arguments[0], INDEX) < Scalar(limit, INDEX))
            scf.ConditionOp(goes_on.ssa, list(before.arguments))
        with b.block(after):
            at = b.run_time(after.arguments[0])
            better, rest = self._iterate(at, list(after.arguments)[2:])
            scf.YieldOp([b.index(at + 1), self._go.ssa, *rest])
        self._ssa = list(self.operation.results)[2:]
        self.count = b.run_time(self.operation.results[0])
        return better

    def _iterate(self, at: Dim, arguments: list[ir.Value]) -> tuple[Guess, list[ir.Value]]:
        """Emits the body; a better guess and the state after the iteration.

        The state is of no use where the guess is another one, but is of the right types.
        """
        b = self.b
        given, rest = self._values(arguments)
        b.iterations.append(at)
        try:
            iteration = self.loop.body(at, given)
        finally:
            b.iterations.pop()
        returned, rows = list(iteration.values), list(iteration.rows)
        self._check(returned)
        self._go = b.truth(iteration.condition)
        forms = tuple(
            widened(c.form, c.init, g, r)
            for c, g, r in zip(self.carried, given, returned, strict=True)
        )
        better = Guess(
            forms,
            self.guess.counted and iteration.condition == ONE,
            tuple(Row.of(row, self.mark) for row in rows),
        )
        if better != self.guess:
            return better, arguments
        state = [
            x for c, value in zip(self.carried, returned, strict=True) for x in c.operands(b, value)
        ]
        for collection, row, so_far in zip(self.collections, rows, rest, strict=True):
            state.append(collection.add(so_far, row, at))
        return better, state

    def _values(self, ssa: list[ir.Value]) -> tuple[list[Value], list[ir.Value]]:
        values, position = [], 0
        for carried in self.carried:
            width = carried.form.width()
            values.append(carried.value(self.b, ssa[position : position + width]))
            position += width
        return values, ssa[position:]

    def _check(self, returned: Sequence[Value]) -> None:
        for at, (carried, value) in enumerate(zip(self.carried, returned, strict=True)):
            init = carried.init
            if init.dtype != value.dtype or init.rank != value.rank:
                raise ModelError(
                    f"value {at} that the loop carries is {init} before and {value} after an "
                    "iteration: type and rank must stay",
                    node=self.b.node,
                )

    # Results

    def results(self) -> tuple[list[Value], list[Value]]:
        values, rest = self._values(self._ssa)
        rows = [
            collection.finish(ssa, self.count)
            for collection, ssa in zip(self.collections, rest, strict=True)
        ]
        return values, rows

    def erase(self) -> None:
        if self.operation is not None:
            self.operation.operation.erase()


class _Collection:
    """Rows put together along a new first axis: in a tensor with room for all, or growing."""

    def __init__(self, b: Builder, row: Row, room: Dim | None) -> None:
        self.b, self.row, self.room = b, row, room

    def _type(self) -> ir.RankedTensorType:
        sizes = [
            DYNAMIC if dim.value is None or axis in self.row.open_axes else dim.value
            for axis, dim in enumerate(self.row.dims)
        ]
        first = DYNAMIC if self.room is None or self.room.value is None else self.room.value
        return ir.RankedTensorType.get([first, *sizes], self.row.dtype.inside())

    def begin(self) -> ir.Value:
        if self.room is not None:
            return self._allocated([self.room, *self.row.dims])
        # A copy keeps its type. An allocation of constant sizes takes them into its own, and
        # canonicalization then into that of the loop, where they change.
        nothing = Value(self.row.dtype, (ZERO, *self.row.dims))
        nothing.ssa = self.b.as_type(self.b.empty(nothing.dtype, nothing.dims), self._type())
        return owned(self.b, nothing, self._type())

    def _allocated(self, dims: Sequence[Dim]) -> ir.Value:
        type_ = self._type()
        sizes = [
            self.b.index(dim) for dim, static in zip(dims, type_.shape, strict=True)
            if static == DYNAMIC
        ]  # fmt: skip
        return bufferization.AllocTensorOp(type_, sizes).result

    def add(self, so_far: ir.Value, row: Value, at: Dim) -> ir.Value:
        b = self.b
        whole = reshape(b, row, [ONE, *row.dims])
        if self.room is not None:
            return _inserted(b, b.tensor(whole), whole.dims, so_far, at)
        before = [at]
        for axis, dim in enumerate(row.dims):
            size = dim
            if axis in self.row.open_axes:
                size = b.run_time(tensor.DimOp(so_far, b.index(axis + 1)).result)
                agree = symbolic.call(
                    "or", symbolic.is_equal(at, ZERO), symbolic.is_equal(size, dim)
                )
                b.require(agree, f"axis {axis} of what a loop collects must not change its size")
            before.append(size)
        more = self._allocated([at + 1, *row.dims])
        more = _inserted(b, so_far, before, more, ZERO)
        return _inserted(b, b.tensor(whole), whole.dims, more, at)

    def finish(self, ssa: ir.Value, count: Dim) -> Value:
        b = self.b
        dims = [count]
        for axis, dim in enumerate(self.row.dims):
            if axis in self.row.open_axes:
                dim = b.run_time(tensor.DimOp(ssa, b.index(axis + 1)).result)
            dims.append(dim)
        if self.room is None or self.room == count:
            return b.made(ssa, self.row.dtype, dims)
        whole = b.made(ssa, self.row.dtype, [self.room, *dims[1:]])
        return slice_axis(b, whole, 0, ZERO, count)


def _inserted(
    b: Builder, part: ir.Value, dims: Sequence[Dim], whole: ir.Value, at: Dim
) -> ir.Value:
    """`part`, of sizes `dims`, written into `whole` from row `at` on."""
    sizes = ir.RankedTensorType(part.type).shape
    if 0 in sizes:
        return whole
    zeros = [0] * (len(dims) - 1)
    first = DYNAMIC if at.value is None else at.value
    return tensor.InsertSliceOp(
        part,
        whole,
        [b.index(at)] if at.value is None else [],
        [b.index(dim) for dim, size in zip(dims, sizes, strict=True) if size == DYNAMIC],
        [],
        [first, *zeros],
        list(sizes),
        [1] * len(dims),
    ).result
