"""AttnLSTM: an LSTM that looks at a memory after every step.

    align   = softmax over the memory of sum(v * tanh(memory MW + h QW))    (Bahdanau et al., 2015)
    context = align memory
    a       = [h, context] AW, or the context where there is no AW

The next step's input is its own with `a`, zeros at first, beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..building.scalars import Scalar
from ..building.shaping import concat, reshape, transpose
from ..parts.recurrence import Active, Cell, Step, fused
from ..parts.recurrent_weights import Product, of_direction
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import I64
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import Value
from .matmul import batched
from .recurrent import Body, Layers, lstm_activations, lstm_step, peepholes
from .softmax import softmax

# What the next step has beside its input, [batch, width], of the hidden state.
Look = Callable[[Value], Value]


@lowers("AttnLSTM", domain=MICROSOFT)
def attn_lstm(node: Node) -> list[Value | None]:
    """Inputs 0 to 7 as those of LSTM, QW, MW, v, memory [B, M, D], its lengths [B], AW."""
    run = _Attending(node)
    memory, lengths = node.input(11), _lengths(run, node.optional(12))
    cells = []
    for d, functions in enumerate(lstm_activations(node, run.directions)):
        lstm = lstm_step(run, run.product("R", d, 0, 4), functions,
                         peepholes(run, node.optional(7), d))  # fmt: skip
        bias = run.input_bias(d, [(gate, True) for gate in range(4)])
        gates = run.columns_of(d, "W", ZERO, run.x.dims[2], bias).of(run.x)
        beside = run.columns_of(d, "W_attention", run.x.dims[2], run.beside)
        cells.append(Cell(gates, _step(run, lstm, beside, _look(run, d, memory, lengths))))
    outputs = run.run(cells, node.optional(4), [node.optional(5), node.optional(6), None])
    return outputs[:3]


class _Attending(Layers):
    """States are hidden, cell and what stands beside the input."""

    def __init__(self, node: Node) -> None:
        memory, weights = node.input(11), node.optional(13)
        if memory.rank != 3:
            raise node.error(f"its memory is {memory}, expected [batch, steps, depth]")
        self.beside = memory.dims[2] if weights is None else weights.dims[2]
        super().__init__(node, gates=4, states=3, beside=self.beside)
        self.b.require_equal(memory.dims[0], self.batch, f"{memory} and the input differ in batch")

    def width(self, state: int) -> Dim:
        return self.beside if state == 2 else self.hidden

    def fused(self, operands: Sequence[Value], body: Body, active: Active | None) -> list[Value]:
        """Of the LSTM alone: two states, and the output where sequences may have ended."""
        count = 2 + (active is not None)
        return fused(
            self.b, operands, (self.batch, self.hidden), [self.x.dtype] * count, body
        )  # fmt: skip

    def columns_of(
        self, d: int, label: str, begin: Dim, size: Dim, bias: Value | None = None
    ) -> Product:
        """The product with some columns of W."""
        by_column = transpose(self.b, self.w, [0, 2, 1])
        part = of_direction(self.node, by_column, d, begin, size)
        return Product(self.node, transpose(self.b, part, [1, 0]), self.label(label, d), bias)

    def layer(self, d: int, label: str, w: Value) -> Product:
        """The product with a matrix [inputs, outputs] of a direction."""
        part = of_direction(self.node, w, d, ZERO, w.dims[1])
        return Product(self.node, transpose(self.b, part, [1, 0]), self.label(label, d))


def _step(run: _Attending, lstm: Step, beside: Product, look: Look) -> Step:
    def step(gates: Value, states: Sequence[Value], active: Active | None) -> list[Value]:
        *cell, attention = states
        added = beside.of(attention)
        whole = run.b.elementwise([gates, added], gates.dtype, lambda v, w: v + w)
        hidden, kept, *shown = lstm(whole, cell, active)
        return [hidden, kept, look(hidden), *shown]

    return step


def _look(run: _Attending, d: int, memory: Value, lengths: Value | None) -> Look:
    """What one direction makes of the memory."""
    node, b = run.node, run.b
    v = of_direction(node, node.input(10), d, ZERO, node.input(10).dims[1])
    keys = run.layer(d, "MW", node.input(9)).of(memory)  # [B, M, A]
    keys = Value(keys.dtype, keys.dims, ssa=b.tensor(keys))
    query = run.layer(d, "QW", node.input(8))
    out = None if node.optional(13) is None else run.layer(d, "AW", node.input(13))
    batch, steps, depth = memory.dims
    places = b.tabulate([steps], I64, lambda at: at[0].cast(I64))

    def look(hidden: Value) -> Value:
        asked = query.of(hidden)
        wide = reshape(b, asked, [batch, ONE, asked.dims[1]])
        terms = b.elementwise([keys, wide, v], keys.dtype, lambda k, q, w: w * (k + q).tanh())
        (scores,) = b.reduce([terms], [2], [(keys.dtype, 0)], lambda x, total: [total + x])
        if lengths is not None:
            scores = b.elementwise([scores, places, lengths], keys.dtype, _within)
        align = reshape(b, softmax(b, scores, [1]), [batch, ONE, steps])
        context = reshape(b, batched(b, align, memory), [batch, depth])
        return context if out is None else out.of(concat(b, [hidden, context], 1))

    return look


def _within(score: Scalar, place: Scalar, length: Scalar) -> Scalar:
    return (place < length).select(score, -math.inf)


def _lengths(run: _Attending, lengths: Value | None) -> Value | None:
    """The steps of each memory as [B, 1]; each has one at least."""
    if lengths is None:
        return None
    b = run.b
    steps = b.scalar(run.node.input(11).dims[1]).cast(I64)

    def body(n: Scalar) -> Scalar:
        number = n.cast(I64)
        b.check((number > 0) & (number <= steps), "the length of a memory is out of range")
        return number

    made = b.elementwise([reshape(b, lengths, [run.batch, ONE])], I64, body)
    return Value(I64, made.dims, ssa=b.tensor(made))
