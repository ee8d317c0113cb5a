"""What ONNX's schemas demand of a node, and what no memory can hold.

Rules may rely on it: as many inputs and outputs as the operator has, the attributes that it needs,
element types that it takes, the same type where the schema has one name for several.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

from abqc.errors import ModelError
from onnx import TensorProto, defs

from .registry import ML, Node
from .values.constants import HALVES
from .values.value import AnyValue, Value

# Bytes of a tensor: what a process on x86-64 can address at all.
ADDRESSABLE = 1 << 47


@dataclass(frozen=True)
class Parameter:
    """An input of an operator. `type_name` is the schema's name of its type: what has the same
    name has the same type; None for a list of inputs whose types may differ."""

    name: str
    required: bool
    type_name: str | None
    types: frozenset[str]


@dataclass(frozen=True)
class Demands:
    """What a schema demands; the last of `parameters` stands for all inputs that follow."""

    parameters: tuple[Parameter, ...]
    most_inputs: int
    most_outputs: int
    attributes: tuple[str, ...]


def check_node(node: Node) -> None:
    """Raises ModelError where the node contradicts the schema of its operator, if it has one."""
    demands = _demands(node.op_type, node.version, node.domain)
    if demands is None:
        return
    if len(node.inputs) > demands.most_inputs:
        raise node.error(f"it has {len(node.inputs)} inputs, at most {demands.most_inputs}")
    if node.output_count > demands.most_outputs:
        raise node.error(f"it has {node.output_count} outputs, at most {demands.most_outputs}")
    for i, parameter in enumerate(demands.parameters):
        if parameter.required and not node.given(i):
            raise node.error(f"input {i} ('{parameter.name}') is missing")
    for name in demands.attributes:
        if not node.has(name):
            raise node.error(f"attribute '{name}' is missing")
    _check_types(node, demands)


def check_sizes(name: str, value: AnyValue | None, node: str | None = None) -> None:
    """Raises ModelError for a tensor of a negative static size, or larger than any memory."""
    if not isinstance(value, Value):
        return
    sizes = [dim.value for dim in value.dims if dim.value is not None]
    if any(size < 0 for size in sizes):
        raise ModelError(f"{name} would have a negative size: {value}", node=node)
    if prod(sizes) * max(value.dtype.bits, 8) // 8 >= ADDRESSABLE:
        raise ModelError(f"{name} would be larger than any memory: {value}", node=node)


def _check_types(node: Node, demands: Demands) -> None:
    bound: dict[str, Value] = {}
    for i, value in enumerate(node.inputs):
        if not isinstance(value, Value):
            continue
        parameter = demands.parameters[min(i, len(demands.parameters) - 1)]
        if not _takes(parameter, value):
            raise node.error(
                f"input {i} is of type {value.dtype}, which the operator does not take"
            )
        if parameter.type_name is None:
            continue
        first = bound.setdefault(parameter.type_name, value)
        if first.dtype is not value.dtype:
            raise node.error(
                f"input {i} is of type {value.dtype}, but must be of the same as another one, "
                f"which is of type {first.dtype}"
            )


def _takes(parameter: Parameter, value: Value) -> bool:
    """Floats of 16 bits are taken where f32 is, in which they are computed: PyTorch writes models
    of bf16 to opsets whose convolutions do not have it yet."""
    name = _type_name(value.dtype.onnx)
    half = value.dtype.onnx in HALVES and _type_name(TensorProto.FLOAT) in parameter.types
    return half or name in parameter.types


@cache
def _demands(op_type: str, version: int, domain: str) -> Demands | None:
    if domain not in ("", ML) or not defs.has(op_type, version, domain):
        return None
    schema = defs.get_schema(op_type, version, domain)
    options = defs.OpSchema.FormalParameterOption
    return Demands(
        tuple(
            Parameter(
                formal.name,
                formal.option == options.Single,
                formal.type_str if formal.option != options.Variadic or formal.is_homogeneous
                else None,
                frozenset(map(_inside, formal.types)),
            )
            for formal in schema.inputs
        ),
        schema.max_input,
        schema.max_output,
        tuple(name for name, attribute in schema.attributes.items() if attribute.required),
    )  # fmt: skip


def _inside(type_text: str) -> str:
    """A tensor may stand where an optional one is asked for."""
    optional = "optional("
    return type_text[len(optional) : -1] if type_text.startswith(optional) else type_text


@cache
def _type_name(number: int) -> str:
    """As schemas have it: `tensor(float)`."""
    return f"tensor({TensorProto.DataType.Name(number).lower()})"
