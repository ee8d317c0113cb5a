"""Rounding that a model does itself, in floats: straight-through estimators and rounded rows.

    steps = clip(round(x * s))        values = steps / s         or with x / s and steps * s

A model that was trained with rounding (BitNet b1.58, Ma et al. 2024, and its kin) has this on
weights and on what its products read. Exported from its training graph it still has the estimator
that lets gradients pass (Bengio et al. 2013), x + (values - x), which is `values` but for floats'
rounding; and so values that lie on no grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from .model import Model, attribute

WIDTHS = range(2, 9)  # bits of activations' codes

# A range below this is taken as this by the model, so that zeros are divided by something. Rows of
# so little get finer codes here; the difference is below half of it over the largest code.
LARGEST_FLOOR = 1e-4


@dataclass(frozen=True)
class RowRounding:
    """A value is `x` (a name) with each row along `axis` rounded to symmetric codes of `bits`, by
    its largest magnitude."""

    x: str
    bits: int
    axis: int


@dataclass(frozen=True)
class _Rounding:
    """`x` is multiplied by `scale`, or divided where not `multiplied`, rounded and clipped to
    `low`..`high` (None: not clipped), and scaled back."""

    x: str
    scale: str
    multiplied: bool
    low: float | None
    high: float | None


def skip_straight_through(model: Model) -> None:
    """Values that are rounded past the gradient are those that are rounded."""
    graph = _Graph(model)
    for node in model.nodes:
        if node.op_type != "Add" or not graph.is_plain(node):
            continue
        for x, difference in _both_ways(node):
            rounded = graph.subtracted(difference, x)
            if rounded is not None and any(r.x == x for r in graph.roundings(rounded)):
                node.op_type = "Identity"
                del node.input[:]
                node.input.append(rounded)
                break
    model.drop_dead_nodes()


def rounded_rows(model: Model) -> dict[str, RowRounding]:
    """The values whose rows the model rounds, by name."""
    graph = _Graph(model)
    found: dict[str, RowRounding] = {}
    for node in model.nodes:
        if node.op_type in ("Div", "Mul") and graph.is_plain(node):
            for rounding in graph.roundings(node.output[0]):
                rows = _rows(graph, rounding)
                if rows is not None:
                    found[node.output[0]] = rows
    return found


class _Graph:
    """The nodes of the model by what they make, and its numbers."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._made = {name: node for node in model.nodes for name in node.output}

    def is_plain(self, node: NodeProto) -> bool:
        """Of ONNX's own operators, in a version whose arithmetic broadcasts as numpy does."""
        return node.domain in ("", "ai.onnx") and self._model.opset >= 7

    def maker(self, name: str, *op_types: str) -> NodeProto | None:
        """The node that makes a value, if it is of one of these types."""
        node = self._made.get(name)
        while node is not None and node.op_type == "Identity":
            node = self._made.get(node.input[0])
        if node is None or node.op_type not in op_types or not self.is_plain(node):
            return None
        return node

    def number(self, name: str) -> float | None:
        constant = self._model.constants.get(name)
        if constant is None or constant.size != 1 or constant.dtype.kind != "f":
            return None
        return float(constant.load().reshape(()))

    def numbers(self, name: str) -> list[int] | None:
        """The elements of a small constant of integers."""
        constant = self._model.constants.get(name)
        if constant is None or constant.size > 1 or constant.dtype.kind not in "iu":
            return None
        return [int(v) for v in constant.load().reshape(-1)]

    def subtracted(self, name: str, x: str) -> str | None:
        """The `y` of `y - x`."""
        node = self.maker(name, "Sub")
        return node.input[0] if node is not None and node.input[1] == x else None

    def roundings(self, name: str) -> Iterator[_Rounding]:
        """What a value may be a rounding of; a product may be read in two ways."""
        node = self.maker(name, "Div", "Mul")
        if node is None:
            return
        multiplied = node.op_type == "Div"
        pairs = _both_ways(node) if node.op_type == "Mul" else [(node.input[0], node.input[1])]
        for steps, scale in pairs:
            source, low, high = self.clipped(steps)
            rounded = self.maker(source, "Round")
            scaled = rounded and self.maker(rounded.input[0], "Mul" if multiplied else "Div")
            if scaled is None:
                continue
            for x, other in _both_ways(scaled) if multiplied else [tuple(scaled.input)]:
                if other == scale:
                    yield _Rounding(x, scale, multiplied, low, high)

    def clipped(self, name: str) -> tuple[str, float | None, float | None]:
        """What a value was before it was clipped, and the numbers it was clipped to (None: there
        is no such limit). Of other values, and limits that are no numbers: the value itself."""
        node = self.maker(name, "Clip")
        if node is None:
            return name, None, None
        limits = [attribute(node, "min"), attribute(node, "max")]
        for at, given in enumerate(node.input[1:]):
            if given:
                limits[at] = self.number(given)
                if limits[at] is None:
                    return name, None, None
        return node.input[0], limits[0], limits[1]


def _both_ways(node: NodeProto) -> list[tuple[str, str]]:
    a, b = node.input
    return [(a, b), (b, a)]


def _rows(graph: _Graph, rounding: _Rounding) -> RowRounding | None:
    """The rounding of rows that a rounding is; None where its scale is something else."""
    found = (_of_factor if rounding.multiplied else _of_step)(graph, rounding)
    if found is None:
        return None
    axis, largest = found
    bits = {(1 << (bits - 1)) - 1.0: bits for bits in WIDTHS}.get(largest)
    if bits is None or rounding.high not in (None, largest):
        return None
    if rounding.low not in (None, -largest, -largest - 1):
        return None
    return RowRounding(rounding.x, bits, axis)


Found = tuple[int, float]  # the axis of the rows, the largest code


def _of_factor(graph: _Graph, rounding: _Rounding) -> Found | None:
    """Of a factor `largest / range`."""
    quotient = graph.maker(rounding.scale, "Div")
    product = graph.maker(rounding.scale, "Mul")
    pairs: list[tuple[str, str]] = []
    if quotient is not None:
        pairs = [(quotient.input[1], quotient.input[0])]
    elif product is not None:
        inverses = [(graph.maker(a, "Reciprocal"), b) for a, b in _both_ways(product)]
        pairs = [(inverse.input[0], b) for inverse, b in inverses if inverse is not None]
    for range_, number in pairs:
        largest, floored = graph.number(number), _without_floor(graph, range_)
        axis = None if floored is None else _range_axis(graph, floored, rounding.x)
        if axis is not None and largest is not None:
            return axis, largest
    return None


def _of_step(graph: _Graph, rounding: _Rounding) -> Found | None:
    """Of a step `range / largest`, either of which may have the floor."""
    outer = _without_floor(graph, rounding.scale)
    quotient = graph.maker(outer or rounding.scale, "Div")
    if quotient is None:
        return None
    range_ = quotient.input[0] if outer else _without_floor(graph, quotient.input[0])
    axis = None if range_ is None else _range_axis(graph, range_, rounding.x)
    largest = graph.number(quotient.input[1])
    return None if axis is None or largest is None else (axis, largest)


def _without_floor(graph: _Graph, name: str) -> str | None:
    """What a value is before it is kept above a small number; None where it is not.

    Without a floor, rows of zeros are NaN in the model, and would not be here.
    """
    node = graph.maker(name, "Clip", "Max")
    if node is None:
        return None
    if node.op_type == "Clip":
        source, floor, high = graph.clipped(name)
        pairs = [(source, floor)] if high is None else []
    else:
        pairs = [(a, graph.number(b)) for a, b in _both_ways(node)] if len(node.input) == 2 else []
    for source, floor in pairs:
        if floor is not None and 0 < floor <= LARGEST_FLOOR:
            return source
    return None


def _range_axis(graph: _Graph, name: str, x: str) -> int | None:
    """The one axis along which a value is the largest magnitude of `x`, kept as an axis of 1."""
    largest = graph.maker(name, "ReduceMax")
    if largest is None or not attribute(largest, "keepdims", 1):
        return None
    magnitude = graph.maker(largest.input[0], "Abs")
    if magnitude is None or magnitude.input[0] != x:
        return None
    axes = attribute(largest, "axes")
    if axes is None and len(largest.input) > 1 and largest.input[1]:
        axes = graph.numbers(largest.input[1])
    return axes[0] if axes and len(axes) == 1 else None
