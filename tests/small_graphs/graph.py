"""A small graph and what to feed it, and the words to write one with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_models
from onnx import helper

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Graph:
    """A model and what to feed it. `expected` gives the outputs of the first feeds where
    onnxruntime does not, or where the right values are known."""

    model: onnx.ModelProto
    feeds: list[Feeds]
    expected: list[np.ndarray] = field(default_factory=list)


def node(
    op_type: str, inputs: str, outputs: str, name: str = "", **attributes: Any
) -> onnx.NodeProto:
    """As `onnx_models.node`; a node without a name has that of its first output."""
    return onnx_models.node(op_type, inputs, outputs, name or outputs.split()[0], **attributes)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: int) -> np.ndarray:
    return np.array(value, np.int64)


def graph(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, Any, list[int | str]]],
    outputs: str,
    constants: dict[str, np.ndarray],
    feeds: list[Feeds],
    opset: int = 17,
    dtype: Any = np.float32,
    domains: tuple[str, ...] = (),
    expected: list[np.ndarray] | None = None,
) -> Graph:
    """A graph whose outputs, all of `dtype`, have no declared shapes, as exporters leave them."""
    made = onnx_models.model(
        nodes, inputs, [(n, dtype, []) for n in outputs.split()], constants, opset, domains=domains
    )
    for value in made.graph.output:
        value.type.tensor_type.ClearField("shape")
    return Graph(made, feeds, expected or [])


def subgraph(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[int | str] | None]],
    outputs: list[tuple[str, int, list[int | str] | None]],
) -> onnx.GraphProto:
    """A body of If, Loop or Scan; values are (name, element type, shape)."""
    return helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )
