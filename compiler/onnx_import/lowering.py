"""Lowers graphs: nodes in order, each by its rule, ONNX's own definition, or not at all.

Values are found by name in an environment; subgraphs see those around them. A node whose inputs
are constants is folded, one whose outputs nobody reads is left out.
"""

from __future__ import annotations

import difflib
from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence

from abqc.dialects.mlir import ir
from abqc.errors import AbqcError, ModelError
from abqc.passes.diagnostics import explain
from onnx import FunctionProto, GraphProto, NodeProto, TypeProto, defs, helper

from .assumptions import Assumptions, Undecided
from .building.emit import Builder
from .graph.load import Initializers, named
from .graph.ordering import in_order
from .graph.rounded_rows import RowRounding
from .refusals import REFUSALS
from .registry import MICROSOFT, ML, RULES, Node, canonical, load_rules, rule_for
from .schemas import check_node, check_sizes
from .values.constants import Constant
from .values.element_types import F32, element_type
from .values.folding import Folder
from .values.value import (
    AnyValue,
    OptionalValue,
    RoundedRows,
    SequenceValue,
    Value,
    constant_value,
)

Environment = MutableMapping[str, AnyValue]

MAX_DEPTH = 64  # of functions and subgraphs within each other


class Lowering:
    """`versions`: of the operator sets that the model is of, by domain; `rounded_rows`: values of
    the main graph by name."""

    def __init__(
        self,
        builder: Builder,
        folder: Folder,
        versions: Mapping[str, int],
        initializers: Initializers,
        assumptions: Assumptions,
        rounded_rows: Mapping[str, RowRounding],
    ) -> None:
        self.builder = builder
        self.assumptions = assumptions
        self.versions = {canonical(domain): version for domain, version in versions.items()}
        self.environment: Environment = {}
        self._folder = folder
        self._initializers = initializers
        self._rounded_rows = rounded_rows
        self._depth = 0

    def lower_nodes(self, nodes: Sequence[NodeProto]) -> None:
        for proto in nodes:
            self._lower(proto)

    def value(self, name: str, node: str = "") -> AnyValue:
        if name not in self.environment:
            raise ModelError(f"'{name}' is made by no node before it is read", node=node or None)
        return self.environment[name]

    def define(self, name: str, value: AnyValue) -> None:
        self.environment[name] = value

    def subgraph(self, graph: GraphProto, inputs: Sequence[AnyValue], node: Node) -> list[AnyValue]:
        """The outputs of a subgraph that is given `inputs`, lowered at the insertion point.

        Whoever calls this in a region of the IR has opened a scope for it (`Builder.block`).
        """
        if len(inputs) != len(graph.input):
            raise node.error(
                f"subgraph '{graph.name}' has {len(graph.input)} inputs, expected {len(inputs)}"
            )
        outer = self.builder.node, self.builder.op_type
        names = {value.name: given for value, given in zip(graph.input, inputs, strict=True)}
        with self._nested(ChainMap({}, self.environment)):
            for tensor in graph.initializer:
                constant = self._initializers.constant(tensor)
                self.define(tensor.name, self._constant_value(constant, node.name))
            self.environment.update(names)
            self.lower_nodes(named(in_order(graph.node)))
            results = [self.value(output.name, node.name) for output in graph.output]
        self.builder.node, self.builder.op_type = outer
        return results

    def expand(self, node: Node, function: FunctionProto) -> list[AnyValue | None]:
        """The outputs of a node by the definition of its operator."""
        scope: dict[str, AnyValue] = {}
        for formal, value in zip(function.input, node.inputs, strict=False):
            if value is not None:
                scope[formal] = value
        versions = {canonical(o.domain): o.version for o in function.opset_import}
        outer, self.versions = self.versions, {**self.versions, **versions}
        try:
            with self._nested(scope):
                given, absent = _attributes(node), set(function.input) - set(scope)
                self.lower_nodes(
                    [_instance(inner, given, node.name, absent) for inner in function.node]
                )
                return [self.environment.get(name) for name in function.output]
        finally:
            self.versions = outer
            self.builder.node, self.builder.op_type = node.name, node.op_type

    def _nested(self, environment: Environment) -> _Nested:
        return _Nested(self, environment)

    def _lower(self, proto: NodeProto) -> None:
        inputs = [self._input(name, proto.name) for name in proto.input]
        domain = canonical(proto.domain)
        version = self.versions.get(domain)
        if version is None and domain not in (MICROSOFT, ML):
            raise ModelError(
                f"operator {proto.domain}::{proto.op_type} is of a domain whose version the model "
                "does not say",
                node=proto.name,
            )
        _check_version(proto, domain, version or 1)
        node = Node(proto, inputs, version or 1, self)
        self.builder.node, self.builder.op_type = proto.name, proto.op_type
        with ir.Location.name(proto.name):
            try:
                if (domain, proto.op_type) in REFUSALS:
                    raise unsupported(node)
                check_node(node)
                outputs = self._outputs(node)
            except (AbqcError, Undecided, MemoryError, OSError):
                raise
            except Exception as error:
                # A form that the rule did not think of: a defect of ours, but with its node.
                raise ModelError(
                    f"{node.op_type}: this form cannot be lowered ({explain(error)[0]})",
                    node=node.name,
                ) from error
        for name, value in zip(proto.output, outputs, strict=False):
            if name and value is not None:
                check_sizes(f"output '{name}' of {node.op_type}", value, node.name)
                self.define(name, value)
                self._note_rounding(name, value)

    def _note_rounding(self, name: str, value: AnyValue) -> None:
        """Let a value know what its rows were before the model rounded them."""
        rounding = self._rounded_rows.get(name) if not self._depth else None
        if rounding is None or not isinstance(value, Value) or value.dtype != F32:
            return
        source = self.value(rounding.x)
        if isinstance(source, Value) and rounding.axis in (-1, source.rank - 1):
            value.rounded = RoundedRows(source, rounding.bits)

    def _input(self, name: str, node: str) -> AnyValue | None:
        """A value as a node sees it; None where the node leaves the input out."""
        if not name:
            return None
        value = self.value(name, node)
        return self.builder.normalized(value) if isinstance(value, Value) else value

    def _outputs(self, node: Node) -> Sequence[AnyValue | None]:
        folded = self._folded(node)
        if folded is not None:
            return folded
        rule = rule_for(node.domain, node.op_type, node.version)
        if rule is not None:
            result = rule(node)
            single = isinstance(result, (Value, SequenceValue, OptionalValue))
            return [result] if single else result  # type: ignore[list-item, return-value]
        function = definition(node)
        if function is not None:
            return self.expand(node, function)
        raise unsupported(node)

    def _folded(self, node: Node) -> list[AnyValue | None] | None:
        """The outputs of a node of constants, where they are constants too."""
        if node.domain != "" or (not node.inputs and node.op_type != "Constant"):
            return None
        constants: list[Constant | None] = []
        for value in node.inputs:
            constant = value.as_constant if isinstance(value, Value) else None
            if value is not None and constant is None:
                return None
            constants.append(constant)
        if node.inputs and not any(constants):
            return None
        results = self._folder.fold(node.proto, constants, node.version)
        if results is None:
            return None
        return [self._constant_value(constant, node.name) for constant in results]

    def _constant_value(self, constant: Constant, node: str) -> Value:
        dtype = element_type(constant.elem_type)
        if dtype is None:
            raise ModelError("a constant is of a type that is not supported", node=node)
        return constant_value(constant, dtype)


class _Nested:
    """Another environment for as long as a graph is lowered."""

    def __init__(self, lowering: Lowering, environment: Environment) -> None:
        self._lowering = lowering
        self._environment = environment

    def __enter__(self) -> None:
        lowering = self._lowering
        if lowering._depth >= MAX_DEPTH:
            raise ModelError(
                f"functions and subgraphs are nested more than {MAX_DEPTH} deep",
                node=lowering.builder.node,
            )
        lowering._depth += 1
        self._outer, lowering.environment = lowering.environment, self._environment

    def __exit__(self, *_: object) -> None:
        self._lowering._depth -= 1
        self._lowering.environment = self._outer


def definition(node: Node) -> FunctionProto | None:
    """ONNX's definition of an operator by others, for the node's types; None if it has none."""
    if node.domain not in ("", ML) or not defs.has(node.op_type, node.version, node.domain):
        return None
    schema = defs.get_schema(node.op_type, node.version, node.domain)
    plain = sorted(v for v in schema.function_opset_versions if v <= node.version)
    dependent = sorted(
        v for v in schema.context_dependent_function_opset_versions if v <= node.version
    )
    for version in sorted({*plain, *dependent}, reverse=True):
        if version in plain:
            data = schema.get_function_with_opset_version(version)
        else:
            types = [_type_of(value).SerializeToString() for value in node.inputs]
            data = schema.get_context_dependent_function_with_opset_version(
                version, node.proto.SerializeToString(), types
            )
        function = FunctionProto()
        function.ParseFromString(data)
        if function.node:
            return function
    return None


def _type_of(value: AnyValue | None) -> TypeProto:
    if not isinstance(value, Value):
        return TypeProto()
    shape = [str(dim) if dim.value is None else dim.value for dim in value.dims]
    return helper.make_tensor_type_proto(value.dtype.onnx, shape)


def _attributes(node: Node) -> dict[str, object]:
    """The attributes of a call, defaults of the schema included."""
    given: dict[str, object] = {item.name: item for item in node.proto.attribute}
    schema = defs.get_schema(node.op_type, node.version, node.domain)
    for name, parameter in schema.attributes.items():
        if name not in given and parameter.default_value.name:
            given[name] = parameter.default_value
    return given


def _instance(
    node: NodeProto, given: Mapping[str, object], prefix: str, absent: set[str]
) -> NodeProto:
    """A node of a definition, with the attributes of the call, without inputs that it lacks."""
    copy = NodeProto()
    copy.CopyFrom(node)
    label = node.name or node.op_type
    copy.name = f"{prefix}/{label}_{node.output[0]}" if node.output else f"{prefix}/{label}"
    _bind_attributes(copy, given)
    for at, name in enumerate(copy.input):
        if name in absent:
            copy.input[at] = ""
    return copy


def _bind_attributes(node: NodeProto, given: Mapping[str, object]) -> None:
    bound = []
    for item in node.attribute:
        if not item.ref_attr_name:
            bound.append(item)
            continue
        actual = given.get(item.ref_attr_name)
        if actual is None:
            continue
        copy = type(item)()
        copy.CopyFrom(actual)  # type: ignore[arg-type]
        copy.name = item.name
        bound.append(copy)
    kept = [type(item).FromString(item.SerializeToString()) for item in bound]
    del node.attribute[:]
    node.attribute.extend(kept)
    for item in node.attribute:
        graphs = [item.g] if item.type == item.GRAPH else list(item.graphs)
        for graph in graphs:
            for inner in graph.node:
                _bind_attributes(inner, given)


def _check_version(node: NodeProto, domain: str, version: int) -> None:
    """An operator of a later opset than the model's is a mistake of its exporter."""
    if domain == "" and defs.has(node.op_type) and not defs.has(node.op_type, version, ""):
        since = defs.get_schema(node.op_type).since_version
        if since > version:
            raise ModelError(
                f"operator {node.op_type} is unknown in opset {version}; it is there since {since}",
                node=node.name,
            )


def unsupported(node: Node) -> ModelError:
    """What to say of an operator that has no rule."""
    load_rules()
    label = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    reason = REFUSALS.get((node.domain, node.op_type))
    if reason is not None:
        return ModelError(f"operator {label} is not supported: {reason}", node=node.name)
    entries = RULES.get((node.domain, node.op_type))
    if entries:
        oldest = min(entry.since for entry in entries)
        return ModelError(f"operator {label} is supported since version {oldest} of its domain, "
                          f"this is version {node.version}", node=node.name)  # fmt: skip
    if node.domain == "" and not defs.has(node.op_type):
        near = difflib.get_close_matches(node.op_type, [name for d, name in RULES if not d], 1)
        hint = f"did you mean {near[0]}?" if near else None
        return ModelError(f"ONNX has no operator {label}", node=node.name, hint=hint)
    return ModelError(
        f"operator {label} is not supported",
        node=node.name,
        hint="docs/operators.md lists what is, and why some are not",
    )
