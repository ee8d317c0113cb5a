"""Expand as a broadcast that is decided at run time.

torch-mlir decides from the types which axes an Expand stretches, and leaves an axis alone whose
size it does not know, guarded by an assertion that real models fail (positions [1, S] expanded to
[B, S]). A three-way broadcast with a tensor of the wanted shape has no such trap.
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto, helper

from .build import Nodes
from .model import Model


def expand(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """Expand(x, shape) = Where(true of that shape, x, x)."""
    if model.opset < 9 or node.input[1] in model.constants:
        return None
    new = Nodes(model, node)
    true = helper.make_tensor("value", TensorProto.BOOL, [1], [True])
    everywhere = new.add("ConstantOfShape", [node.input[1]], "everywhere", value=true)
    new.add("Where", [everywhere, node.input[0], node.input[0]])
    return new
