"""The same test in other forms: what a real model would give as constants, or leave open.

plain      as onnx has it
constants  all inputs but the first are initializers
symbolic   the sizes of the first input are names, all different; nothing says the sizes of
           the outputs
"""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from .cases import DataSet

VARIANTS = ("plain", "constants", "symbolic")

_INITIALIZERS_ARE_NO_INPUTS = 4  # since this version of the IR


def make(
    variant: str, model: onnx.ModelProto, sets: list[DataSet]
) -> tuple[onnx.ModelProto, list[DataSet]] | None:
    """The model and its values in this form; None where the test has no such form."""
    if variant == "plain":
        return model, sets
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if variant == "constants":
        return _constants(copy, sets)
    if variant == "symbolic":
        return _symbolic(copy, sets)
    raise ValueError(f"there is no variant '{variant}'; they are {', '.join(VARIANTS)}")


def _constants(
    model: onnx.ModelProto, sets: list[DataSet]
) -> tuple[onnx.ModelProto, list[DataSet]] | None:
    """With the values of the first set; the other sets have other ones, so they are left out."""
    inputs, outputs = sets[0]
    known = {tensor.name for tensor in model.graph.initializer}
    values = list(model.graph.input)[: len(inputs)]
    fixed = [
        (value, content)
        for value, content in list(zip(values, inputs, strict=True))[1:]
        if value.name not in known
    ]
    if not fixed or not all(value.type.HasField("tensor_type") for value, _ in fixed):
        return None
    for value, content in fixed:
        elem_type = value.type.tensor_type.elem_type
        model.graph.initializer.append(_tensor(content, value.name, elem_type))
    if model.ir_version >= _INITIALIZERS_ARE_NO_INPUTS:
        gone = {value.name for value, _ in fixed}
        kept = [value for value in model.graph.input if value.name not in gone]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    return model, [(inputs[:1], outputs)]


def _tensor(content: object, name: str, elem_type: int) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(content, name)
    if tensor.data_type != elem_type:
        raise ValueError(f"'{name}' is of type {tensor.data_type}, declared as {elem_type}")
    return tensor


def _symbolic(
    model: onnx.ModelProto, sets: list[DataSet]
) -> tuple[onnx.ModelProto, list[DataSet]] | None:
    if not model.graph.input or not model.graph.input[0].type.HasField("tensor_type"):
        return None
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if not dims:
        return None
    for axis, dim in enumerate(dims):
        dim.dim_param = f"d{axis}"
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return model, sets
