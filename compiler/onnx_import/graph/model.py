"""An ONNX graph under rewriting: nodes in a list, constants beside it instead of initializers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from ..values.constants import Constant

SMALL = 16  # elements; larger constants stay out of the IR


@dataclass
class Model:
    """`shell` is the model without initializers and nodes; inputs and outputs stay in its graph.

    `declared_opset` is the opset of the file, `opset` that of the nodes by now.
    """

    shell: ModelProto
    nodes: list[NodeProto]
    constants: dict[str, Constant]
    declared_opset: int

    @property
    def opset(self) -> int:
        """The version of the default domain, 0 if there is none."""
        return default_opset(self.shell)

    @property
    def output_names(self) -> list[str]:
        return [value.name for value in self.shell.graph.output]

    def use_counts(self) -> Counter[str]:
        """How often each value is read, by nodes, their subgraphs and the graph's outputs."""
        counts = Counter(self.output_names)
        for node in self.nodes:
            counts.update(read_names(node))
        return counts

    def to_proto(self, as_inputs: Iterable[str]) -> ModelProto:
        """The whole model; constants in `as_inputs` become graph inputs, the rest initializers."""
        arguments = list(as_inputs)
        proto = ModelProto()
        proto.CopyFrom(self.shell)
        proto.graph.node.extend(self.nodes)
        used = self.use_counts()
        for name in arguments:
            constant = self.constants[name]
            proto.graph.input.append(
                helper.make_tensor_value_info(name, constant.elem_type, constant.shape)
            )
        skipped = set(arguments)
        for name, constant in self.constants.items():
            if name in used and name not in skipped:
                proto.graph.initializer.append(numpy_helper.from_array(constant.load(), name))
        return proto

    def large_constants(self) -> list[str]:
        """The constants in use that have more than `SMALL` elements."""
        used = self.use_counts()
        return [name for name, c in self.constants.items() if name in used and c.size > SMALL]

    def drop_dead_nodes(self) -> None:
        """Removes nodes and constants that no output needs."""
        needed = set(self.output_names)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(read_names(node))
        self.nodes = kept[::-1]
        self.constants = {n: c for n, c in self.constants.items() if n in needed}


def default_opset(proto: ModelProto) -> int:
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def walk_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from walk_nodes(graph.node)


def read_names(node: NodeProto) -> Iterator[str]:
    """Every name that a node reads, captures of its subgraphs included."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        yield from captured_names(graph)


def captured_names(graph: GraphProto) -> Iterator[str]:
    """Every name that a subgraph reads, its own values included."""
    yield from (value.name for value in graph.output)
    for inner in graph.node:
        yield from read_names(inner)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    for candidate in node.attribute:
        if candidate.name == name:
            return helper.get_attribute_value(candidate)
    return default


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
