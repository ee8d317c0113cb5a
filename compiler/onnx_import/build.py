"""Small helpers to write ONNX nodes of the model's own opset."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, helper

from .constants import from_array
from .model import Model


class Nodes(list[NodeProto]):
    """Nodes that replace `origin`; names and values are derived from its name."""

    def __init__(self, model: Model, origin: NodeProto) -> None:
        super().__init__()
        self.model = model
        self.origin = origin

    def add(self, op_type: str, inputs: list[str], part: str = "", **attributes: Any) -> str:
        """One more node; without `part` it makes the first output of `origin` itself."""
        name = f"{self.origin.name}/{part}" if part else self.origin.name
        output = name if part else self.origin.output[0]
        self.append(helper.make_node(op_type, inputs, [output], name, **attributes))
        return output

    def constant(self, part: str, array: np.ndarray) -> str:
        name = f"{self.origin.name}/{part}"
        self.model.constants[name] = from_array(array)
        return name

    def scalar(self, part: str, value: float) -> str:
        return self.constant(part, np.asarray(value, np.float32))

    def reduce(self, op_type: str, x: str, axes: list[int], part: str = "") -> str:
        """A reduction that keeps its axes, with size 1; where `axes` stand depends on the opset."""
        moved = 13 if op_type == "ReduceSum" else 18
        if self.model.opset < moved:
            return self.add(op_type, [x], part, axes=axes, keepdims=1)
        axes_input = self.constant(f"{part or op_type}/axes", np.asarray(axes, np.int64))
        return self.add(op_type, [x, axes_input], part, keepdims=1)
