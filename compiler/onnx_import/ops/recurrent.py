"""RNN, GRU and LSTM (opset 1 to the newest)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ..building.scalars import Scalar
from ..building.shaping import concat
from ..parts.activations import Activation
from ..parts.recurrence import Active, Cell, Recurrence, Step, columns, ended, fused
from ..parts.recurrent_activations import activations
from ..parts.recurrent_weights import Product, of_direction
from ..registry import Node, lowers
from ..values.constants import from_array
from ..values.symbolic import ZERO, Dim
from ..values.value import Value, constant_value

Body = Callable[[list[Scalar]], list[Scalar]]


class Multiplier(Protocol):
    """Products with recurrent weights."""

    def of(self, x: Value) -> Value: ...


@lowers("RNN")
def rnn(node: Node) -> list[Value | None]:
    """`h = f(x W^T + Wb + h R^T + Rb)`."""
    run = Layers(node, gates=1, states=1)
    functions = activations(node, ["Tanh"], run.directions)
    cells = []
    for d, (f,) in enumerate(functions):
        product = run.product("R", d, 0, 1)

        def step(
            gates: Value,
            states: Sequence[Value],
            active: Active | None,
            product: Product = product,
            f: Activation = f,
        ) -> list[Value]:
            (h,) = states
            recurrent = product.of(h)

            def body(values: list[Scalar]) -> list[Scalar]:
                x, r, old = values
                return run.kept([f(run.clipped(x + r))], [old], active)

            return run.fused([gates, recurrent, h], body, active)

        cells.append(Cell(run.inputs(d, [(0, True)]), step))
    return run.run(cells, node.optional(4), [node.optional(5)])


@lowers("GRU")
def gru(node: Node) -> list[Value | None]:
    """Gates z, r and h; `h = (1 - z) * g(...) + z * h`."""
    run = Layers(node, gates=3, states=1)
    functions = activations(node, ["Sigmoid", "Tanh"], run.directions)
    reset_behind = bool(node.int("linear_before_reset", 0))
    cells = []
    for d, (f, g) in enumerate(functions):
        make = _reset_behind if reset_behind else _reset_before
        biases = [(0, True), (1, True), (2, not reset_behind)]
        cells.append(Cell(run.inputs(d, biases), make(run, d, f, g)))
    return run.run(cells, node.optional(4), [node.optional(5)])


def _reset_behind(run: Layers, d: int, f: Activation, g: Activation) -> Step:
    """The reset gate multiplies the recurrent product: one product for all gates."""
    product = run.product("R", d, 0, 3)
    bias = run.recurrent_bias(d, 2)

    def step(gates: Value, states: Sequence[Value], active: Active | None) -> list[Value]:
        (h,) = states
        recurrent = product.of(h)

        def body(values: list[Scalar]) -> list[Scalar]:
            xz, xr, xh, hz, hr, hh, old, *rest = values
            z, r = f(run.clipped(xz + hz)), f(run.clipped(xr + hr))
            new = g(run.clipped(xh + r * (hh + rest[0] if rest else hh)))
            return run.kept([(1.0 - z) * new + z * old], [old], active)

        operands = [*run.columns(gates, 3), *run.columns(recurrent, 3), h]
        return run.fused(operands if bias is None else [*operands, bias], body, active)

    return step


def _reset_before(run: Layers, d: int, f: Activation, g: Activation) -> Step:
    """The reset gate multiplies the state: the last gate has a product of its own."""
    first, second = run.product("R", d, 0, 2), run.product("R_h", d, 2, 1)

    def step(gates: Value, states: Sequence[Value], active: Active | None) -> list[Value]:
        (h,) = states
        xz, xr, xh = run.columns(gates, 3)
        hz, hr = run.columns(first.of(h), 2)

        def reset(values: list[Scalar]) -> list[Scalar]:
            x, r, old = values
            return [f(run.clipped(x + r)) * old]

        (scaled,) = fused(run.b, [xr, hr, h], h.dims, [h.dtype], reset)
        hh = second.of(scaled)

        def body(values: list[Scalar]) -> list[Scalar]:
            x_z, h_z, x_h, h_h, old = values
            z, new = f(run.clipped(x_z + h_z)), g(run.clipped(x_h + h_h))
            return run.kept([(1.0 - z) * new + z * old], [old], active)

        return run.fused([xz, hz, xh, hh, h], body, active)

    return step


@lowers("LSTM")
def lstm(node: Node) -> list[Value | None]:
    """Gates i, o, f and c; `c = f * c + i * g(...)`, `h = o * h(c)`."""
    run = Layers(node, gates=4, states=2)
    cells = []
    biases = [(gate, True) for gate in range(4)]
    for d, functions in enumerate(lstm_activations(node, run.directions)):
        product = run.product("R", d, 0, 4)
        step = lstm_step(run, product, functions, peepholes(run, node.optional(7), d))
        cells.append(Cell(run.inputs(d, biases), step))
    return run.run(cells, node.optional(4), [node.optional(5), node.optional(6)])


def lstm_activations(node: Node, directions: int) -> list[list[Activation]]:
    return activations(node, ["Sigmoid", "Tanh", "Tanh"], directions)


def peepholes(run: Layers, p: Value | None, d: int) -> list[Value]:
    """The vectors of the gates i, o and f; none at all, or three."""
    if p is None:
        return []
    hidden = run.hidden
    run.check(p, [Dim.of(run.directions), hidden * 3], "P")
    return [of_direction(run.node, p, d, hidden * gate, hidden) for gate in range(3)]


def lstm_step(
    run: Layers, product: Multiplier, functions: list[Activation], peep: Sequence[Value]
) -> Step:
    """A step of an LSTM whose recurrent product is `product.of(h)`."""
    f, g, h = functions
    coupled = bool(run.node.int("input_forget", 0))

    def step(gates: Value, states: Sequence[Value], active: Active | None) -> list[Value]:
        hidden, cell = states
        recurrent = product.of(hidden)

        def body(values: list[Scalar]) -> list[Scalar]:
            xi, xo, xf, xc, ri, ro, rf, rc, old_h, old_c, *weights = values
            i, o, forget, c = xi + ri, xo + ro, xf + rf, xc + rc
            if weights:
                i, forget = i + weights[0] * old_c, forget + weights[2] * old_c
            i = f(run.clipped(i))
            forget = 1.0 - i if coupled else f(run.clipped(forget))
            new_c = forget * old_c + i * g(run.clipped(c))
            if weights:
                o = o + weights[1] * new_c
            new_h = f(run.clipped(o)) * h(new_c)
            return run.kept([new_h, new_c], [old_h, old_c], active)

        operands = [*run.columns(gates, 4), *run.columns(recurrent, 4), hidden, cell, *peep]
        return run.fused(operands, body, active)

    return step


class Layers(Recurrence):
    """A recurrent operator with weights as ONNX has them: W, R of rows, B of both biases.

    `beside`: the columns that W has for what an operator puts beside its input.
    """

    def __init__(
        self, node: Node, gates: int, states: int, hidden_axis: int = 2, beside: Dim = ZERO
    ) -> None:
        super().__init__(node, gates, states)
        self.w, self.r, self.bias = node.input(1), node.input(2), node.optional(3)
        self.recurrent_weights(self.r, hidden_axis)
        directions, rows = Dim.of(self.directions), self.hidden * gates
        columns = self.x.dims[2] + beside
        sizes = [directions, columns, columns]
        sizes[3 - hidden_axis] = rows
        self.check(self.w, sizes, "W")
        if self.bias is not None:
            self.check(self.bias, [directions, rows * 2], "B")

    def product(self, label: str, d: int, gate: int, count: int) -> Product:
        """With the recurrent weights of `count` gates from `gate` on."""
        hidden = self.hidden
        rows = of_direction(self.node, self.r, d, hidden * gate, hidden * count)
        return Product(self.node, rows, self.label(label, d))

    def inputs(self, d: int, biases: Sequence[tuple[int, bool]]) -> Value:
        """The input products of all steps, plus the bias of W, and for each gate (by number) that
        of R where it says so."""
        rows = of_direction(self.node, self.w, d, ZERO, self.hidden * self.gates)
        bias = self.input_bias(d, biases)
        return Product(self.node, rows, self.label("W", d), bias).of(self.x)

    def label(self, label: str, d: int) -> str:
        return f"{label}_reverse" if self.reversed[d] and self.directions == 2 else label

    def _bias(self, d: int, gate: int) -> Value:
        """A part of B: gates of W first, then those of R."""
        assert self.bias is not None
        return of_direction(self.node, self.bias, d, self.hidden * gate, self.hidden)

    def recurrent_bias(self, d: int, gate: int) -> Value | None:
        return None if self.bias is None else self._bias(d, self.gates + gate)

    def input_bias(self, d: int, biases: Sequence[tuple[int, bool]]) -> Value | None:
        if self.bias is None:
            return None
        parts = []
        for gate, with_recurrent in biases:
            part = self._bias(d, gate)
            if with_recurrent:
                part = summed(self.node, part, self._bias(d, self.gates + gate))
            parts.append(part)
        return joined(self.node, parts)

    def columns(self, x: Value, count: int) -> list[Value]:
        return columns(self.b, x, count, self.hidden)

    def kept(self, new: list[Scalar], old: list[Scalar], active: Active | None) -> list[Scalar]:
        """States after a step, and the output of one that may be behind a sequence's end."""
        if active is None:
            return new
        over = ended(self.b, active)
        states = [over.select(o, n) for o, n in zip(old, new, strict=True)]
        return [*states, over.select(new[0].like(0), new[0])]

    def fused(self, operands: Sequence[Value], body: Body, active: Active | None) -> list[Value]:
        dims = (self.batch, self.hidden)
        count = self.states + (active is not None)
        return fused(self.b, operands, dims, [self.x.dtype] * count, body)


def summed(node: Node, x: Value, y: Value) -> Value:
    """The sum of two vectors, a constant if they are."""
    left, right = x.numpy(), y.numpy()
    if left is None or right is None:
        return node.b.elementwise([x, y], x.dtype, lambda v, w: v + w)
    total = left.astype(x.dtype.inside_dtype) + right.astype(x.dtype.inside_dtype)
    return constant_value(from_array(total.astype(x.dtype.dtype), x.dtype.onnx), x.dtype)


def joined(node: Node, parts: Sequence[Value]) -> Value:
    """Vectors one behind the other, a constant if they are."""
    arrays = [part.numpy() for part in parts]
    known = [array for array in arrays if array is not None]
    if len(known) < len(arrays):
        return concat(node.b, parts, 0)
    dtype = parts[0].dtype
    return constant_value(from_array(np.concatenate(known), dtype.onnx), dtype)
