"""ONNX graphs of a few operators: built, compiled in float, compared with onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import abqc
import numpy as np
import onnx
from abqc.runtime.model import Model
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Feeds = dict[str, np.ndarray]


class Graph:
    """Nodes added one by one; what no node reads is an output.

    `graph("Add", "x", array)` adds a node and returns the name of its (first) result; arrays become
    initializers. Inputs are given as `x=("float32", "n", 6)`, sizes by name being dynamic.
    """

    def __init__(self, opset: int = 17, **inputs: tuple[Any, ...]) -> None:
        self.opset = opset
        self.inputs = inputs
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.outputs: list[str] = []

    def __call__(self, op_type: str, *operands: Any, results: int = 1, **attributes: Any) -> Any:
        names = [o if isinstance(o, str) else self.constant(o) for o in operands]
        label = f"{op_type}_{len(self.nodes)}"
        made = [label if i == 0 else f"{label}.{i}" for i in range(results)]
        self.nodes.append(helper.make_node(op_type, names, made, name=label, **attributes))
        return made[0] if results == 1 else made

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def build(self) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        made = [name for node in self.nodes for name in node.output]
        outputs = self.outputs or [name for name in made if name not in read]
        graph = helper.make_graph(
            self.nodes,
            "main",
            [_value(name, *spec) for name, spec in self.inputs.items()],
            [ValueInfoProto(name=name) for name in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)

    def compile(self, folder: Path) -> tuple[Model, Any]:
        """The compiled model, and onnxruntime's session of the same."""
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        path = folder / "model.onnx"
        onnx.save(self.build(), path)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return abqc.compile(path), onnxruntime.InferenceSession(path, options)

    def check(self, folder: Path, *feeds: Feeds, tolerance: float = 2e-6) -> Model:
        """Compile, run with every set of feeds, compare every output."""
        model, session = self.compile(folder)
        for feed in feeds:
            expected = session.run(None, feed)
            wrong = compare(model, expected, model.run(feed), tolerance)
            shapes = {name: array.shape for name, array in feed.items()}
            assert not wrong, "\n".join([f"with {shapes}:", *wrong])
        return model


def compare(
    model: Model, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], tolerance: float
) -> list[str]:
    """A line for every output that differs: floats by more than `tolerance` of their magnitude."""
    wrong = []
    for spec, e, a in zip(model.outputs, expected, actual, strict=True):
        if e.shape != a.shape or e.dtype != a.dtype:
            wrong.append(f"{spec.name}: {a.dtype} {a.shape}, expected {e.dtype} {e.shape}")
            continue
        finite = e[np.isfinite(e)]
        scale = np.abs(finite).max(initial=1.0) if e.dtype.kind == "f" else 0
        if not np.allclose(a, e, rtol=0, atol=tolerance * scale, equal_nan=True):
            wrong.append(f"{spec.name}:\n{a}\nexpected\n{e}")
    return wrong


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(*shape: int, low: int = -50, high: int = 50, dtype: Any = np.int64) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(low, high, shape).astype(dtype)


def _value(name: str, dtype: str, *shape: int | str) -> ValueInfoProto:
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, elem_type, list(shape))
