"""Sizes that a model marks as unknown in place of naming them."""

from __future__ import annotations

from onnx import TensorShapeProto

from .model import Model


def forget_marks(model: Model) -> None:
    """Takes marks such as `?` and -1 off sizes of inputs and outputs.

    PaddlePaddle writes `?` for every unknown size of an image: equal marks are no equal sizes.
    """
    for value in (*model.shell.graph.input, *model.shell.graph.output):
        if not value.type.HasField("tensor_type"):
            continue
        for dim in value.type.tensor_type.shape.dim:
            if is_mark(dim):
                dim.ClearField("value")


def is_mark(dim: TensorShapeProto.Dimension) -> bool:
    """Whether a size is negative, or its name has neither letter nor digit or says so."""
    if dim.HasField("dim_value"):
        return dim.dim_value < 0
    text = dim.dim_param
    return bool(text) and (text in ("None", "-1") or not any(map(str.isalnum, text)))
