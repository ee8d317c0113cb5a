"""A random graph as it grows: every node is evaluated by onnx's reference as it is added.

So the shapes, types and values of all that is there are known, a node that has no meaning (a window
larger than its input) is left out, and what each output must be is known in the end. The operators
are those of abqc's table.
"""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from abqc.compiler.onnx_import.registry import rule_for
from onnx import defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

OPSET = 21
IR_VERSION = 10
LARGEST = 4096  # elements of a value
MAGNITUDE = 1e4  # of floats

FLOATS = ("float32", "float16", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
ALL = (*FLOATS, *INTEGERS, "bool")


@dataclass
class Value:
    """`exact`: no rounding has gone into it, so that steps and comparisons of it are certain."""

    name: str
    array: np.ndarray
    exact: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def rank(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> str:
        return self.array.dtype.name

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def is_integer(self) -> bool:
        return self.dtype in INTEGERS


@dataclass
class Draft:
    """`choose` draws; `inputs` and `constants` are what nodes read that no node makes."""

    choose: random.Random
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    open_axes: dict[str, list[int]] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def coin(self, probability: float = 0.5) -> bool:
        return self.choose.random() < probability

    def array(self, dtype: str, shape: Sequence[int]) -> np.ndarray:
        """Small numbers, floats in quarters, so that sums and products of few are exact."""
        count = int(np.prod(shape))
        if dtype == "bool":
            numbers = [self.choose.randrange(2) for _ in range(count)]
        elif dtype.startswith("u"):
            numbers = [self.choose.randrange(9) for _ in range(count)]
        else:
            numbers = [self.choose.randrange(-6, 7) for _ in range(count)]
        scale = 4 if dtype in FLOATS else 1
        return np.asarray(np.array(numbers).reshape(tuple(shape)) / scale).astype(dtype)

    def shape(self, rank: int | None = None) -> tuple[int, ...]:
        rank = self.choose.choice([0, 1, 2, 2, 3, 3, 4, 5]) if rank is None else rank
        sizes = [1, 1, 2, 2, 3, 3, 4, 5, 7]
        if self.coin(0.08):
            sizes.append(0)
        return tuple(self.choose.choice(sizes) for _ in range(rank))

    def input(self, dtype: str, shape: Sequence[int]) -> Value:
        """A new input; about half of its sizes are open."""
        value = Value(f"in{len(self.inputs)}", self.array(dtype, shape))
        self.inputs.append(value)
        self.open_axes[value.name] = [axis for axis in range(value.rank) if self.coin()]
        self.values.append(value)
        return value

    def constant(self, array: Any) -> Value:
        value = Value(f"c{len(self.constants)}", np.asarray(array))  # a number too
        self.constants[value.name] = value.array
        return value

    def operand(self, dtype: str, shape: Sequence[int]) -> Value:
        """A value of this type and shape: one that there is, a constant or a new input."""
        shape = tuple(shape)
        if self.coin(0.3):
            same = [v for v in self.values if v.dtype == dtype and v.shape == shape]
            if same:
                return self.choose.choice(same)
        if self.coin():
            return self.constant(self.array(dtype, shape))
        return self.input(dtype, shape)

    def indices(self, size: int, shape: Sequence[int], *, negative: bool = True) -> Value:
        """In range for an axis of `size`, constant or not, i64 or i32."""
        low = -size if negative and self.coin(0.4) else 0
        count = int(np.prod(tuple(shape)))
        numbers = [self.choose.randrange(low, size) for _ in range(count)]
        array = np.array(numbers, self.choose.choice(["int64", "int64", "int32"]))
        array = array.reshape(tuple(shape))
        return self.constant(array) if self.coin() else self.given(array)

    def given(self, array: np.ndarray) -> Value:
        """A new input with these values; one of fixed sizes, that means something else."""
        value = Value(f"in{len(self.inputs)}", array)
        self.inputs.append(value)
        self.open_axes[value.name] = []
        return value

    def add(
        self,
        op_type: str,
        *operands: Value | None,
        results: int = 1,
        exact: bool | None = None,
        kept: bool = True,
        **attributes: Any,
    ) -> Value | None:
        """The first result of a new node; None, and no node, where it has no (tame) meaning.

        `exact`: whether its results are; None: if its operands are. With `kept`, later nodes may
        read all results.
        """
        if not supported(op_type):
            return None
        number = len(self.nodes)
        names = [operand.name if operand else "" for operand in operands]
        made = [f"v{number}" + (f".{i}" if i else "") for i in range(results)]
        node = helper.make_node(op_type, names, made, name=f"{op_type}_{number}", **attributes)
        arrays = self._evaluate(node, [operand for operand in operands if operand])
        if arrays is None or not all(map(_tame, arrays)):
            return None
        self.nodes.append(node)
        if exact is None:
            exact = all(operand.exact for operand in operands if operand)
        new = [Value(n, array, exact) for n, array in zip(made, arrays, strict=True)]
        if kept:
            self.values.extend(new)
        return new[0]

    def _evaluate(self, node: onnx.NodeProto, operands: list[Value]) -> list[np.ndarray] | None:
        unique = {operand.name: operand.array for operand in operands}
        graph = helper.make_graph(
            [node],
            "node",
            [_info(name, array, []) for name, array in unique.items()],
            [onnx.ValueInfoProto(name=name) for name in node.output],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = ReferenceEvaluator(model).run(None, unique)
        except Exception:  # whatever numpy says of operands that do not go together
            return None
        return [np.asarray(array) for array in found]

    def finish(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The model, its feeds, and what its outputs are: all that nothing reads, and some more."""
        read = {name for node in self.nodes for name in node.input}
        made = {name for node in self.nodes for name in node.output}
        found = {v.name: v.array for v in self.values if v.name in made}
        outputs = {n: a for n, a in found.items() if n not in read or self.coin(0.2)}
        graph = helper.make_graph(
            self.nodes,
            "random",
            [_info(v.name, v.array, self.open_axes[v.name]) for v in self.inputs],
            [_info(name, array, range(array.ndim)) for name, array in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return model, {v.name: v.array for v in self.inputs}, outputs


@functools.cache
def supported(op_type: str) -> bool:
    """Whether abqc's table has the operator, or ONNX defines it by others."""
    return rule_for("", op_type, OPSET) is not None or defs.get_schema(op_type, OPSET).has_function


Step = Callable[[Draft, Value], "Value | None"]
STEPS: list[Step] = []


def step(function: Step) -> Step:
    """Registers a way to grow: a node, or a few, that read a value."""
    STEPS.append(function)
    return function


def _info(name: str, array: np.ndarray, open_axes: Sequence[int]) -> onnx.ValueInfoProto:
    sizes: list[int | str] = list(array.shape)
    for axis in open_axes:
        sizes[axis] = f"{name}_{axis}"
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), sizes)


def _tame(array: np.ndarray) -> bool:
    if array.size > LARGEST or array.ndim > 6 or array.dtype.name not in ALL:
        return False
    if array.dtype.kind != "f":
        return True
    return bool(np.isfinite(array).all() and np.abs(array).max(initial=0) <= MAGNITUDE)
