"""Transposes of the last two axes that an exporter wrote for three axes.

PyTorch exports `key.transpose(-2, -1)` of its attention as

    Reshape(x, [-1, x.shape[-2], x.shape[-1]]), Transpose([0, 2, 1]),
    Reshape(., [*x.shape[:-2], x.shape[-1], x.shape[-2]])

which is one Transpose of x, and says so without a size that is only known at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from onnx import NodeProto, helper

from .model import Model, attribute

_LEFT_OVER = -1  # an entry of a shape: the size that is left


def merge_transposes(model: Model) -> None:
    """Make one Transpose of those that stand between such reshapes."""
    graph = _Graph.of(model)
    removed: set[str] = set()
    for node in model.nodes:
        found = graph.match(node)
        if found is None:
            continue
        x, rank, last = found
        order = [*range(rank - 2), rank - 1, rank - 2]
        node.input[0] = x
        node.output[0] = last.output[0]
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("perm", order))
        removed.add(last.name)
    model.nodes = [node for node in model.nodes if node.name not in removed]
    model.drop_dead_nodes()


@dataclass(frozen=True)
class _Graph:
    model: Model
    makers: dict[str, NodeProto]
    readers: dict[str, NodeProto]
    uses: dict[str, int]

    @staticmethod
    def of(model: Model) -> _Graph:
        makers = {name: node for node in model.nodes for name in node.output}
        readers = {name: node for node in model.nodes for name in node.input}
        return _Graph(model, makers, readers, model.use_counts())

    def match(self, node: NodeProto) -> tuple[str, int, NodeProto] | None:
        """What the Transpose `node` is of, its rank, and the Reshape behind it."""
        if node.op_type != "Transpose" or list(attribute(node, "perm", [])) != [0, 2, 1]:
            return None
        first, last = self.makers.get(node.input[0]), self.readers.get(node.output[0])
        if first is None or last is None or first.op_type != "Reshape" or last.op_type != "Reshape":
            return None
        x, shape = first.input[0], self.model.shape(first.input[0])
        if len(first.input) < 2 or len(last.input) < 2:
            return None
        if self.uses[node.output[0]] != 1 or last.input[0] != node.output[0] or shape is None:
            return None
        rank = len(shape)
        rows, columns = rank - 2, rank - 1
        flat, whole = (self.entries(reshape.input[1], x, rank) for reshape in (first, last))
        if flat != [_LEFT_OVER, rows, columns] or whole != [*range(rank - 2), columns, rows]:
            return None
        return x, rank, last

    def entries(self, name: str, x: str, rank: int) -> list[int] | None:
        """A shape as axes of x; None where it is made of anything else but one -1."""
        constant = self.model.constants.get(name)
        if constant is not None:
            return [_LEFT_OVER] if constant.load().tolist() == [-1] else None
        node = self.makers.get(name)
        if node is None:
            return None
        if node.op_type == "Concat":
            parts = [self.entries(part, x, rank) for part in node.input]
            known = [part for part in parts if part is not None]
            return list(chain.from_iterable(known)) if len(known) == len(parts) else None
        if node.op_type == "Shape" and node.input[0] == x:
            start, end = attribute(node, "start", 0), attribute(node, "end", rank)
            return list(range(rank))[start:end]
        if node.op_type == "Slice":
            return self._sliced(node, x, rank)
        return None

    def _sliced(self, node: NodeProto, x: str, rank: int) -> list[int] | None:
        whole = self.entries(node.input[0], x, rank)
        numbers = [self.model.constants.get(name) for name in node.input[1:]]
        if whole is None or _LEFT_OVER in whole:
            return None
        known = [n.load().reshape(-1).tolist() for n in numbers if n is not None]
        if (
            not 2 <= len(numbers) <= 4
            or len(known) < len(numbers)
            or any(len(values) != 1 for values in known)
        ):
            return None
        start, end, axis, step = [values[0] for values in known] + [0, 1][len(known) - 2 :]
        return whole[start:end] if axis in (0, -1) and step == 1 else None
