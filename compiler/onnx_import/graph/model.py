"""An ONNX graph under rewriting: nodes in a list, constants beside it instead of initializers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx
from abqc.errors import ModelError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TypeProto, helper, numpy_helper

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
    types: dict[str, TypeProto] = field(default_factory=dict)

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

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The shape of a value, None in place of dynamic sizes; None if the rank is unknown."""
        if name in self.constants:
            return self.constants[name].shape
        type_ = self.types.get(name)
        if type_ is None or not type_.tensor_type.HasField("shape"):
            return None
        return tuple(
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in type_.tensor_type.shape.dim
        )

    def elem_type(self, name: str) -> int:
        """The ONNX element type of a value, 0 (UNDEFINED) where it is not known."""
        if name in self.constants:
            return self.constants[name].elem_type
        type_ = self.types.get(name)
        return type_.tensor_type.elem_type if type_ is not None else 0

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

    def infer_types(self) -> None:
        """Fills `types` by ONNX's shape inference."""
        graph = infer_shapes(self.to_proto(self.large_constants())).graph
        values = (*graph.input, *graph.value_info, *graph.output)
        self.types = {value.name: value.type for value in values}

    def drop_false_types(self) -> None:
        """Forgets what the model says of values between nodes where inference knows better.

        Exporters get such shapes wrong; where inference does not get far, they are a help.
        """
        declared = list(self.shell.graph.value_info)
        del self.shell.graph.value_info[:]
        self.infer_types()
        self.shell.graph.value_info.extend(
            value for value in declared if _agree(value.type, self.types.get(value.name))
        )

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


def _agree(declared: TypeProto, inferred: TypeProto | None) -> bool:
    """Whether a tensor can have both types."""
    if inferred is None:
        return True
    a, b = declared.tensor_type, inferred.tensor_type
    if a.elem_type != b.elem_type:
        return False
    if not a.HasField("shape") or not b.HasField("shape"):
        return True
    sizes = [
        (x.dim_value, y.dim_value)
        for x, y in zip(a.shape.dim, b.shape.dim, strict=False)
        if x.HasField("dim_value") and y.HasField("dim_value")
    ]
    return len(a.shape.dim) == len(b.shape.dim) and all(x == y for x, y in sizes)


def infer_shapes(proto: ModelProto) -> ModelProto:
    """ONNX's shape inference, which also tracks the values of shape tensors.

    The shapes that the model declares for its outputs are believed only where inference knows
    none: exporters get them wrong.
    """
    declared = {value.name: value.type.tensor_type.shape for value in proto.graph.output}
    bare = ModelProto()
    bare.CopyFrom(proto)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception as error:
        raise ModelError(f"ONNX shape inference failed: {first_line(error)}") from error
    constants = {tensor.name: tensor.dims for tensor in inferred.graph.initializer}
    inputs = {value.name: value.type.tensor_type.shape for value in inferred.graph.input}
    for value in inferred.graph.output:
        shape = value.type.tensor_type.shape
        if value.name in constants:
            for size in constants[value.name]:
                shape.dim.add().dim_value = size
            value.type.tensor_type.shape.SetInParent()
        elif not value.type.tensor_type.HasField("shape"):
            known = inputs.get(value.name) or declared[value.name]
            value.type.tensor_type.shape.CopyFrom(known)
    return inferred


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
