"""The table of operators: one function each, found by domain, name and version.

    @lowers("Squeeze")
    def squeeze(node: Node) -> Value: ...

A rule takes a `Node` and returns the node's output, or a sequence of outputs in order (shorter
where the rest is not asked for). It serves all versions of the operator from `since` on, up to the
`since` of another rule: attributes that later became inputs are read with `Node.ints_of`.
"""

from __future__ import annotations

import builtins
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from abqc.dialects.mlir import ir
from abqc.errors import ModelError
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, defs, helper

from .values.constants import Constant
from .values.element_types import I64, ElementType, element_type, onnx_name
from .values.symbolic import ONE, Dim, product
from .values.value import AnyValue, OptionalValue, SequenceValue, Value

if TYPE_CHECKING:
    from .building.emit import Builder
    from .building.scalars import Scalar
    from .lowering import Lowering

Result = AnyValue | Sequence[AnyValue | None]
Rule = Callable[["Node"], Result]
AnyRule = TypeVar("AnyRule", bound=Rule)

MICROSOFT = "com.microsoft"
ML = "ai.onnx.ml"

_REQUIRED: Any = object()


@dataclass(frozen=True)
class Entry:
    """A rule and the first version of the domain that it serves."""

    since: int
    rule: Rule


RULES: dict[tuple[str, str], list[Entry]] = {}


def lowers(*op_types: str, domain: str = "", since: int = 1) -> Callable[[AnyRule], AnyRule]:
    """Decorator: the function lowers these operators."""

    def add(rule: AnyRule) -> AnyRule:
        for op_type in op_types:
            entries = RULES.setdefault((domain, op_type), [])
            assert all(entry.since != since for entry in entries), f"{op_type} has two rules"
            entries.append(Entry(since, rule))
            entries.sort(key=lambda entry: -entry.since)
        return rule

    return add


def rule_for(domain: str, op_type: str, version: int) -> Rule | None:
    """The rule for an operator of an opset version of its domain, None where there is none."""
    load_rules()
    for entry in RULES.get((canonical(domain), op_type), []):
        if entry.since <= version:
            return entry.rule
    return None


def load_rules() -> None:
    """Imports the files of `ops/`, each of which fills the table."""
    if _loaded:
        return
    from . import ops

    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{module.name}")
    _loaded.append(True)


_loaded: list[bool] = []


def canonical(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


class Node:
    """A node that is being lowered: its inputs as values, its attributes by kind.

    `version` is that of the operator set that the node is of. `b` builds the IR.
    """

    def __init__(
        self,
        proto: NodeProto,
        inputs: Sequence[AnyValue | None],
        version: builtins.int,
        lowering: Lowering,
    ) -> None:
        self.proto = proto
        self.name = proto.name
        self.op_type = proto.op_type
        self.domain = canonical(proto.domain)
        self.version = version
        self.lowering = lowering
        self.b: Builder = lowering.builder
        self._inputs = list(inputs)
        self._attributes = {attribute.name: attribute for attribute in proto.attribute}

    # Inputs and outputs

    @property
    def inputs(self) -> list[AnyValue | None]:
        """All inputs, None for those left out."""
        return self._inputs

    def given(self, i: builtins.int) -> bool:
        return i < len(self._inputs) and self._inputs[i] is not None

    def input(self, i: builtins.int) -> Value:
        """Input `i`, a tensor."""
        if not self.given(i):
            raise self.error(f"input {i} is missing")
        value = self._inputs[i]
        if not isinstance(value, Value):
            kind = "a sequence" if isinstance(value, SequenceValue) else "an optional"
            raise self.error(f"input {i} is {kind}, expected a tensor")
        return value

    def optional(self, i: builtins.int) -> Value | None:
        return self.input(i) if self.given(i) else None

    def tensors(self) -> list[Value]:
        """All inputs, which must be tensors."""
        return [self.input(i) for i in range(len(self._inputs))]

    def sequence(self, i: builtins.int) -> SequenceValue:
        value = self._inputs[i] if self.given(i) else None
        if isinstance(value, OptionalValue):
            value = value.element
        if not isinstance(value, SequenceValue):
            raise self.error(f"input {i} is no sequence")
        return value

    def as_standard(self, *inputs: AnyValue | None) -> Node:
        """This node, of another domain, as one of ONNX's newest operator set with other inputs.

        For operators whose attributes are those of a standard operator.
        """
        return Node(self.proto, inputs, defs.onnx_opset_version(), self.lowering)

    def weight(self, constant: Constant, kind: str, part: str = "") -> ir.Value:
        """A constant as this node's weight, which recipes may quantize; `kind` is "matmul", "conv"
        or "gather", `part` tells the weights of one node apart."""
        name = f"{self.name}/{part}" if part else self.name
        return self.b.weight(constant, node=name, op_type=self.op_type, kind=kind)

    @property
    def output_count(self) -> builtins.int:
        return len(self.proto.output)

    def wants(self, i: builtins.int) -> bool:
        """Whether output `i` has a name."""
        return i < len(self.proto.output) and bool(self.proto.output[i])

    # Attributes

    def has(self, name: str) -> bool:
        return name in self._attributes

    def _get(self, name: str, default: Any, *kinds: builtins.int) -> Any:
        attribute = self._attributes.get(name)
        if attribute is None:
            if default is _REQUIRED:
                raise self.error(f"attribute '{name}' is missing")
            return default
        if attribute.type not in kinds:
            kind = AttributeProto.AttributeType.Name(attribute.type).lower()
            raise self.error(f"attribute '{name}' is of type {kind}")
        return helper.get_attribute_value(attribute)

    def int(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._get(name, default, AttributeProto.INT)

    def float(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self._get(name, default, AttributeProto.FLOAT, AttributeProto.INT)
        return value if value is None else float(value)

    def ints(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self._get(name, default, AttributeProto.INTS)
        return value if value is None else list(value)

    def floats(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self._get(name, default, AttributeProto.FLOATS)
        return value if value is None else list(value)

    def string(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self._get(name, default, AttributeProto.STRING)
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def strings(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self._get(name, default, AttributeProto.STRINGS)
        if value is None or value is default:
            return value
        return [item.decode(errors="replace") for item in value]

    def tensor(self, name: str, default: Any = _REQUIRED) -> TensorProto:
        return self._get(name, default, AttributeProto.TENSOR)

    def graph(self, name: str) -> GraphProto:
        return self._get(name, _REQUIRED, AttributeProto.GRAPH)

    def choice(self, name: str, default: str, *allowed: str) -> str:
        """A string attribute that takes one of a few values."""
        value = self.string(name, default)
        if value not in (default, *allowed):
            raise self.error(f"attribute '{name}' is '{value}', expected {(default, *allowed)}")
        return value

    # Attributes that newer versions have as inputs

    def ints_of(self, name: str, i: builtins.int, default: Any = None) -> list[builtins.int] | None:
        """Integers that are attribute `name` or, of newer versions, input `i`: constants."""
        if self.has(name):
            return self.ints(name)
        dims = self.dims_of(i)
        if dims is None:
            return default
        numbers = [dim.value for dim in dims]
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            raise self.error(f"input {i} ('{name}') must be constant, it is {dims}")
        return known

    def dims_of(self, i: builtins.int) -> list[Dim] | None:
        """The integers of input `i` as sizes; read by the run where nothing else knows them."""
        return self.b.integers(self.input(i)) if self.given(i) else None

    def item_of(self, i: builtins.int) -> Scalar:
        """The one element of input `i`, of any rank, read outside of loops."""
        value = self.input(i)
        what = f"input {i}, {value}, must be one number"
        self.b.require_equal(product(value.dims), ONE, what)
        return self.b.item(value, *[0] * value.rank)

    def integer_of(self, i: builtins.int) -> Dim:
        """The one integer of input `i`; read by the run where nothing else knows it."""
        symbols = self.input(i).symbols
        if symbols is not None and len(symbols) == 1:
            return symbols[0]
        return self.b.run_time(self.item_of(i).cast(I64), natural=False)

    def integers_of(self, i: builtins.int, count: builtins.int) -> list[Dim]:
        """The `count` integers of input `i`, also where its size is known to the run alone."""
        value = self.input(i)
        if value.size is None and value.rank == 1 and value.symbols is None:
            what = f"input {i} must have {count} elements"
            self.b.require_equal(value.dims[0], Dim.of(count), what)
            return [self.b.run_time(self.b.item(value, at), natural=False) for at in range(count)]
        numbers = self.b.integers(value)
        if len(numbers) != count:
            raise self.error(f"input {i}, {value}, must have {count} elements")
        return numbers

    def constant_of(self, i: builtins.int) -> np.ndarray:
        """The elements of input `i`, which must be constant."""
        array = self.input(i).numpy()
        if array is None:
            raise self.error(f"input {i} must be constant")
        return array

    # Types and axes

    def type_of(self, name: str, default: Any = _REQUIRED) -> ElementType:
        """The element type that an attribute gives by ONNX's number."""
        return self.known_type(self.int(name, default))

    def known_type(self, number: builtins.int) -> ElementType:
        type_ = element_type(number)
        if type_ is None:
            raise self.error(f"element type {onnx_name(number)} is not supported")
        return type_

    def axis(self, name: str, rank: builtins.int, default: Any = _REQUIRED) -> builtins.int:
        """An axis attribute, counted from the front."""
        return self.counted(self.int(name, default), rank)

    def counted(self, axis: builtins.int, rank: builtins.int) -> builtins.int:
        if not -rank <= axis < rank:
            raise self.error(f"axis {axis} is out of range for a tensor of rank {rank}")
        return axis % rank

    def error(self, reason: str, hint: str | None = None) -> ModelError:
        return ModelError(f"{self.op_type}: {reason}", node=self.name, hint=hint)
