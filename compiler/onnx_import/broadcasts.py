"""Expand as a broadcast that is decided at run time.

torch-mlir decides from the types which axes an Expand stretches, and leaves an axis alone whose
size it does not know, guarded by an assertion that real models fail (positions [1, S] expanded to
[B, S]). A three-way broadcast with a tensor of the wanted shape has no such trap.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from .build import Nodes
from .model import Model


def expand(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """Expand(x, shape) = Where(true of that shape, x, 0).

    (Not Where(true, x, x): torch-mlir folds that to x, whatever the shapes.)
    """
    x, elem_type = node.input[0], model.elem_type(node.input[0])
    shape = model.shape(x)
    if model.opset < 9 or not elem_type or (shape is not None and None not in shape):
        return None
    new = Nodes(model, node)
    true = helper.make_tensor("value", TensorProto.BOOL, [1], [True])
    everywhere = new.add("ConstantOfShape", [node.input[1]], "everywhere", value=true)
    if elem_type == TensorProto.BOOL:
        new.add("And", [everywhere, x])
        return new
    zero = new.constant("zero", np.zeros((), helper.tensor_dtype_to_np_dtype(elem_type)))
    new.add("Where", [everywhere, x, zero])
    return new
