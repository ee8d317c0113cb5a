"""Builds models of one dynamic image, node by node."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """A model of one dynamic image, built node by node; every node that is `shown` is an output."""

    def __init__(self, channels: int, rank: int = 2, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        sizes = ["batch", channels, *"hwd"[:rank]]
        self._inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)]

    def numbers(self, *shape: int) -> np.ndarray:
        return self._random.standard_normal(shape).astype(np.float32)

    def constant(self, *shape: int, name: str | None = None) -> str:
        return self.value(self.numbers(*shape), name)

    def value(self, array: np.ndarray, name: str | None = None) -> str:
        label = name or f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, label))
        return label

    def add(self, operator: str, *inputs: str, show: bool = True, name: str = "", **attributes):  # type: ignore[no-untyped-def]
        output = f"y{len(self._nodes)}"
        self._nodes.append(
            helper.make_node(
                operator, inputs, [output], name=name or f"{operator}_{output}", **attributes
            )
        )
        if show:
            self._outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
        return output

    def model(self, opset: int = 18) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, "images", self._inputs, self._outputs, self._constants
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )


def images(graph: Graph, *shapes: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    return [{"x": graph.numbers(*shape)} for shape in shapes]
