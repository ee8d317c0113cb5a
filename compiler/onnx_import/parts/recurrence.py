"""What RNN, GRU and LSTM share: directions, layouts, initial states, lengths, and the steps.

The operator's function gives a `Cell` for each direction. The products of all inputs with the input
weights are one matmul before the loop; a step has the recurrent product and one loop over its
elements. Sequences that end early keep their state from there on, and their outputs are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abqc.dialects.mlir import ir, linalg

from ..building.emit import Builder
from ..building.looping import Iteration, Loop
from ..building.scalars import Scalar
from ..building.shaping import concat, reshape, slice_axes, slice_axis, transpose, unsqueeze
from ..registry import Node
from ..values.element_types import INDEX, ElementType
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import Value

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}

# The gates of a step before the recurrent product, states before it -> states after it.
Step = Callable[[Value, Sequence[Value], "Active | None"], list[Value]]


@dataclass(frozen=True)
class Cell:
    """One direction: `gates`, [steps, batch, gates * hidden], of all inputs; and a step."""

    gates: Value
    step: Step


@dataclass(frozen=True)
class Active:
    """Whether a sequence has the step at hand, by its length; i32 lengths, one a sequence."""

    lengths: Value
    at: Scalar


class Recurrence:
    """A recurrent operator of `gates` gates and `states` states, of which the first is its output.

    Its inputs are X, W, R, B, sequence_lens and the initial states, as those of LSTM.
    """

    def __init__(self, node: Node, gates: int, states: int) -> None:
        self.node, self.b = node, node.b
        self.states = states
        direction = node.choice("direction", "forward", *DIRECTIONS)
        self.directions = DIRECTIONS[direction]
        self.reversed = [direction == "reverse", True][: self.directions]
        layout = node.int("layout", 0)
        if layout not in (0, 1):
            raise node.error(f"attribute 'layout' is {layout}, expected 0 or 1")
        self.batch_first = bool(layout)
        self.x = self._steps_first(node.input(0))
        if self.x.rank != 3:
            raise node.error(f"its input must have three axes, it is {self.x}")
        self.steps, self.batch, _ = self.x.dims
        self.clip = node.float("clip", None)
        self.gates = gates

    def recurrent_weights(self, r: Value, hidden_axis: int = 2) -> None:
        """Looks at R, whose axis `hidden_axis` has the hidden size."""
        if r.rank != 3:
            raise self.node.error(f"its recurrent weights must have three axes, they are {r}")
        self.hidden = r.dims[hidden_axis]
        dims = [Dim.of(self.directions), self.hidden * self.gates, self.hidden * self.gates]
        dims[hidden_axis] = self.hidden
        self.check(r, dims, "R")

    def check(self, x: Value, dims: Sequence[Dim], name: str) -> None:
        """An error (of the run, where only it knows) unless `x` has these sizes."""
        wanted = f"[{', '.join(map(str, dims))}]"
        if x.rank != len(dims):
            raise self.node.error(f"{name} must be {wanted}, it is {x}")
        for own, size in zip(x.dims, dims, strict=True):
            self.b.require_equal(own, size, f"{name} must be {wanted}, it is {x}")

    def _steps_first(self, x: Value) -> Value:
        return transpose(self.b, x, [1, 0, 2]) if self.batch_first else x

    def clipped(self, x: Scalar) -> Scalar:
        """What an activation gets."""
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def run(
        self, cells: Sequence[Cell], lengths: Value | None, initial: Sequence[Value | None]
    ) -> list[Value | None]:
        """The outputs: of all steps, then the last of each state."""
        if lengths is not None:
            lengths = self._checked(lengths)
        states = [self._split(x, self.width(k)) for k, x in enumerate(initial)]
        rows, finals = [], []
        for d, cell in enumerate(cells):
            of_all, last = self._direction(cell, d, lengths, [s[d] for s in states])
            rows.append(of_all)
            finals.append(last)
        outputs: list[Value | None] = [self._all_steps(rows) if self.node.wants(0) else None]
        for k in range(self.states):
            outputs.append(self._last([last[k] for last in finals]))
        return outputs

    # Initial states and lengths

    def _checked(self, lengths: Value) -> Value:
        b = self.b
        b.require_equal(lengths.dims[0], self.batch, "there must be a length for each sequence")
        steps = b.scalar(self.steps)
        made = Value(lengths.dtype, (self.batch,), ssa=b.tensor(lengths))

        def body(n: Scalar) -> Scalar:
            number = n.cast(INDEX)
            b.check((number >= 0) & (number <= steps), "the length of a sequence is out of range")
            return n

        return b.elementwise([made], lengths.dtype, body)

    def width(self, state: int) -> Dim:
        """The columns of a state, by its number."""
        return self.hidden

    def _split(self, state: Value | None, width: Dim) -> list[Value]:
        """The initial state of each direction, [batch, width]."""
        b, dims = self.b, (self.batch, width)
        if state is None:
            zeros = Value(self.x.dtype, dims, ssa=b.full(self.x.dtype, dims, 0))
            return [zeros] * self.directions
        if state.rank != 3:
            raise self.node.error(f"an initial state must have three axes, it is {state}")
        state = self._steps_first(state)
        for size, wanted in zip(state.dims, (Dim.of(self.directions), *dims), strict=True):
            b.require_equal(size, wanted, f"the initial state {state} does not fit the input")
        parts = [slice_axis(b, state, 0, d, 1) for d in range(self.directions)]
        return [b.made(b.tensor(reshape(b, p, p.dims[1:])), p.dtype, dims) for p in parts]

    # The loop

    def _direction(
        self, cell: Cell, d: int, lengths: Value | None, states: Sequence[Value]
    ) -> tuple[Value | None, list[Value]]:
        b, node = self.b, self.node
        gates = cell.gates
        if lengths is not None and self.reversed[d]:
            gates = self._turned(gates, lengths)
        gates = Value(gates.dtype, gates.dims, ssa=b.tensor(gates))

        def body(at: Dim, given: Sequence[Value]) -> Iteration:
            backwards = self.reversed[d] and lengths is None
            position = self.steps - 1 - at if backwards else at
            own = slice_axis(b, gates, 0, position, 1)
            own = reshape(b, own, own.dims[1:])
            active = None if lengths is None else Active(lengths, b.scalar(at))
            new = cell.step(own, given, active)
            kept, shown = new[: self.states], new[self.states :]
            return Iteration(ONE, kept, (shown or kept[:1]) if node.wants(0) else ())

        finals, rows = Loop(b, states, self.steps, ONE, body).emit()
        if not rows:
            return None, finals
        return self._in_order(rows[0], d, lengths), finals

    def _in_order(self, rows: Value, d: int, lengths: Value | None) -> Value:
        """Rows of an output by time."""
        if not self.reversed[d]:
            return rows
        if lengths is not None:
            return self._turned(rows, lengths)
        begins = [rows.dims[0] - 1, ZERO, ZERO]
        return slice_axes(self.b, rows, begins, rows.dims, [-1, 1, 1])

    def _turned(self, x: Value, lengths: Value) -> Value:
        """Each sequence of [steps, batch, n] backwards within its length, 0 behind."""
        b = self.b
        source = Value(x.dtype, x.dims, ssa=b.tensor(x))
        numbers = Value(lengths.dtype, lengths.dims, ssa=b.tensor(lengths))

        def body(indices: list[Scalar]) -> Scalar:
            step, sequence, feature = indices
            back = b.read(numbers, [sequence]).cast(INDEX) - step - 1
            inside = back >= 0
            value = b.read(source, [inside.select(back, 0), sequence, feature])
            return inside.select(value, 0)

        return b.tabulate(x.dims, x.dtype, body)

    # Results

    def _all_steps(self, rows: Sequence[Value | None]) -> Value:
        b = self.b
        parts = [unsqueeze(b, row, [1]) for row in rows if row is not None]
        whole = concat(b, parts, 1)  # steps, directions, batch, hidden
        return transpose(b, whole, [2, 0, 1, 3]) if self.batch_first else whole

    def _last(self, states: Sequence[Value]) -> Value:
        b = self.b
        whole = concat(b, [unsqueeze(b, state, [0]) for state in states], 0)
        return transpose(b, whole, [1, 0, 2]) if self.batch_first else whole


def columns(b: Builder, x: Value, count: int, hidden: Dim) -> list[Value]:
    """The parts of [batch, count * hidden], a gate each."""
    return [slice_axis(b, x, 1, hidden * gate, hidden) for gate in range(count)]


def fused(
    b: Builder,
    operands: Sequence[Value],
    dims: Sequence[Dim],
    results: Sequence[ElementType],
    body: Callable[[list[Scalar]], Sequence[Scalar]],
) -> list[Value]:
    """Several results of one loop over [batch, hidden].

    Operands have these dims or are vectors along `hidden`.
    """
    rank = len(dims)
    identity = ir.AffineMap.get_identity(rank)
    last = ir.AffineMap.get(rank, 0, [ir.AffineDimExpr.get(rank - 1)])

    def full_body(*elements: ir.Value) -> list[ir.Value]:
        scalars = [Scalar(e, o.dtype) for e, o in zip(elements, operands, strict=True)]
        return [scalar.ssa for scalar in body(scalars)]

    made = b.generic(
        dims,
        [b.tensor(operand) for operand in operands],
        [identity if operand.rank == rank else last for operand in operands],
        results,
        full_body,
    )
    return [Value(t, tuple(dims), ssa=ssa) for t, ssa in zip(results, made, strict=True)]


def ended(b: Builder, active: Active) -> Scalar:
    """In a body over [batch, hidden]: whether the sequence has not got this step."""
    sequence = Scalar(linalg.IndexOp(0).result, INDEX)
    length = b.read(active.lengths, [sequence]).cast(INDEX)
    return length <= active.at
