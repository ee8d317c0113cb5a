"""Old operator sets: torch-mlir knows many operators only in their later versions."""

from __future__ import annotations

from onnx import numpy_helper, version_converter

from .constants import from_array
from .load import named
from .model import Model

PREFERRED = 17


def upgrade_opset(model: Model) -> None:
    """Converts a model older than `PREFERRED` to it, where onnx's converter can."""
    if model.opset >= PREFERRED:
        return
    large = model.large_constants()
    try:
        converted = version_converter.convert_version(model.to_proto(large), PREFERRED)
    except Exception:
        return  # no adapter for some operator: the front end may take it as it is, or names it
    del model.shell.opset_import[:]
    model.shell.opset_import.extend(converted.opset_import)
    model.nodes = named(converted.graph.node)
    for tensor in converted.graph.initializer:
        if tensor.name not in model.constants:
            array = numpy_helper.to_array(tensor)
            model.constants[tensor.name] = from_array(array, tensor.data_type)
