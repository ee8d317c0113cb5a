"""com.microsoft's DynamicQuantizeLSTM: an LSTM whose products are of codes.

Each product quantizes its operand by its own range, as DynamicQuantizeLinear does: all inputs of a
direction together, and the state in every step.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..building.shaping import transpose, unsqueeze
from ..parts.affine import dequantize
from ..parts.recurrence import Cell
from ..parts.recurrent_weights import Product, of_direction
from ..registry import MICROSOFT, Node, lowers
from ..values.symbolic import ZERO
from ..values.value import Value
from .integer_products import on_measured_grid
from .recurrent import Layers, lstm_activations, lstm_step, peepholes


@lowers("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(node: Node) -> list[Value | None]:
    run = _QuantizedLayers(node)
    x = on_measured_grid(node, run.x)
    cells = []
    for d, functions in enumerate(lstm_activations(node, run.directions)):
        product = _Measured(run.codes("R", d, run.r, 10))
        step = lstm_step(run, product, functions, peepholes(run, node.optional(7), d))
        bias = run.input_bias(d, [(gate, True) for gate in range(4)])
        cells.append(Cell(run.codes("W", d, run.w, 8, bias).of(x), step))
    return run.run(cells, node.optional(4), [node.optional(5), node.optional(6)])


@dataclass(frozen=True)
class _Measured:
    """A product whose operand is quantized by its range."""

    product: Product

    def of(self, x: Value) -> Value:
        return self.product.of(on_measured_grid(self.product.node, x))


class _QuantizedLayers(Layers):
    """Weights are codes, [directions, inputs, gates * hidden], with one scale and zero point for a
    direction or for each column."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, gates=4, states=2, hidden_axis=1)

    def codes(self, label: str, d: int, w: Value, i: int, bias: Value | None = None) -> Product:
        """A product with the codes `w`, whose scale is input `i` and zero point the next one."""
        node = self.node
        matrix = of_direction(node, w, d, ZERO, w.dims[1])
        scale, zero = node.input(i), node.optional(i + 1)
        value = dequantize(node, matrix, self._of(scale, d), zero and self._of(zero, d), axis=1)
        return Product(node, transpose(self.b, value, [1, 0]), self.label(label, d), bias)

    def _of(self, part: Value, d: int) -> Value:
        """The scale or zero point of a direction, of one axis."""
        if part.rank == 1:
            part = unsqueeze(self.b, part, [1])
        return of_direction(self.node, part, d, ZERO, part.dims[1])
